"""The shared table of error classes as scripted faults: one case for each status and code of each row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.protocol_servers.wire import Fault

TABLE = Path(__file__).parents[3] / "shared" / "data" / "error_classes.json"
GOOGLE = "type.googleapis.com/google.rpc."


@dataclass(frozen=True)
class Case:
    provider: str
    fault: Fault
    fate: str

    def __str__(self) -> str:
        words = (self.provider, self.fault.status, self.fault.code, self.fault.type, self.fate)
        return "-".join(str(word) for word in words if word)


def read_table() -> dict[str, Any]:
    if not TABLE.is_file():
        pytest.skip("../shared/data is not on this machine", allow_module_level=True)
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def http_cases() -> list[Case]:
    """One case for each status and code of each row that names an HTTP status."""
    table = read_table()
    cases = []
    for provider in ("openai", "removebg", "gemini"):
        for row in table[provider]:
            for status in _statuses(row.get("http")):
                for code in _codes(row.get("code")):
                    cases.append(Case(provider, _fault(provider, row, status, code), row["class"]))
    return cases


def _statuses(http: Any) -> list[int]:
    return [500, 502, 503, 520] if http == "5xx" else [] if http is None else [http]


def _codes(code: Any) -> list[str | None]:
    codes = code if isinstance(code, list) else [code]
    return ["something_new" if c == "*" else c for c in codes]


def _fault(provider: str, row: dict[str, Any], status: int, code: str | None) -> Fault:
    if provider != "gemini":
        return Fault(status=status, code=code, type=row.get("type"))
    details = []
    if "reason" in row:
        details.append({"@type": f"{GOOGLE}ErrorInfo", "reason": row["reason"]})
    if "quotaId~" in row:
        violations = [{"quotaId": f"GenerateRequests{row['quotaId~']}PerProjectPerModel"}]
        details.append({"@type": f"{GOOGLE}QuotaFailure", "violations": violations})
    return Fault(status=status, type=row.get("status"), details=details or None)
