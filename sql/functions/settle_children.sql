-- Children have ended: counts them off at their waiting parents and releases a parent whose last child ended, which
-- says then when the first of them started.
-- $1 holds a parent's id once for each child that ended. Rows: the parents released, ready to run again.
-- Locks parents in the order of their ids; whoever locks children too does that before (no deadlock).
create or replace function listingd.settle_children(parents uuid[])
returns table (id uuid, fence bigint, kind text, user_id text, priority smallint)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    -- A statement of its own: what follows must see the parents as they are once they are locked. A parent that
    -- was locked by its own fan_out is still "processing" in the snapshot of whoever waits for it.
    select 1
    from listingd.job_states as s
    where s.id = any(parents)
    order by s.id
    for update;

    with ended as (
        select p.id, count(*) as n
        from unnest(parents) as p (id)
        where p.id is not null
        group by p.id
    ),
    counted as (
        update listingd.job_states as s
        set
            open_children = greatest(s.open_children - e.n, 0),
            version = s.version + 1,
            state = case when s.open_children <= e.n then 'pending' else s.state end,
            fence = case when s.open_children <= e.n then nextval('listingd.fences') else s.fence end,
            began_at = case
                when s.open_children <= e.n then coalesce(
                    (
                        select min(ks.started_at)
                        from listingd.jobs as k
                        join listingd.job_states as ks on ks.id = k.id
                        where k.parent_id = s.id and (ks.started_at >= s.began_at or s.began_at is null)
                    ),
                    s.began_at
                )
                else s.began_at
            end
        from ended as e
        where s.id = e.id and s.state = 'waiting'
        returning s.id, s.fence, s.kind, s.user_id, s.priority, s.state
    )
    select c.id, c.fence, c.kind, c.user_id, c.priority
    from counted as c
    where c.state = 'pending'
$$;
comment on function listingd.settle_children(uuid[]) is
    'Counts ended children off at their waiting parents; returns the parents released.';
revoke all on function listingd.settle_children(uuid[]) from public;
