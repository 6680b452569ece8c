"""`listingd verify` tells what works and what does not, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

from running import Command, environment, finish, listingd, service, start

__all__ = ["listingd", "service"]

NAMES = ["settings", "state dir", "database", "schema", "listen", "storage", "live", "ready", "job"]


async def test_a_running_service_passes_every_check(listingd: Command):
    ended = await listingd("verify", "--json")

    report = json.loads(ended.out)
    assert (0, True) == (ended.code, report["ok"]), report
    assert NAMES == [check["name"] for check in report["checks"]]
    assert {"ok"} == {check["outcome"] for check in report["checks"]}


async def test_each_check_is_a_line_with_its_time(listingd: Command):
    ended = await listingd("verify")

    lines = ended.out.splitlines()
    assert len(NAMES) + 2 == len(lines)
    assert all(" ms  " in line for line in lines[: len(NAMES)])
    assert "All is well." == lines[-1]


async def test_a_wrong_key_fails_the_job_alone(listingd: Command):
    ended = await listingd("verify", "--json", LISTINGD_KEY="wrong" * 8)

    outcomes = {check["name"]: check["outcome"] for check in json.loads(ended.out)["checks"]}
    assert 1 == ended.code
    assert ["job"] == [name for name, outcome in outcomes.items() if outcome != "ok"]


async def test_nothing_installed_is_told_check_by_check(tmp_path: Path):
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "none"), LISTINGD_URL="http://127.0.0.1:1")

    ended = await finish(await start("verify", "--json", env=env, cwd=tmp_path))

    checks = {check["name"]: check for check in json.loads(ended.out)["checks"]}
    assert 1 == ended.code
    assert ["state dir", "live"] == [name for name in NAMES if checks[name]["outcome"] == "fail"]
    assert all(checks[name]["hint"] for name in ("state dir", "live"))
    assert "Traceback" not in ended.err
    assert not (tmp_path / "none").exists()


async def test_a_database_that_is_down_is_named(tmp_path: Path):
    (tmp_path / "state").mkdir()
    env = environment(
        LISTINGD_STATE_DIR=str(tmp_path / "state"),
        LISTINGD_DATABASE_URL="postgresql://u:hidden@127.0.0.1:1/x",
    )

    ended = await finish(await start("verify", env=env, cwd=tmp_path))

    assert 1 == ended.code
    assert "The database does not answer" in ended.out
    assert "correct LISTINGD_DATABASE_URL" in ended.out
    assert "hidden" not in ended.out + ended.err


async def test_the_stores_own_words_are_shown(listingd: Command):
    more = {
        "LISTINGD_STORAGE_URL": "s3://pictures",
        "LISTINGD_STORAGE__ENDPOINT": "http://127.0.0.1:9",
        "LISTINGD_STORAGE__ACCESS_KEY": "a",
        "LISTINGD_STORAGE__SECRET_KEY": "hidden",
    }

    ended = await listingd("verify", **more)

    assert 1 == ended.code
    assert "http://127.0.0.1:9/pictures" in ended.out
    assert "Debug source" not in ended.out
    assert "hidden" not in ended.out + ended.err


async def test_settings_that_are_wrong_skip_the_rest(tmp_path: Path):
    ended = await finish(await start("verify", env=environment(LISTINGD_HTTP__PRT="1"), cwd=tmp_path))

    assert 1 == ended.code
    assert "did you mean LISTINGD_HTTP__PORT?" in ended.out
    assert len(NAMES) - 1 == ended.out.count("needs")
