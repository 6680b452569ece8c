-- Fails: a job that would expire before it may run can never run. Asked only then: a check of the table would be read
-- from its text by each insert. Volatile, or the planner would ask it.
create or replace function listingd.refuse_times(run_at timestamptz, expires_at timestamptz)
returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using
        errcode = 'check_violation',
        message = format('expires_at (%s) must be later than run_at (%s), else the job can never run', expires_at, run_at);
end
$$;
comment on function listingd.refuse_times(timestamptz, timestamptz) is
    'Fails: a job that would expire before it may run can never run.';
revoke all on function listingd.refuse_times(timestamptz, timestamptz) from public;
