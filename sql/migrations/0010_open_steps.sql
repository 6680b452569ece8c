-- 0010 open_steps (expand): calls in flight are few, and those that nobody will ever end are looked for.
set local lock_timeout = '5s';

create index steps_open on listingd.steps (created_at) where state = 'open';
