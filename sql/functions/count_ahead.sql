-- How many pending jobs stand before this fence, of everybody: a place in the queue tells nothing else of them, so it
-- is counted with the owner's rights. Null beyond the nearest 1000 rows.
create or replace function listingd.count_ahead(of_fence bigint)
returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select case when count(*) < 1000 then count(*) filter (where n.state = 'pending' and n.kind <> 'webhook') end
    from (
        select s.state, s.kind
        from listingd.job_states as s
        where s.fence < of_fence and s.fence >= (select m.fence from listingd.queue_mark as m)
        order by s.fence desc
        limit 1000
    ) as n
$$;
comment on function listingd.count_ahead(bigint) is
    'How many pending jobs stand before this fence; null beyond the nearest 1000 rows.';
revoke all on function listingd.count_ahead(bigint) from public;
