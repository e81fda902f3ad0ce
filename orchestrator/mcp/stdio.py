"""The MCP server over standard input and output, for clients that start it: the API at an address is behind it."""

from __future__ import annotations

import asyncio
import signal

from mcp.server.stdio import stdio_server

from minions.aio.transport import AsyncTransport
from orchestrator.mcp.api import SECONDS, Api
from orchestrator.mcp.server import build

RETRIES = 12
"""About half a minute: an orchestrator that restarts is back by then."""


def serve(url: str, key: str, *, namespace: str | None, actor: str | None) -> None:
    """Serve the client that has started this process, until it closes the input.

    Raises:
        NotConfigured: the address or the key is not valid.
        BrokenPipeError: the client has closed the output.
    """
    # A thread waits for input, which nothing interrupts; the process has nothing to tidy up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        asyncio.run(_serve(url, key, namespace, actor))
    except ExceptionGroup as errors:
        if errors.subgroup(BrokenPipeError) is None:
            raise
        raise BrokenPipeError from None


async def _serve(url: str, key: str, namespace: str | None, actor: str | None) -> None:
    api = Api(AsyncTransport(url, key, timeout=SECONDS, retries=RETRIES, actor=actor), namespace)
    server = build(lambda context: api)
    async with api, stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())
