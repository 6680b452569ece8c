"""Kind `webhook`: one delivery. Made by the transaction of the event it tells of, never by a caller.

    2xx ──▶ completed     410 ──▶ failed, its endpoint disabled     anything else ──▶ tried again for 75 hours

Attempts follow 5 s, 5 m, 30 m, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h after one another (Standard Webhooks' own
example schedule), plus the queue's jitter, never before the receiver's Retry-After.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from daemon import logs
from daemon.errors import Reject, Retry
from daemon.handlers.context import JobContext
from daemon.payloads import WebhookInput
from daemon.settings import Settings
from daemon.webhook_sending import MAX_BODY_BYTES, Receipt, send
from daemon.webhooks import Webhooks

_M, _H = 60, 3600
SCHEDULE_S = (5, 5 * _M, 30 * _M, 2 * _H, 5 * _H, 10 * _H, 14 * _H, 20 * _H, 24 * _H)

_WORDS = {
    "timed_out": "The receiver did not answer in time.",
    "unreachable": "The receiver could not be reached.",
    "forbidden": "The URL leads to an address that is not public.",
    "malformed": "The URL cannot be used.",
}

log = logs.get_logger()


class WebhookHandler:
    """The handler, with what it needs."""

    def __init__(self, webhooks: Webhooks, settings: Settings) -> None:
        self._webhooks = webhooks
        self._timeout_s = settings.webhooks.timeout_s
        self._allowed = [ipaddress.ip_network(net) for net in settings.fetch.allowed_private_networks]

    async def __call__(self, ctx: JobContext) -> Any:
        """{"status", "duration_s"} of the attempt that was accepted. Errors: Retry, Reject, Unavailable."""
        asked = ctx.input
        assert isinstance(asked, WebhookInput)
        target = await self._webhooks.find_target(ctx.user_id, asked.endpoint_id, asked.url)
        if target is None:
            raise Reject("The endpoint is deleted or disabled.", code="webhook_disabled")
        body = asked.body.encode()
        if len(body) > MAX_BODY_BYTES:
            raise Reject(f"The message is larger than {MAX_BODY_BYTES} bytes.", code="webhook_too_large")
        receipt = await send(
            target.url, message_id=asked.message_id, body=body, keys=target.keys,
            timeout_s=self._timeout_s, allowed=self._allowed,
        )  # fmt: skip
        told = {
            "endpoint_id": str(asked.endpoint_id) if asked.endpoint_id else None, "event_type": asked.type,
            "status": receipt.status, "delivery": str(ctx.job_id),
        }  # fmt: skip
        if receipt.is_accepted:
            log.info("webhook.delivered", duration_s=receipt.duration_s, **told)
            return {"status": receipt.status, "duration_s": receipt.duration_s}
        log.warning("webhook.failed", error=receipt.problem or "refused", **told)
        raise await self._judge(asked, receipt, ctx.attempt)

    async def _judge(self, asked: WebhookInput, receipt: Receipt, attempt: int) -> Reject | Retry:
        """What follows from an attempt that was not accepted."""
        data = {"measured": {"status": receipt.status, "duration_s": receipt.duration_s}}
        if receipt.status == 410:
            if asked.endpoint_id is not None:
                why = "the receiver answered 410 Gone"
                await self._webhooks.disable(asked.endpoint_id, why)
                log.warning("webhook.disabled", endpoint_id=str(asked.endpoint_id), why=why)
            return Reject("The receiver answered 410: it wants no more.", code="webhook_gone", data=data)
        message = _WORDS.get(receipt.problem, f"The receiver answered {receipt.status}.")
        if receipt.problem in {"forbidden", "malformed"}:
            return Reject(
                message, code=f"webhook_{receipt.problem}", data=data,
                hint="Use a public URL, or let the operator allow its network.",
            )  # fmt: skip
        after_s = max(SCHEDULE_S[min(attempt, len(SCHEDULE_S)) - 1], receipt.retry_after_s or 0.0)
        return Retry(message, code=f"webhook_{receipt.problem or 'refused'}", after_s=after_s, data=data)
