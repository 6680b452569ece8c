-- Adds to what is reserved and spent by everybody, a user and a project, in the day and the month of on_day.
-- The rows stay locked until the transaction ends, the total's first, always in one order: who ends calls of several
-- projects in one transaction holds the total meanwhile, and nobody who waits for it holds anything.
create or replace function listingd.move_spend(
    for_user text, for_project uuid, on_day date, reserve_usd numeric, spend_usd numeric
)
returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into listingd.spend as s (starts, scope, subject, period, reserved_usd, spent_usd)
    select r.starts, r.scope, r.subject, r.period, reserve_usd, spend_usd
    from listingd.spend_keys(for_user, for_project, on_day) as r
    order by r.starts, r.scope <> 'total', r.scope, r.subject, r.period
    on conflict (starts, scope, subject, period) do update
    set
        reserved_usd = s.reserved_usd + excluded.reserved_usd,
        spent_usd = s.spent_usd + excluded.spent_usd
$$;
comment on function listingd.move_spend(text, uuid, date, numeric, numeric) is
    'Adds to what is reserved and spent in the budgets that one call touches.';
revoke all on function listingd.move_spend(text, uuid, date, numeric, numeric) from public;
