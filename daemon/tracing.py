"""Spans for OpenTelemetry when the extra listingd[otel] is installed; otherwise nothing, at no cost.

Exporters and sampling are the operator's: run under `opentelemetry-instrument` or configure an SDK.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def span(name: str, attributes: Mapping[str, Any] | None = None) -> AbstractContextManager[Any]:
    """A span around the block, which records its exceptions; `attributes` like {"kind": "pack"}."""
    tracer = _tracer()
    if tracer is None:
        return nullcontext()
    context: AbstractContextManager[Any] = tracer.start_as_current_span(name, attributes=attributes)
    return context


@functools.cache
def _tracer() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("listingd")
