-- Reserves places for jobs about to be claimed whose kind has a limit over all daemons (queues.concurrency).
-- Returns the fences that may not be claimed: those that must wait because their kind is full, and those that another
-- live worker is about to claim (is_taken). All others may be, in a statement of its own, by the same worker while it
-- lives. ended: fences whose end is written together with these claims: they hand their places on. Nobody else may
-- claim what got such a place: its old holder's end would not be written yet. A place is free again by itself once its
-- job is no longer running: nothing leaks when a holder dies.
-- Error 0A000 under repeatable read or serializable: its snapshot does not show what others reserved.
create or replace function listingd.reserve_places(
    by_worker bigint, wanted bigint[], ended bigint[] default '{}'
)
returns table (fence bigint, is_taken boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
as $$
#variable_conflict use_column
declare
    of_kind record;
    most int;
    room int;
    held bigint[];
    taken bigint[];
    handed bigint[];
    granted bigint[];
begin
    for of_kind in
        select q.kind, array_agg(w.fence order by w.n) as fences
        from unnest(wanted) with ordinality as w (fence, n)
        join listingd.job_states as s on s.fence = w.fence and s.state = 'pending'
        join listingd.queues as q on q.kind = s.kind and q.concurrency is not null
        group by q.kind
        order by q.kind
    loop
        if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
            raise exception 'Jobs of kind % cannot be claimed under %: it has a limit.',
                of_kind.kind, current_setting('transaction_isolation')
                using errcode = 'feature_not_supported',  -- no serialization failure: trying again would not help
                hint = 'Claim in a transaction under read committed: an older snapshot does not show what others claimed.';
        end if;
        perform pg_advisory_xact_lock(hashtextextended('listingd.kind.' || of_kind.kind, 0));
        -- Read after the lock was got: every statement here sees what was committed before it began.
        select q.concurrency into most from listingd.queues as q where q.kind = of_kind.kind;
        delete from listingd.kind_places as p
        where
            p.kind = of_kind.kind
            and not exists (
                select
                from listingd.job_states as s
                where
                    s.fence = p.fence
                    and (
                        s.state = 'processing'
                        or s.state = 'pending' and exists (
                            -- Its claim may be on its way: no statement outlives the lease by more than 15 s.
                            select
                            from listingd.workers as w
                            where
                                w.id = p.worker
                                and (w.stopped_at is null or w.stopped_at > now() - interval '15 seconds')
                                and w.lease_until > now() - interval '15 seconds'
                        )
                    )
            );
        select coalesce(array_agg(distinct p.fence), '{}') into held
        from listingd.kind_places as p
        where p.kind = of_kind.kind;
        handed := array(select e.fence from unnest(ended) as e (fence) where e.fence = any(held));
        room := coalesce(most, 2147483647) - cardinality(held);
        taken := array(
            select p.fence
            from listingd.kind_places as p
            where p.fence = any(of_kind.fences) and p.worker <> by_worker and p.kind = of_kind.kind
        );
        granted := array(select f.fence from unnest(of_kind.fences) as f (fence) where f.fence <> all(held));
        granted := granted[1:greatest(room + cardinality(handed), 0)];
        delete from listingd.kind_places as p where p.fence = any(handed[1:cardinality(granted) - room]);
        granted := granted || array(  -- a place that this worker got before
            select f.fence from unnest(of_kind.fences) as f (fence) where f.fence = any(held) and f.fence <> all(taken)
        );
        insert into listingd.kind_places as p (fence, kind, worker)
        select g.fence, of_kind.kind, by_worker
        from unnest(granted) as g (fence)
        on conflict do nothing;
        return query
        select f.fence, f.fence = any(taken)
        from unnest(of_kind.fences) as f (fence)
        where f.fence <> all(granted);
    end loop;
exception
    when lock_not_available then  -- a stranger's transaction holds the kind: nothing of it is claimed now
        return query
        select s.fence, false
        from listingd.job_states as s
        join listingd.queues as q on q.kind = s.kind and q.concurrency is not null
        where s.fence = any(wanted);
end
$$;
comment on function listingd.reserve_places(bigint, bigint[], bigint[]) is
    'Reserves places in kinds with a limit over all daemons; returns the fences that may not be claimed now.';
revoke all on function listingd.reserve_places(bigint, bigint[], bigint[]) from public;
