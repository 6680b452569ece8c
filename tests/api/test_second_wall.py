"""P13 should every statement of the reads be written wrong: row level security keeps users apart alone."""

from __future__ import annotations

import re
from uuid import UUID

from daemon.db import load_queries
from tests.api.application import Api, picture


def without_users() -> dict[str, str]:
    """The statements, with every comparison of user_id to a parameter made true."""
    return {
        name: re.sub(r"\b\w+\.user_id = (\$\d)(?!\d)", r"(\1::text is null or true)", text)
        for name, text in load_queries().items()
    }


async def test_reads_without_their_where_show_own_rows_alone(api: Api) -> None:
    project = "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d22"
    mine = await api.create(user="ada")
    theirs = await api.create(user="bob", project_id=project)
    file_id = await api.add_asset(UUID(theirs["id"]), picture(), user_id="bob")
    db = api.deps.db
    db.sql = {**db.sql, **{n: t for n, t in without_users().items() if t != load_queries()[n]}}

    # The first wall is down …
    arguments = ["ada", 21, None, None, None, None, None, None]
    assert 2 == len(await db.fetch("list_user_jobs", *arguments))

    # … and the second one stands.
    status, page, _ = await api.call("GET", "/v1/jobs", user="ada")
    assert (200, [mine["id"]]) == (status, [job["id"] for job in page["data"]])
    for path in (
        f"/v1/jobs/{theirs['id']}",
        f"/v1/jobs/{theirs['id']}/archive",
        f"/v1/assets/{file_id}",
        f"/v1/projects/{project}",
    ):
        assert 404 == (await api.call("GET", path, user="ada"))[0], path
        assert 200 == (await api.call("GET", path, user="bob"))[0], path
    assert db.confined
