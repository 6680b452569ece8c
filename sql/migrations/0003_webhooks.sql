-- 0003 webhooks (expand): endpoints with their secrets, and what signs read tokens.
--
-- There is no outbox table and no delivery table: a delivery is a job of kind `webhook`, stored by the
-- transaction that changes the state it tells of, and its attempts are the attempts of that job.
set local lock_timeout = '5s';

create table listingd.signing_secrets (
    id int primary key,
    secret bytea not null,
    created_at timestamptz not null default now(),
    constraint signing_secrets_secret_check check (octet_length(secret) >= 32)
);
comment on table listingd.signing_secrets is
    'HMAC secrets of minted read tokens: the highest id signs, all verify. Delete a row to end its tokens.';
