"""What each provider's error means for the job: the table of error classes as data, and its reading.

    retry      counts an attempt, backs off, never before the server's delay
    ambiguous  may have been billed: at most one more try
    permanent  the job fails now
    budget     no attempt counted, the provider is paused for everybody
    config     as budget, but a person must change a key, a model or a URL

Rows are tried from the top, the first that fits decides. A provider's own words (code, type, reason) are
compared, never its prose: that changes, and may quote a key or a user's prompt, so it is not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.errors import Fate, ProviderError
from daemon.providers.rates import rate_data, retry_after_s


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. status: one number or a range, None = any; codes, types, quota: empty = any.

    `ours` is the code of the ProviderError, a key of MESSAGES.
    """

    fate: Fate
    ours: str
    status: range | None = None
    codes: frozenset[str] = field(default_factory=frozenset)
    types: frozenset[str] = field(default_factory=frozenset)
    quota: str = ""

    def fits(self, fault: Fault) -> bool:
        """A fault without status (an error event in a stream) is known by its code or type alone."""
        if self.status is not None and fault.status is not None and fault.status not in self.status:
            return False
        if self.codes and fault.code not in self.codes:
            return False
        if self.types and fault.type not in self.types:
            return False
        if self.quota and self.quota not in fault.quota:
            return False
        return fault.status is not None or bool(self.codes or self.types)


@dataclass(frozen=True, slots=True)
class Fault:
    """A provider's refusal in its own words. quota: the ids of the quotas that were hit, joined."""

    status: int | None
    code: str = ""
    type: str = ""
    quota: str = ""


MESSAGES: Mapping[str, tuple[str, str]] = {
    "moderation_blocked": (
        "The picture service's safety check refused this picture.",
        "Change the wording or the photo: people, brands and medical claims are the usual causes.",
    ),
    "text_blocked": (
        "The text service's safety check refused this product.",
        "Change the wording of title, bullets or style.",
    ),
    "provider_rejected": ("The provider refused the request.", "Look at the provider's code in the details."),
    "photo_rejected": ("This photo cannot be used.", "Try a sharper photo of one product."),
    "subject_not_found": (
        "The cut-out service found no product in the photo.",
        "Send a photo in which the product stands out from its background.",
    ),
    "cutout_unreliable": (
        "The cut-out that the service made cannot be a product.",
        "Send a photo in which one product stands out from its background.",
    ),
    "provider_budget_spent": (
        "The provider's account has no money or quota left.",
        "Add credit or raise the limit in the provider's console; jobs go on by themselves.",
    ),
    "provider_key_refused": ("The provider refused our key.", "Set a valid API key."),
    "provider_model_unknown": (
        "The provider does not know the model or the address.",
        "Check the model and the base URL in the settings; models are retired.",
    ),
    "provider_misconfigured": (
        "The provider refuses this account or setup.",
        "Check the key's rights, the region and billing.",
    ),
    "provider_gone": ("The provider's service was shut down.", "Set another cut-out service."),
    "provider_name_unknown": (
        "The provider's host name does not resolve.",
        "Check the base URL in the settings.",
    ),
    "provider_unopened": (
        "No call of the provider can be begun on the daemon's machine.",
        "Look at the proxy in its environment: http:// and https:// are spoken.",
    ),
    "provider_moved": ("The provider redirects to another address.", "Set the new base URL."),
    "provider_throttled": ("The provider asks us to slow down.", ""),
    "provider_failed": ("The provider failed.", ""),
    "provider_unreachable": ("The provider could not be reached.", ""),
    "provider_timed_out": ("The provider did not answer in time.", ""),
    "provider_hung_up": ("The connection broke while the provider was answering.", ""),
    "no_thread": (
        "The daemon's machine has no thread left for the call.",
        "Raise the limit of tasks (TasksMax in systemd, pids in a container).",
    ),
    "answer_unreadable": ("The provider's answer cannot be read.", ""),
    "answer_unusable": ("The provider's picture cannot be used.", ""),
    "answer_too_large": ("The provider's answer is larger than we take.", ""),
    "answer_stopped": ("The text service stopped without a finished answer.", ""),
}
"""Code of ours -> message a seller understands, hint for who can do something."""


def _one(*statuses: int) -> range:
    return range(statuses[0], statuses[-1] + 1)


_SERVER = range(500, 600)
_REDIRECT = range(300, 400)
_BUDGET_CODES = frozenset({
    "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded", "insufficient_quota", "billing_hard_limit_reached",
})  # fmt: skip

OPENAI: tuple[Row, ...] = (
    # Money first: `billing_hard_limit_reached` comes as 400 and as 429.
    Row(Fate.BUDGET, "provider_budget_spent", codes=_BUDGET_CODES),
    Row(Fate.BUDGET, "provider_budget_spent", types=frozenset({"insufficient_quota"})),
    Row(Fate.BUDGET, "provider_budget_spent", _one(402)),
    Row(Fate.PERMANENT, "moderation_blocked",
        codes=frozenset({"moderation_blocked", "content_policy_violation"})),
    Row(Fate.RETRY, "provider_throttled", codes=frozenset({"rate_limit_exceeded", "slow_down"})),
    Row(Fate.CONFIG, "provider_moved", _REDIRECT),
    Row(Fate.PERMANENT, "provider_rejected", _one(400)),
    Row(Fate.CONFIG, "provider_key_refused", _one(401)),
    Row(Fate.CONFIG, "provider_misconfigured", _one(403)),
    Row(Fate.CONFIG, "provider_model_unknown", _one(404, 405)),
    Row(Fate.RETRY, "provider_failed", _one(408, 409)),
    Row(Fate.CONFIG, "provider_model_unknown", _one(410)),
    Row(Fate.PERMANENT, "provider_rejected", _one(413)),
    Row(Fate.PERMANENT, "provider_rejected", _one(422)),
    Row(Fate.RETRY, "provider_throttled", _one(429)),
    Row(Fate.RETRY, "provider_failed", _SERVER),
    # Error events in a stream carry no status; these types are how the 4xx above name themselves.
    Row(Fate.PERMANENT, "provider_rejected",
        types=frozenset({"image_generation_user_error", "invalid_request_error"})),
)  # fmt: skip

_REMOVEBG_PHOTO = frozenset({
    "file_too_large", "resolution_too_high", "invalid_file_type", "failed_to_read_image",
    "invalid_dimensions",
})  # fmt: skip

REMOVEBG: tuple[Row, ...] = (
    Row(Fate.PERMANENT, "subject_not_found", _one(400), codes=frozenset({"unknown_foreground"})),
    Row(Fate.PERMANENT, "photo_rejected", _one(400), codes=_REMOVEBG_PHOTO),
    Row(Fate.RETRY, "provider_failed", _one(400), codes=frozenset({"failed_image_download"})),
    Row(Fate.PERMANENT, "provider_rejected", _one(400)),
    Row(Fate.CONFIG, "provider_key_refused", _one(401)),
    Row(Fate.BUDGET, "provider_budget_spent", _one(402)),
    Row(Fate.CONFIG, "provider_key_refused", _one(403)),
    Row(Fate.CONFIG, "provider_moved", _REDIRECT),
    Row(Fate.CONFIG, "provider_model_unknown", _one(404, 405)),
    Row(Fate.RETRY, "provider_failed", _one(408, 409)),
    Row(Fate.CONFIG, "provider_gone", _one(410)),
    Row(Fate.PERMANENT, "photo_rejected", _one(413)),
    Row(Fate.PERMANENT, "photo_rejected", _one(415)),
    Row(Fate.PERMANENT, "provider_rejected", _one(422)),
    Row(Fate.RETRY, "provider_throttled", _one(429)),
    Row(Fate.RETRY, "provider_failed", _SERVER),
)
"""Also read for rembg and withoutBG, which speak plain HTTP statuses."""

GEMINI: tuple[Row, ...] = (
    Row(Fate.CONFIG, "provider_key_refused", _one(400), codes=frozenset({"API_KEY_INVALID"})),
    Row(Fate.CONFIG, "provider_misconfigured", _one(400), types=frozenset({"FAILED_PRECONDITION"})),
    Row(Fate.PERMANENT, "provider_rejected", _one(400)),
    Row(Fate.CONFIG, "provider_key_refused", _one(401)),
    Row(Fate.BUDGET, "provider_budget_spent", _one(402)),
    Row(Fate.CONFIG, "provider_misconfigured", _one(403)),
    Row(Fate.CONFIG, "provider_moved", _REDIRECT),
    Row(Fate.CONFIG, "provider_model_unknown", _one(404, 405)),
    Row(Fate.RETRY, "provider_failed", _one(408, 409)),
    Row(Fate.PERMANENT, "provider_rejected", _one(413)),
    Row(Fate.BUDGET, "provider_budget_spent", _one(429), quota="PerDay"),
    Row(Fate.RETRY, "provider_throttled", _one(429)),
    Row(Fate.AMBIGUOUS, "provider_timed_out", _one(504)),
    Row(Fate.RETRY, "provider_failed", _SERVER),
)

FINISHED = "STOP"
CUT_SHORT = "MAX_TOKENS"
BLOCKED_FINISHES = frozenset({
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY",
})  # fmt: skip


def classify(table: tuple[Row, ...], fault: Fault) -> tuple[Fate, str]:
    """(fate, our code) of a refusal. What no row knows: 4xx is permanent, all else is worth a retry."""
    for row in table:
        if row.fits(fault):
            return row.fate, row.ours
    if fault.status is not None and 400 <= fault.status < 500:
        return Fate.PERMANENT, "provider_rejected"
    return Fate.RETRY, "provider_failed"


def classify_finish(finish: str) -> Fate | None:
    """What a text answer's finish reason means; None when the answer is there to be read.

    MAX_TOKENS is handed out, not raised: the answer is paid for, and the caller's second round (with a
    larger limit) starts from its checkpoint.
    """
    if finish in (FINISHED, CUT_SHORT):
        return None
    return Fate.PERMANENT if finish in BLOCKED_FINISHES else Fate.RETRY


def problem(
    provider: str,
    fate: Fate,
    ours: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    request_id: str | None = None,
    retry_after: float | None = None,
    data: Mapping[str, Any] | None = None,
) -> ProviderError:
    """The error for one outcome, with message and hint from MESSAGES and what the headers say.

    headers: case-insensitive; retry_after: seconds, where the body says it and not a header.
    """
    message, hint = MESSAGES[ours]
    delay_s = retry_after
    if headers is not None and delay_s is None and fate is not Fate.PERMANENT:
        delay_s = retry_after_s(headers, is_throttled=status == 429)
    return ProviderError(
        message,
        provider=provider,
        fate=fate,
        code=ours,
        hint=hint,
        status=status,
        request_id=request_id,
        retry_after_s=delay_s,
        data={**rate_data(headers or {}), **{k: v for k, v in (data or {}).items() if v not in (None, "")}},
    )


class NameFailures:
    """Tells a resolver's hiccup from a host that is gone: config only after `limit` failures in a row.

    remove.bg's self-serve host ends on 2026-12-01; every resolver fails now and then.
    """

    def __init__(self, limit: int = 3) -> None:
        self._limit = limit
        self._in_a_row = 0

    def clear(self) -> None:
        self._in_a_row = 0

    def count(self) -> tuple[Fate, str]:
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            return Fate.CONFIG, "provider_name_unknown"
        return Fate.RETRY, "provider_unreachable"
