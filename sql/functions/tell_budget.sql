-- Tells webhooks that a budget is used up (budget.exhausted), once for each limit of a period, in the caller's
-- transaction. full_budget: a row of find_full_budget as JSON. A user hears of their own budgets, the owner of a
-- project of its; the total is the service's own affair. True when this call was the first to tell.
create or replace function listingd.tell_budget(full_budget jsonb, on_day date)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    scope_ text := full_budget ->> 'scope';
    subject_ text := full_budget ->> 'subject';
    limit_ numeric := (full_budget ->> 'limit_usd')::numeric;
    starts_ date := case full_budget ->> 'period' when 'day' then on_day else date_trunc('month', on_day::timestamp)::date end;
    owner_ text;
begin
    update listingd.spend as s
    set told_limit_usd = limit_
    where
        s.starts = starts_ and s.scope = scope_ and s.subject = subject_ and s.period = full_budget ->> 'period'
        and s.told_limit_usd is distinct from limit_;
    if not found then
        return false;
    end if;
    owner_ := case scope_
        when 'user' then subject_
        when 'project' then (select p.user_id from listingd.projects as p where p.id::text = subject_)
    end;
    perform listingd.queue_webhook_event(
        'budget.exhausted',
        coalesce(owner_, ''),
        json_build_object('budget', json_build_object(
            'scope', scope_,
            'subject', subject_,
            'period', full_budget ->> 'period',
            'limit_usd', trim_scale(limit_)::text,
            'used_usd', trim_scale((full_budget ->> 'used_usd')::numeric)::text,
            'ends_at', listingd.rfc3339(now() + make_interval(secs => (full_budget ->> 'ends_in_s')::float8))
        ))
    );
    return true;
end
$$;
comment on function listingd.tell_budget(jsonb, date) is
    'Tells webhooks once that a budget is used up; true when this call was the first to tell.';
revoke all on function listingd.tell_budget(jsonb, date) from public;
