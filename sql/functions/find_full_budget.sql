-- The first budget that has no room for so many dollars more; no row when all have.
-- defaults: limits in USD or null: total day, total month, user day, user month, project day, project month.
-- A row in listingd.budgets beats the default. ends_in_s: seconds until the period is over.
create or replace function listingd.find_full_budget(
    for_user text, for_project uuid, on_day date, more_usd numeric, defaults numeric[]
)
returns table (scope text, subject text, period text, limit_usd numeric, used_usd numeric, ends_in_s float8)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select *
    from (
        select
            k.scope, k.subject, k.period,
            case
                when b.scope is not null then b.limit_usd
                else defaults[
                    case k.scope when 'total' then 1 when 'user' then 3 else 5 end + (k.period = 'month')::int
                ]
            end as limit_usd,
            coalesce(s.reserved_usd + s.spent_usd, 0) as used_usd,
            extract(epoch from (k.ends::timestamp at time zone 'utc') - now())::float8 as ends_in_s
        from listingd.spend_keys(for_user, for_project, on_day) as k
        left join listingd.budgets as b on b.scope = k.scope and b.subject = k.subject and b.period = k.period
        left join listingd.spend as s
            on s.starts = k.starts and s.scope = k.scope and s.subject = k.subject and s.period = k.period
    ) as x
    where x.used_usd + more_usd > x.limit_usd
    order by x.ends_in_s desc
    limit 1
$$;
comment on function listingd.find_full_budget(text, uuid, date, numeric, numeric[]) is
    'The budget that has no room for so many dollars more; of several the one that lasts longest.';
revoke all on function listingd.find_full_budget(text, uuid, date, numeric, numeric[]) from public;
