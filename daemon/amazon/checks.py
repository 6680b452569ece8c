"""What a check of a picture, a text or a document says: one measured rule with its outcome. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

CheckOutcome = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One rule, measured.

    rule: stable id ("fill", "policy.price"); measured, limit: what was found and what is allowed, as JSON
    values; detail: one sentence for a seller; pointer: JSON pointer (RFC 6901) into the checked document,
    empty where there is none.
    """

    rule: str
    outcome: CheckOutcome
    measured: Any = None
    limit: Any = None
    detail: str = ""
    pointer: str = ""

    def as_json(self) -> dict[str, Any]:
        """{rule, outcome, measured, limit, detail} and pointer where there is one."""
        shown: dict[str, Any] = {
            "rule": self.rule,
            "outcome": self.outcome,
            "measured": self.measured,
            "limit": self.limit,
            "detail": self.detail,
        }
        if self.pointer:
            shown["pointer"] = self.pointer
        return shown


def has_failed(checks: Iterable[Check]) -> bool:
    """True when any of the checks is a fail."""
    return any(check.outcome == "fail" for check in checks)
