-- Erases jobs that ended long ago, with their attempts, assets, documents and results of steps, in one small batch;
-- what their steps cost stays in the ledger.
-- Children go with their parent, whatever their own state and age; one that outlives it (retried alone) goes by itself.
-- Walks the ids upwards (they begin with their time of creation) as far as jobs can be old enough; last_id is where the
-- next batch begins, null at the end. sha256s: files that may now be without an owner.
create or replace function listingd.prune_jobs(states text[], age_s float8, max_jobs int, after_id uuid default null)
returns table (jobs int, last_id uuid, sha256s text[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off  -- a thousand ids tempt the planner to read all of assets and steps for each batch
as $$
declare
    looked uuid[];
    doomed uuid[];
begin
    select array_agg(l.id order by l.id)
    into looked
    from (
        select s.id
        from listingd.job_states as s
        where
            s.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
            and s.id < listingd.first_id(now() - make_interval(secs => age_s))
        order by s.id
        limit max_jobs
    ) as l;

    -- What somebody holds (retries) at this moment waits for the next round.
    with heads as (
        select s.id
        from listingd.job_states as s
        left join listingd.job_states as p on p.id = s.parent_id
        where
            s.id = any(looked)
            and s.state = any(states)
            and s.finished_at < now() - make_interval(secs => age_s)
            and p.id is null
        for update of s skip locked
    )
    select array_agg(h.id) into doomed from heads as h;
    with children as (
        select s.id
        from listingd.job_states as s
        where
            s.id = any(array(select j.id from listingd.jobs as j where j.parent_id = any(doomed)))
            and s.finished_at is not null
        for update skip locked
    )
    select doomed || array_agg(c.id) into doomed from children as c;

    delete from listingd.attempts as a where a.job_id = any(doomed);
    delete from listingd.aplus_contents as c where c.job_id = any(doomed);
    with gone as (
        delete from listingd.assets as a where a.job_id = any(doomed) returning a.sha256
    )
    select array_agg(g.sha256) into sha256s
    from (
        select f.sha256 from listingd.forget_steps(doomed) as f (sha256)
        union
        select g.sha256 from gone as g
    ) as g;
    with gone as (
        delete from listingd.job_states as s where s.id = any(doomed) returning s.user_id, s.id
    )
    delete from listingd.jobs as j using gone as g where j.user_id = g.user_id and j.id = g.id;
    jobs := coalesce(cardinality(doomed), 0);
    last_id := looked[cardinality(looked)];
    return next;
end
$$;
comment on function listingd.prune_jobs(text[], float8, int, uuid) is
    'Erases one small batch of jobs that ended long ago, with what belongs to them.';
revoke all on function listingd.prune_jobs(text[], float8, int, uuid) from public;
