-- name: find_photo
-- sha256 of a user's upload or asset; no row when there is none or it is somebody else's.
-- $1 user, $2 upload id or null, $3 asset id or null
select u.sha256 from listingd.uploads as u where u.id = $2 and u.user_id = $1
union all
select a.sha256 from listingd.assets as a where a.id = $3 and a.user_id = $1

-- name: find_owned
-- Of these hashes, the ones that an upload, an asset or a step names: no orphans. $1 hashes
select a.sha256
from unnest($1::text[]) as a (sha256)
where
    exists (select from listingd.assets as x where x.sha256 = a.sha256)
    or exists (select from listingd.steps as s where s.content_sha256 = a.sha256)
    or exists (select from listingd.uploads as u where u.sha256 = a.sha256)
