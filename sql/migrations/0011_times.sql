-- 0011 times (expand): a job's times lie where Postgres and Python agree.
set local lock_timeout = '5s';

-- Before PostgreSQL 17 nothing can be subtracted from an infinite time, and Python knows no year before 1 or after 9999:
-- one such job, enqueued by SQL, failed every look at the queue. Not valid: nobody waits while all jobs are read.
alter table listingd.jobs
    add constraint jobs_run_at_check
        check (run_at >= '2000-01-01 00:00:00+00' and run_at < '2201-01-01 00:00:00+00') not valid,
    add constraint jobs_expires_at_check
        check (expires_at >= '2000-01-01 00:00:00+00' and expires_at < '2201-01-01 00:00:00+00') not valid;
