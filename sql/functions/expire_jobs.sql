-- Fails pending jobs whose expires_at has passed; returns their ids.
create or replace function listingd.expire_jobs(max_jobs int default 500)
returns setof uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    expired record;
begin
    for expired in
        update listingd.job_states as s
        set
            state = 'failed', version = s.version + 1, finished_at = now(), unique_key = null,
            run_at = null, expires_at = null,
            error = jsonb_build_object(
                'code', 'expired', 'message', 'The job was not started before its expires_at.',
                'hint', 'Create it again with a later expires_at, or look at why it waited (explain).'
            )
        where s.id in (
            select e.id
            from listingd.job_states as e
            where e.expires_at <= now() and e.state = 'pending'
            order by e.expires_at
            limit max_jobs
            for update skip locked
        )
        returning s.id, s.parent_id
    loop
        if expired.parent_id is not null then
            perform listingd.settle_children(array[expired.parent_id]);
        end if;
        return next expired.id;
    end loop;
end
$$;
comment on function listingd.expire_jobs(int) is 'Fails pending jobs whose expires_at has passed; returns their ids.';
revoke all on function listingd.expire_jobs(int) from public;
