"""The interface of all transports: JSON-RPC messages to an MCP server, and those that come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Message = dict[str, Any]
"""A JSON-RPC message: strict JSON, otherwise as the peer sent it."""

SESSION = "Mcp-Session-Id"


class Exchange(Protocol):
    """One message that was sent, and what comes back for it.

    Attributes:
        session: the session that the server assigned with its answer (2025-11-25); None: none.
    """

    session: str | None

    def messages(self) -> Iterator[Message]:
        """Yield the server's messages: notifications and requests, then the response.

        It ends without a response if the stream does.

        Raises:
            McpFault: a message cannot be read, is too large, or the time is up.
        """


class Transport(Protocol):
    """A way to an MCP server, for one client and a limited time."""

    def send(self, message: Message, headers: Mapping[str, str]) -> AbstractContextManager[Exchange]:
        """Send a message. Leaving the context ends the exchange, which cancels a request that has no response yet.

        Args:
            message: a request, a notification, or a response to a request of the server.
            headers: the protocol's headers. A transport without headers ignores them.

        Raises:
            McpFault: it was refused, or could not be sent. An HTTP status without a JSON-RPC error is one too.
        """

    def allow(self, seconds: float) -> None:
        """Allow these seconds from now, if less time is left."""

    def end_session(self, headers: Mapping[str, str]) -> None:
        """End a session that is no longer needed. It raises nothing: the server ends its sessions after a while.

        Args:
            headers: those of the session's requests.
        """

    def restart(self) -> bool:
        """Start a server that has ended again. Return whether there was one that this transport can start."""

    def close(self) -> None:
        """End the connection."""
