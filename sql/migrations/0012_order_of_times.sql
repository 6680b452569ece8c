-- 0012 order_of_times (expand): a job that would expire before it may run can never run, and is refused.
-- Not valid: nobody waits while all jobs are read, and those that are there already expire in their time.
set local lock_timeout = '5s';

alter table listingd.jobs
    add constraint jobs_expires_at_after_run_at_check check (expires_at > run_at) not valid;
