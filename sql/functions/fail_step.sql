-- Ends an open step without a result. failed: it cost so much (nothing, as a rule), the rest of the reservation
-- is given back. unknown: it may have been billed, so the estimate counts as spent. An unknown step may end as
-- failed later, when its cost has become known. False when there was nothing to end.
create or replace function listingd.fail_step(step uuid, to_state text, with_code text, cost_usd numeric default 0)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    before record;
begin
    cost_usd := round(cost_usd, 6);  -- once: the step's cost and what is added to the spend are one figure
    select s.user_id, s.project_id, s.reserved_on, s.estimated_usd, s.state into before
    from listingd.steps as s
    where s.id = step and (s.state = 'open' or s.state = 'unknown' and to_state = 'failed')
    for update;
    if not found then
        return false;
    end if;
    update listingd.steps as s
    set
        state = to_state, code = with_code, ended_at = coalesce(s.ended_at, now()),
        actual_usd = case when to_state = 'failed' and cost_usd > 0 then cost_usd end
    where s.id = step;
    if before.estimated_usd > 0 or cost_usd > 0 then
        perform listingd.move_spend(
            before.user_id, before.project_id, before.reserved_on,
            case when before.state = 'open' then -before.estimated_usd else 0 end,
            case when to_state = 'unknown' then before.estimated_usd else cost_usd end
            - case when before.state = 'unknown' then before.estimated_usd else 0 end
        );
    end if;
    return true;
end
$$;
comment on function listingd.fail_step(uuid, text, text, numeric) is
    'Ends an open step without a result and gives its reservation back; unknown ones count as spent.';
revoke all on function listingd.fail_step(uuid, text, text, numeric) from public;
