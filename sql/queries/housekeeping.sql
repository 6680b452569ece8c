-- name: prune_assets
-- The hashes of files of ended jobs that were made too long ago and that no open job or schedule of their user names;
-- their rows are gone. Ids begin with their time; an input may write one in capitals and without hyphens.
-- $1 age in seconds, $2 limit
delete from listingd.assets as a
where a.id in (
    select x.id
    from listingd.assets as x
    left join listingd.job_states as s on s.id = x.job_id
    where
        x.id < listingd.first_id(now() - make_interval(secs => $1))
        and (s.id is null or s.finished_at is not null)
        and not exists (
            select
            from listingd.jobs as j
            join listingd.job_states as o on o.id = j.id
            where
                j.user_id = x.user_id and j.created_at >= x.created_at
                and o.state in ('pending', 'processing', 'waiting')
                and strpos(translate(lower(j.input::text), '-', ''), translate(x.id::text, '-', '')) > 0
        )
        and not exists (
            select
            from listingd.schedules as c
            where c.user_id = x.user_id and strpos(translate(lower(c.input::text), '-', ''), translate(x.id::text, '-', '')) > 0
        )
    order by x.id
    limit $2
)
returning a.sha256

-- name: prune_uploads
-- The hashes of photos that were sent too long ago and that no open job or schedule of their user names; their rows
-- are gone. $1 age in seconds, $2 limit
delete from listingd.uploads as u
where u.id in (
    select x.id
    from listingd.uploads as x
    where
        x.id < listingd.first_id(now() - make_interval(secs => $1))
        and not exists (
            select
            from listingd.jobs as j
            join listingd.job_states as s on s.id = j.id
            where
                j.user_id = x.user_id and j.created_at >= x.created_at
                and s.state in ('pending', 'processing', 'waiting')
                and strpos(translate(lower(j.input::text), '-', ''), translate(x.id::text, '-', '')) > 0
        )
        and not exists (
            select
            from listingd.schedules as c
            where c.user_id = x.user_id and strpos(translate(lower(c.input::text), '-', ''), translate(x.id::text, '-', '')) > 0
        )
    order by x.id
    limit $2
)
returning u.sha256
