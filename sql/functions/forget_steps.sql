-- Erases the results of these jobs' ended steps; what they cost stays. Rows: hashes of files that may now be
-- without an owner. For the erasing and pruning of jobs.
create or replace function listingd.forget_steps(jobs uuid[])
returns setof text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    with free as (
        delete from listingd.steps as s
        where s.job_id = any(jobs) and s.state in ('done', 'failed') and s.estimated_usd = 0 and coalesce(s.actual_usd, 0) = 0
        returning s.content_sha256
    ),
    paid as (
        update listingd.steps as s
        set identity = null, content_sha256 = null, content_type = null, document = null, request_id = null
        from (select p.id, p.content_sha256 from listingd.steps as p where p.job_id = any(jobs) for update) as old
        where s.id = old.id and s.state <> 'open' and (s.estimated_usd > 0 or s.actual_usd > 0)
        returning old.content_sha256
    )
    select f.content_sha256 from free as f where f.content_sha256 is not null
    union
    select p.content_sha256 from paid as p where p.content_sha256 is not null
$$;
comment on function listingd.forget_steps(uuid[]) is
    'Erases the results of these jobs'' ended steps, keeps what they cost; returns hashes of files set free.';
revoke all on function listingd.forget_steps(uuid[]) from public;
