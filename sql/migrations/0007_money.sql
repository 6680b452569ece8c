-- 0007 money (expand): who has been told of a spent budget, and how a picture came to be.
set local lock_timeout = '5s';

alter table listingd.spend add column told_limit_usd numeric(14, 6);
comment on column listingd.spend.told_limit_usd is
    'The limit of which budget.exhausted was told in this period: once, and once more when it was raised and reached again.';

alter table listingd.assets add column derived text not null default '';
comment on column listingd.assets.derived is 'How the picture was made, in words, for the job''s record.';
