-- 0012 began_at (expand): a parent's row says when the first of its items started, in its latest run.
-- Its own started_at says when it was taken up again, after they had ended. A retry sets began_at to its own time: what
-- an item did before it is no part of the run. settle_children writes the item's time once the last one has ended.
set local lock_timeout = '5s';

alter table listingd.job_states add column began_at timestamptz;

update listingd.job_states as s
set began_at = i.started_at
from (
    select k.parent_id, min(ks.started_at) as started_at
    from listingd.jobs as k
    join listingd.job_states as ks on ks.id = k.id
    where k.parent_id is not null
    group by k.parent_id
) as i
where s.id = i.parent_id and s.finished_at is not null;
