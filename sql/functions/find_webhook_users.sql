-- Which of these users have an endpoint that hears of their jobs; '' among them: the service hears of everybody's.
-- Called once a statement that stores jobs (job_states.wants_webhook), never once a row; create_jobs holds the same
-- look-up inline.
create or replace function listingd.find_webhook_users(users text[])
returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct e.user_id
        from listingd.webhook_endpoints as e
        where e.disabled_at is null and (e.user_id = '' or e.user_id = any(users))
    )
$$;
comment on function listingd.find_webhook_users(text[]) is
    'Which of these users have a webhook endpoint that hears of their jobs; an empty name stands for the service''s own.';
revoke all on function listingd.find_webhook_users(text[]) from public;
