-- Asks for one call in a provider's lane, for all daemons together. Granted, or how long to wait and why:
--   the account is paused (one probing call at a time is let through when the pause is over), the provider
--   named a time (Retry-After), too many calls in flight, the calls per minute are used up, or the lane is cold.
-- A cold lane (no success for ten minutes) starts its calls 100 ms apart and has five in flight at most until the
-- first one succeeds: an exhausted account then costs a few refused calls, not one for each slot.
-- In no minute more calls are granted than burst, wherever the minute begins: `used` counts the last 62 seconds,
-- one cell a second. The two seconds above a minute are room for calls that reach the provider unevenly.
-- holds: calls this process has in flight. wait_s null: until one of the calls in flight ends.
create or replace function listingd.take_turn(
    of_lane text, by_provider text, by_worker bigint, holds int, most_in_flight int, per_minute float8, burst float8,
    cost float8
)
returns table (
    granted boolean, wait_s float8, code text, why text, is_probe boolean, allowed real, taken_at timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    l listingd.lanes;
    t timestamptz;
    others int;
    price float8 := least(cost, burst);
    now_s bigint;
    spent float8;
    free_s bigint;
    is_cold boolean;
    probing boolean := false;
    room real;
    closed_s float8;
    closed_code text;
    closed_why text;
begin
    insert into listingd.lanes as n (name, provider, max_in_flight, allowed)
    values (of_lane, by_provider, most_in_flight, most_in_flight)
    on conflict (name) do nothing;
    select n.* into l from listingd.lanes as n where n.name = of_lane for update;
    t := clock_timestamp();
    now_s := floor(extract(epoch from t));
    if l.used_at > now_s + 62 then  -- the clock was put back: until it is there again no second would be counted off
        l.used := array_fill(0::real, array[62]);
        l.used_at := now_s;
        l.started_at := null;
    end if;
    is_cold := l.warm_at is null or l.warm_at < t - interval '10 minutes';
    room := greatest(1, floor(least(l.allowed, most_in_flight)));
    if is_cold then
        room := least(room, 5);
    end if;

    if l.paused_until > t then
        closed_s := extract(epoch from l.paused_until - t);
        closed_code := l.pause_code;
        closed_why := l.pause_why;
    elsif l.paused_until is not null and l.probe_until > t and exists (
        select from listingd.workers as w
        where
            w.id = l.probe_worker and w.stopped_at is null and w.lease_until > t
            -- Who holds none and asks has lost the probe with its connection: nobody else would end it.
            and not (w.id = by_worker and holds = 0)
    ) then
        closed_s := 5;
        closed_code := l.pause_code;
        closed_why := l.pause_why;
    elsif l.not_before > t then
        closed_s := extract(epoch from l.not_before - t);
        closed_code := 'lane_throttled';
        closed_why := 'The provider asked us to wait.';
    end if;
    if closed_code is not null then
        return query select false, closed_s, closed_code, closed_why, false, room, t;
        return;
    end if;
    probing := l.paused_until is not null;

    select coalesce(sum(i.in_flight), 0) into others
    from listingd.lane_turns as i
    join listingd.workers as w on w.id = i.worker
    where i.lane = of_lane and i.worker <> by_worker and w.stopped_at is null and w.lease_until > t;
    if others + holds >= room then
        return query select false, null::float8, 'lane_full', 'Enough calls are in flight.', false, room, t;
        return;
    end if;

    for i in 1 .. least(now_s - l.used_at, 62)::int loop  -- the seconds that have begun since
        l.used[((l.used_at + i) % 62)::int + 1] := 0;
    end loop;
    spent := (select sum(u) from unnest(l.used) as u);
    if spent + price > burst then
        for i in 1 .. 62 loop  -- oldest first: when has enough of it gone by?
            spent := spent - l.used[((now_s + i) % 62)::int + 1];
            free_s := now_s + i;
            exit when spent + price <= burst;
        end loop;
        return query select
            false, (free_s - extract(epoch from t))::float8, 'lane_rate', 'The calls of this minute are used up.', false,
            room, t;
        return;
    end if;
    if per_minute < 1 and l.started_at > t - make_interval(secs => 60 / per_minute) then
        return query select
            false, extract(epoch from l.started_at - t)::float8 + 60 / per_minute, 'lane_rate',
            'The calls of this while are used up.', false, room, t;
        return;
    end if;
    l.used[(now_s % 62)::int + 1] := l.used[(now_s % 62)::int + 1] + price;
    if is_cold and l.started_at > t - interval '100 milliseconds' then
        return query select
            false, extract(epoch from l.started_at + interval '100 milliseconds' - t)::float8, 'lane_cold',
            'The first calls begin one after another.', false, room, t;
        return;
    end if;

    update listingd.lanes as n
    set
        provider = by_provider,
        max_in_flight = most_in_flight,
        used = l.used,
        used_at = greatest(now_s, l.used_at),
        started_at = t,
        probe_worker = case when probing then by_worker end,
        probe_until = case when probing then t + interval '10 minutes' end
    where n.name = of_lane;
    insert into listingd.lane_turns as i (lane, worker, in_flight)
    values (of_lane, by_worker, holds + 1)
    on conflict (lane, worker) do update set in_flight = excluded.in_flight;
    return query select true, 0::float8, null::text, null::text, probing, room, t;
end
$$;
comment on function listingd.take_turn(text, text, bigint, int, int, float8, float8, float8) is
    'Asks for one call in a provider''s lane; granted, or how long to wait and why.';
revoke all on function listingd.take_turn(text, text, bigint, int, int, float8, float8, float8) from public;
