"""What was made of some bytes a moment ago, so that the pictures of a pack do not each make it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The latest `keep` values by the SHA-256 of what they were made of."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._values: OrderedDict[str, T] = OrderedDict()

    async def find(self, sha256: str, make: Callable[[], Awaitable[T]]) -> T:
        """The kept value, or a new one. Two that ask at the same moment both make it. Errors: those of make."""
        if sha256 not in self._values:
            self._values[sha256] = await make()
        self._values.move_to_end(sha256)
        if len(self._values) > self._keep:
            self._values.popitem(last=False)
        return self._values[sha256]
