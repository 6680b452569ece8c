-- Ends an open step without a result. failed: it cost so much (nothing, as a rule), the rest of the reservation
-- is given back. unknown: it may have been billed, so the estimate counts as spent. False when it was not open.
create or replace function listingd.fail_step(step uuid, to_state text, with_code text, cost_usd numeric default 0)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    ended record;
begin
    update listingd.steps as s
    set
        state = to_state, code = with_code, ended_at = now(),
        actual_usd = case when to_state = 'failed' and cost_usd > 0 then cost_usd end
    where s.id = step and s.state = 'open'
    returning s.user_id, s.project_id, s.reserved_on, s.estimated_usd into ended;
    if not found then
        return false;
    end if;
    if ended.estimated_usd > 0 or cost_usd > 0 then
        perform listingd.move_spend(
            ended.user_id, ended.project_id, ended.reserved_on, -ended.estimated_usd,
            case when to_state = 'unknown' then ended.estimated_usd else cost_usd end
        );
    end if;
    return true;
end
$$;
comment on function listingd.fail_step(uuid, text, text, numeric) is
    'Ends an open step without a result and gives its reservation back; unknown ones count as spent.';
revoke all on function listingd.fail_step(uuid, text, text, numeric) from public;
