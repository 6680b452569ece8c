"""How many tokens a text may count for, before a provider has counted them. An estimate reserves money: it leans high."""

from __future__ import annotations

_BYTES_PER_TOKEN = 3
"""English has four; letters of other scripts have two or three bytes, and count for a token each at most."""


def most_tokens(text: str) -> int:
    """The most that a text may count for."""
    return len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN + 1
