-- name: prune_assets
-- The hashes of files of ended jobs that were made too long ago and that no open job or schedule of their user names;
-- their rows are gone. Ids begin with their time. $1 age in seconds, $2 limit
delete from listingd.assets as a
where a.id in (
    select x.id
    from listingd.assets as x
    left join listingd.job_states as s on s.id = x.job_id
    where
        x.id < listingd.first_id(now() - make_interval(secs => $1))
        and (s.id is null or s.finished_at is not null)
        and not exists (select from listingd.find_named_ids() as n where n.user_id = x.user_id and n.id = x.id)
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
        and not exists (select from listingd.find_named_ids() as n where n.user_id = x.user_id and n.id = x.id)
    order by x.id
    limit $2
)
returning u.sha256
