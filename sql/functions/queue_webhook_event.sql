-- Stores one delivery (a job of kind webhook) for each endpoint that wants the event, and one for the job's own
-- webhook {url, owner?} when given; returns how many. for_user: whose event it is; an endpoint of the service
-- (user_id empty) hears of everybody. The body is fixed here, so that every attempt sends the same bytes.
create or replace function listingd.queue_webhook_event(event text, for_user text, data json, own jsonb default null)
returns int
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    body text := json_build_object('type', event, 'timestamp', listingd.rfc3339(now()), 'data', data)::text;
    stored int;
begin
    with receivers as (
        select e.user_id, jsonb_build_object('endpoint_id', e.id) as target
        from listingd.webhook_endpoints as e
        where e.disabled_at is null and e.user_id in ('', for_user) and (e.types = '{}' or event = any(e.types))
        union all
        select coalesce(own ->> 'owner', ''), jsonb_build_object('url', own ->> 'url')
        where own ->> 'url' is not null
    ),
    drawn as (
        select listingd.new_id() as id, r.user_id, r.target from receivers as r
    ),
    asked as (
        insert into listingd.jobs (id, user_id, kind, max_attempts, input)
        select
            d.id, d.user_id, 'webhook', 10,
            d.target || jsonb_build_object('message_id', 'msg_' || d.id, 'type', event, 'body', body)
        from drawn as d
    )
    insert into listingd.job_states (id, max_attempts, kind, user_id)
    select d.id, 10, 'webhook', d.user_id
    from drawn as d;
    get diagnostics stored = row_count;
    if stored > 0 then
        perform pg_notify('listingd_jobs', '');
    end if;
    return stored;
end
$$;
comment on function listingd.queue_webhook_event(text, text, json, jsonb) is
    'Stores the webhook deliveries of an event in the caller''s transaction; returns how many.';
revoke all on function listingd.queue_webhook_event(text, text, json, jsonb) from public;
