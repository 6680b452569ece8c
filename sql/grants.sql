-- Runs last, each time the functions or the tables have changed: what is new is walled in too.
select listingd.grant_roles();
