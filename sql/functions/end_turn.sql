-- Ends one call in a lane and learns from how it went. ended:
--   ok         one more call in flight is tried; a probe opens a paused lane
--   throttled  half as many calls in flight (once for all calls that began before)
--   failed     nothing learned; a probe closes the lane again for the same time
--   paused     the account or the setup is refused: closed for everybody, 60 s growing to 15 minutes
--   unused     nothing was called: the price is given back
-- not_before_s: the provider's own delay; capped at an hour, so that a wrong one cannot close the lane for days.
-- paused_s: when this call closed the lane, for how long; else null.
create or replace function listingd.end_turn(
    of_lane text, by_worker bigint, holds int, taken timestamptz, ended text, was_probe boolean, cost float8,
    not_before_s float8, with_code text, with_why text
)
returns table (paused_s float8, opened_s float8, allowed real)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    l listingd.lanes;
    t timestamptz;
    next_pauses int;
    pause_s float8;
    open_s float8;
    taken_s bigint := floor(extract(epoch from taken));
begin
    select n.* into l from listingd.lanes as n where n.name = of_lane for update;
    if not found then
        return;
    end if;
    t := clock_timestamp();

    if ended = 'ok' then
        l.warm_at := t;
        l.allowed := least(l.max_in_flight, l.allowed + 1 / greatest(l.allowed, 1));
        if was_probe then
            open_s := extract(epoch from t - l.paused_at);
            l.paused_at := null;
            l.paused_until := null;
            l.pause_code := null;
            l.pause_why := null;
            l.pauses := 0;
        end if;
    elsif ended = 'throttled' and (l.lowered_at is null or taken > l.lowered_at) then
        l.allowed := greatest(1, least(l.allowed, l.max_in_flight) / 2);
        l.lowered_at := t;
    elsif ended = 'unused' then
        if taken_s > l.used_at - 62 then
            l.used[(taken_s % 62)::int + 1] := greatest(0, l.used[(taken_s % 62)::int + 1] - cost);
        end if;
    elsif ended = 'paused' and (was_probe or l.paused_until is null or taken > l.paused_at) then
        next_pauses := l.pauses + 1;
        pause_s := least(900, 60 * 2 ^ least(next_pauses - 1, 10));
        l.pauses := next_pauses;
        l.paused_at := case when l.paused_until is null then t else l.paused_at end;
        l.paused_until := t + make_interval(secs => pause_s);
        l.pause_code := with_code;
        l.pause_why := with_why;
        l.warm_at := null;
    end if;
    if ended in ('throttled', 'failed') and was_probe then
        l.paused_until := t + make_interval(secs => least(900, 60 * 2 ^ least(greatest(l.pauses, 1) - 1, 10)));
    end if;
    if not_before_s > 0 and ended in ('throttled', 'failed', 'ok') then
        l.not_before := greatest(l.not_before, t + make_interval(secs => least(not_before_s, 3600)));
    end if;

    update listingd.lanes as n
    set
        allowed = l.allowed, used = l.used, warm_at = l.warm_at, lowered_at = l.lowered_at,
        not_before = l.not_before, paused_at = l.paused_at, paused_until = l.paused_until, pauses = l.pauses,
        pause_code = l.pause_code, pause_why = l.pause_why,
        probe_worker = case when was_probe then null else l.probe_worker end,
        probe_until = case when was_probe then null else l.probe_until end
    where n.name = of_lane;
    update listingd.lane_turns as i set in_flight = holds where i.lane = of_lane and i.worker = by_worker;
    return query select pause_s, open_s, greatest(1, floor(l.allowed))::real;
end
$$;
comment on function listingd.end_turn(text, bigint, int, timestamptz, text, boolean, float8, float8, text, text) is
    'Ends one call in a lane and learns from how it went.';
revoke all on function listingd.end_turn(text, bigint, int, timestamptz, text, boolean, float8, float8, text, text) from public;
