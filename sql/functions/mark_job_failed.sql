-- Ends an attempt that failed: cancelled when that was asked for, pending again after delay_s (a year at most) while
-- attempts are left and retry is true, else failed.
-- Returns the state after it, or null when the fence is no longer held.
create or replace function listingd.mark_job_failed(
    own_fence bigint, code text, message text, retry boolean default true, delay_s float8 default null
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    moved record;
    problem jsonb := jsonb_build_object('code', code, 'message', message);
begin
    update listingd.job_states as s
    set
        state = case
            when s.cancel_requested then 'cancelled'
            when retry and s.attempt < s.max_attempts then 'pending'
            else 'failed'
        end,
        version = s.version + 1,
        worker = null,
        error = problem,
        unique_key = case
            when retry and s.attempt < s.max_attempts and not s.cancel_requested then s.unique_key
        end,
        finished_at = case
            when s.cancel_requested or not retry or s.attempt >= s.max_attempts then now()
        end,
        run_at = case
            when retry and s.attempt < s.max_attempts and not s.cancel_requested
                -- full jitter: uniform in [0, min(600, 2 * 2^(attempt - 1))] seconds
                then now() + make_interval(secs => least(
                    greatest(coalesce(delay_s, random() * least(600, 2 * 2 ^ (s.attempt - 1))), 0), 31536000
                ))
            else s.run_at
        end,
        fence = case
            when retry and s.attempt < s.max_attempts and not s.cancel_requested then nextval('listingd.fences')
            else s.fence
        end
    where s.fence = own_fence and s.state = 'processing'
    returning s.id, s.parent_id, s.state, s.attempt, s.started_at into moved;
    if not found then
        return null;
    end if;
    update listingd.workers as w  -- a claim's own lease (mark_job_processing) ends with it
    set stopped_at = now(), lease_until = now()
    where w.instance = 'sql:job ' || own_fence and w.stopped_at is null;
    insert into listingd.attempts (job_id, attempt, fence, started_at, code, error)
    values (moved.id, moved.attempt, own_fence, moved.started_at, code, problem);
    if moved.state <> 'pending' and moved.parent_id is not null then
        perform listingd.settle_children(array[moved.parent_id]);
    end if;
    perform pg_notify('listingd_jobs', '');
    return moved.state;
end
$$;
comment on function listingd.mark_job_failed(bigint, text, text, boolean, float8) is
    'Ends an attempt that failed, by its fence; the job is pending again or failed. Null: no longer held.';
revoke all on function listingd.mark_job_failed(bigint, text, text, boolean, float8) from public;
