"""Faults between a client and an MCP server, with what is known about the request's effect."""

from __future__ import annotations

from typing import Any

from shared.errors import ToolError


class McpFault(ToolError):
    """A request to an MCP server has no result.

    Attributes:
        taken: whether the server processed the request. False: it did not (it could not be reached, or says so).
            True: it answered. None: unknown, because no readable answer arrived.
        temporary: whether a later attempt may succeed.
        retry_after: seconds that the server asked for; None: it did not.
        written: the end of what a program wrote to standard error: for its operator, not for models and tasks.
    """

    def __init__(
        self,
        message: str,
        /,
        *,
        taken: bool | None,
        temporary: bool = False,
        retry_after: float | None = None,
        written: str = "",
        **detail: Any,
    ) -> None:
        super().__init__(message, **detail)
        self.taken = taken
        self.temporary = temporary
        self.retry_after = retry_after
        self.written = written
        self.retryable = temporary


class RpcError(McpFault):
    """The server answered with a JSON-RPC error.

    Attributes:
        number: its code, such as -32602.
        data: its data, as the server sent it: hostile, and up to the size of a reply.
    """

    def __init__(self, message: str, /, *, number: int, data: Any = None, taken: bool | None = True) -> None:
        super().__init__(message, taken=taken, rpc_code=number)
        self.number = number
        self.data = data


class SessionLost(McpFault):
    """The server no longer knows the session (2025-11-25). It did not process the request."""
