-- 0007 money (expand): who has been told of a spent budget, how a picture came to be, and the calls of a minute.
set local lock_timeout = '5s';

alter table listingd.spend add column told_limit_usd numeric(14, 6);
comment on column listingd.spend.told_limit_usd is
    'The limit of which budget.exhausted was told in this period: once, and once more when it was raised and reached again.';

-- A bucket that begins full lets twice the account's limit through in its first minute: count a minute's calls.
alter table listingd.lanes
    drop column tokens,
    drop column refilled_at,
    add column used real[] not null default array_fill(0::real, array[62]),
    add column used_at bigint not null default 0;
comment on column listingd.lanes.used is 'Calls granted in each of the last 62 seconds, at second % 62 + 1; used_at: the last second counted.';

alter table listingd.assets add column derived text not null default '';
comment on column listingd.assets.derived is 'How the picture was made, in words, for the job''s record.';
