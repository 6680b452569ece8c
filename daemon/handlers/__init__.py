"""Which handler does which kind of job."""

from __future__ import annotations

from daemon.handlers import aplus
from daemon.handlers.context import Handler
from daemon.handlers.image import make_image
from daemon.handlers.pack import make_pack
from daemon.handlers.ping import answer_ping

HANDLERS: dict[str, Handler] = {
    "image": make_image,
    "pack": make_pack,
    "aplus": aplus.handle,
    "ping": answer_ping,
}
"""Kind -> handler."""
