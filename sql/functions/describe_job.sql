-- A job as webhooks carry it: without input, and small. Result, error and metadata stay out when they are large
-- (too_large names them); whoever needs them reads links.self. version and started_at as there (read_jobs).
create or replace function listingd.describe_job(job uuid)
returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select json_build_object(
        'id', j.id,
        'kind', j.kind,
        'state', s.state,
        'user_id', nullif(j.user_id, ''),
        'project_id', j.project_id,
        'parent_id', j.parent_id,
        'slot', j.slot,
        'attempt', s.attempt,
        'max_attempts', j.max_attempts,
        'created_at', listingd.rfc3339(j.created_at),
        'started_at', listingd.rfc3339(least(s.started_at, f.started_at)),
        'finished_at', listingd.rfc3339(s.finished_at),
        'result', case when m.result then s.result end,
        'error', case
            when m.error then s.error
            when s.error is not null
                then jsonb_build_object('code', s.error -> 'code', 'message', left(s.error ->> 'message', 500))
        end,
        'metadata', case when m.metadata then j.metadata end,
        'tags', case when m.tags then j.tags end,
        'too_large', array_remove(array[
            case when not m.result then 'result' end, case when not m.error then 'error' end,
            case when not m.metadata then 'metadata' end, case when not m.tags then 'tags' end
        ], null),
        'actual_usd', (
            select coalesce(sum(p.actual_usd), 0)::text
            from listingd.steps as p
            where p.job_id = any(f.ids)
        ),
        'assets', (
            select coalesce(json_agg(
                json_build_object(
                    'id', a.id, 'slot', a.slot, 'role', a.role, 'content_type', a.content_type, 'bytes', a.size_bytes,
                    'width_px', a.width_px, 'height_px', a.height_px, 'sha256', a.sha256, 'url', '/v1/assets/' || a.id
                )
                order by a.id
            ), '[]')
            from (
                select x.*
                from listingd.assets as x
                where x.job_id = any(f.ids) and x.role <> 'partial'
                order by x.id
                limit 16
            ) as a
        ),
        'version', s.version + coalesce(f.changes, 0),
        'links', json_build_object('self', '/v1/jobs/' || j.id)
    )
    from listingd.jobs as j
    join listingd.job_states as s on s.user_id = j.user_id and s.id = j.id
    cross join lateral (
        select
            coalesce(octet_length(s.result::text), 0) <= 3000 as result,
            coalesce(octet_length(s.error::text), 0) <= 3000 as error,
            octet_length(j.metadata::text) <= 3000 as metadata,
            octet_length(array_to_string(j.tags, ',')) <= 1000 as tags
    ) as m
    cross join lateral (
        select
            array_agg(k.id) || j.id as ids,
            sum(ks.version - 1) as changes,
            min(ks.started_at) filter (where ks.started_at >= s.began_at or s.began_at is null) as started_at
        from listingd.jobs as k
        join listingd.job_states as ks on ks.id = k.id
        where k.parent_id = j.id
    ) as f
    where j.id = job
$$;
comment on function listingd.describe_job(uuid) is 'A job as webhooks carry it: without input, under 20 kB.';
revoke all on function listingd.describe_job(uuid) from public;
