"""A synchronous MCP client for both eras of the protocol: 2026-07-28 without sessions, 2025-11-25 with them.

The reference client of the `mcp` package needs an event loop. Tools run in Celery's processes and threads, under time
limits that interrupt them, and through the transport that checks addresses, so this client is ours. The messages are
those of `mcp_types`.

    with McpClient(transport, memory=eras.of(version_id)) as client:
        result = client.request("tools/call", {"name": "lookup", "arguments": {"order": "A-17"}}, name="lookup")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from shared.mcp.transport import Message, Transport


class McpClient:
    """Requests to one server, in the era that it speaks.

    Args:
        transport: the way to it; closed with this client.
        era: what this process knows about the server's era and session; shared by its clients.
        capabilities: what the client declares, such as `{"extensions": {"io.modelcontextprotocol/tasks": {}}}`.
    """

    def __init__(self, transport: Transport, era: Any, capabilities: Mapping[str, Any] | None = None) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    @property
    def modern(self) -> bool:
        """Whether the server speaks 2026-07-28; asks it if this is not known yet."""

    def server(self) -> Message:
        """Return what the server says about itself: the result of `server/discover` or `initialize`."""

    def request(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a request and return the `result` of its response, unchanged: `resultType` may be `input_required` or
        `task`.

        Args:
            name: the tool, prompt, resource or task that it names, for the header `Mcp-Name`.
            meta: more fields of `_meta`, such as `traceparent`.
            headers: more headers, such as `Mcp-Param-Region`.

        Raises:
            RpcError: the server refused it.
            McpFault: any other failure.
        """
