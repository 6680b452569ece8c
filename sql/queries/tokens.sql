-- name: create_service_key
-- id, name, scopes, created_at, last_used_at, expires_at, revoked_at of the new key.
-- $1 id, $2 SHA-256 of the secret, $3 name, $4 scopes, $5 expires_at or null
insert into listingd.service_keys (id, secret_sha256, name, scopes, expires_at)
values ($1, $2, $3, $4, $5)
returning id, name, scopes, created_at, last_used_at, expires_at, revoked_at

-- name: list_service_keys
-- The next keys, newest first. $1 and $2: created_at and id of the last one seen, or nulls. $3 limit
select k.id, k.name, k.scopes, k.created_at, k.last_used_at, k.expires_at, k.revoked_at
from listingd.service_keys as k
where $1::timestamptz is null or k.created_at < $1 or (k.created_at = $1 and k.id > $2)
order by k.created_at desc, k.id
limit $3

-- name: find_service_key
-- The key with its hash, and whether it may be used now; notes the use, at most once a minute. $1 id
with used as (
    update listingd.service_keys as k
    set last_used_at = now()
    where
        k.id = $1 and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
        and (k.last_used_at is null or k.last_used_at < now() - interval '1 minute')
)
select
    k.id, k.name, k.scopes, k.created_at, k.last_used_at, k.expires_at, k.revoked_at, k.secret_sha256,
    k.revoked_at is null and (k.expires_at is null or k.expires_at > now()) as is_live
from listingd.service_keys as k
where k.id = $1

-- name: revoke_service_key
-- The key, revoked; a key that was revoked before keeps its time. No row for an unknown id. $1 id
update listingd.service_keys as k
set revoked_at = coalesce(k.revoked_at, now())
where k.id = $1
returning k.id, k.name, k.scopes, k.created_at, k.last_used_at, k.expires_at, k.revoked_at

-- name: rotate_service_key
-- The new key, with the old one's name and scopes; the old one ends after the overlap. No row when the old one is
-- unknown, revoked or expired. $1 old id, $2 new id, $3 SHA-256 of the new secret, $4 overlap in seconds
with old as (
    update listingd.service_keys as k
    set expires_at = least(k.expires_at, now() + make_interval(secs => $4))
    where k.id = $1 and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
    returning k.name, k.scopes
)
insert into listingd.service_keys (id, secret_sha256, name, scopes)
select $2, $3, o.name, o.scopes
from old as o
returning id, name, scopes, created_at, last_used_at, expires_at, revoked_at

-- name: read_signing_secrets
-- id, secret of what signs read tokens, newest first; the first call of a new database makes one.
with made as (
    insert into listingd.signing_secrets (id, secret)
    select 1, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    where not exists (select from listingd.signing_secrets)
    on conflict do nothing
    returning id, secret
)
select s.id, s.secret from listingd.signing_secrets as s
union all
select m.id, m.secret from made as m
order by id desc

-- name: find_token_subject
-- user_id of what a read token would show; no row when it does not exist or belongs to another user.
-- $1 job id or null, $2 project id or null, $3 user_id or null for any
select s.user_id
from listingd.job_states as s
where s.id = $1 and s.kind <> 'webhook' and ($3::text is null or s.user_id = $3)
union all
select p.user_id from listingd.projects as p where p.id = $2 and ($3::text is null or p.user_id = $3)
