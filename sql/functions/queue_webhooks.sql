-- A job that somebody wants to hear of has changed its state: stores a delivery for each who does.
-- Children speak as items of their parent; webhook jobs themselves are silent.
create or replace function listingd.queue_webhooks()
returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    event text := case
        when new.kind = 'webhook' then null
        when new.parent_id is not null then case when new.state = 'completed' then 'job.item_completed' end
        when new.state in ('completed', 'failed', 'cancelled') then 'job.' || new.state
        when new.state = 'processing' and (tg_op = 'INSERT' or old.started_at is null) then 'job.started'
    end;
    own jsonb;
begin
    if event is null then
        return null;
    end if;
    select j.webhook into own from listingd.jobs as j
    where j.user_id = new.user_id and j.id = coalesce(new.parent_id, new.id);
    if own is not null and not coalesce(
        nullif(own -> 'events', '[]'), '["job.completed", "job.failed", "job.cancelled"]'
    ) ? event then
        own := null;
    end if;
    if own is null and not exists (
        select
        from listingd.webhook_endpoints as e
        where e.disabled_at is null and e.user_id in ('', new.user_id) and (e.types = '{}' or event = any(e.types))
    ) then
        return null;
    end if;
    perform listingd.queue_webhook_event(
        event, new.user_id, json_build_object('job', listingd.describe_job(new.id)), own
    );
    return null;
end
$$;
comment on function listingd.queue_webhooks() is 'Stores the webhook deliveries of a job''s new state, in its transaction.';
revoke all on function listingd.queue_webhooks() from public;
