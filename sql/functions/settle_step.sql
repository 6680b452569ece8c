-- Records what a call cost and gave: the checkpoint. True while the attempt is still ours. The money was spent
-- in any case, so cost and result are kept for the next attempt even when it is not; nothing of the job changes.
-- An answer that comes after its step was given up as unknown is booked as what it was. If another call for the
-- same identity is open or done by then, only the cost is kept (identity null).
create or replace function listingd.settle_step(
    step uuid, by_fence bigint, by_worker bigint, cost_usd numeric, used jsonb, sha256 text, type text,
    answer jsonb, by_model text, request text
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    is_held boolean;
    before record;
    kept text;
begin
    cost_usd := round(cost_usd, 6);  -- once: the step's cost and what is added to the spend are one figure
    perform 1
    from listingd.job_states as s
    where s.fence = by_fence and s.worker = by_worker and s.state = 'processing'
    for share;
    is_held := found;

    select s.user_id, s.project_id, s.reserved_on, s.estimated_usd, s.state, s.identity into before
    from listingd.steps as s
    where s.id = step and s.state in ('open', 'unknown')
    for update;
    if not found then
        return is_held;
    end if;
    kept := before.identity;
    loop
        begin
            update listingd.steps as s
            set
                state = 'done', identity = kept, actual_usd = cost_usd, units = used, content_sha256 = sha256,
                content_type = type, document = answer, model = by_model, request_id = request, code = null,
                ended_at = now()
            where s.id = step;
            exit;
        exception when unique_violation then
            kept := null;
        end;
    end loop;
    if before.estimated_usd > 0 or cost_usd > 0 then
        perform listingd.move_spend(
            before.user_id, before.project_id, before.reserved_on,
            case when before.state = 'open' then -before.estimated_usd else 0 end,
            case when before.state = 'open' then cost_usd else cost_usd - before.estimated_usd end
        );
    end if;
    return is_held;
end
$$;
comment on function listingd.settle_step(uuid, bigint, bigint, numeric, jsonb, text, text, jsonb, text, text) is
    'Records what a call cost and gave; true while the attempt is still ours.';
revoke all on function listingd.settle_step(uuid, bigint, bigint, numeric, jsonb, text, text, jsonb, text, text) from public;
