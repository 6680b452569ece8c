-- 0011 bounds (expand): what SQL enqueues lies where Postgres and Python agree, and names where its webhook goes.
-- Not valid: nobody waits while all jobs are read.
set local lock_timeout = '5s';

-- Before PostgreSQL 17 nothing can be subtracted from an infinite time, and Python knows no year before 1 or after 9999:
-- one such job failed every look at the queue.
alter table listingd.jobs
    add constraint jobs_run_at_check
        check (run_at >= '2000-01-01 00:00:00+00' and run_at < '2201-01-01 00:00:00+00') not valid,
    add constraint jobs_expires_at_check
        check (expires_at >= '2000-01-01 00:00:00+00' and expires_at < '2201-01-01 00:00:00+00') not valid,
    add constraint jobs_webhook_check
        check (
            coalesce(jsonb_typeof(webhook), 'null') = 'null'
            or coalesce(jsonb_typeof(webhook -> 'url') = 'string', false)
        ) not valid;
