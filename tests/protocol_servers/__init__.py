"""Servers that speak the providers' wire protocols, for tests and benchmarks: real sockets, real SDKs.

    async with OpenAIServer() as server:
        server.latency_s = 8                       # every picture takes so long
        server.faults.append(Fault(status=429))    # the next call is refused
        ...
        assert server.journal.billed_usd == ledger.total()

Each keeps a journal of every call, to be compared with the ledger, and obeys scripted faults.
"""

from tests.protocol_servers.cutout import RembgServer, RemoveBgServer, WithoutBgServer
from tests.protocol_servers.gemini import GeminiServer
from tests.protocol_servers.openai_images import OpenAIServer
from tests.protocol_servers.wire import Call, Fault, Journal, ProtocolServer

__all__ = [
    "Call",
    "Fault",
    "GeminiServer",
    "Journal",
    "OpenAIServer",
    "ProtocolServer",
    "RembgServer",
    "RemoveBgServer",
    "WithoutBgServer",
]
