-- 0006 walls (expand): enqueue_job takes a webhook of the job's own.
set local lock_timeout = '5s';

-- A further parameter makes another function: with both, every call would be ambiguous.
drop function if exists listingd.enqueue_job(
    text, jsonb, text, uuid, int, timestamptz, timestamptz, int, jsonb, text[], text
);
