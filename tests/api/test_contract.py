"""CONTRACT.md, the table of what proves the contract, is itself true."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.http import ROUTES
from tests.api.application import Api

TESTS = Path(__file__).parent.parent
TABLE = (Path(__file__).parent / "CONTRACT.md").read_text(encoding="utf-8")


def test_every_test_of_the_table_exists() -> None:
    written = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert set() == set(re.findall(r"\btest_\w+(?!\w|\.py)", TABLE)) - written - {"test_contract"}


async def test_every_route_has_its_row(api: Api) -> None:
    routes = {f"`{route.method} {route.path}`" for route in api.app[ROUTES]}

    assert set() == {route for route in routes if route not in TABLE and route[:-1] + "`:" not in TABLE}
