"""Names of the protocol, in both eras that this client speaks.

The types of `mcp_types` are not used here: their import takes half a second and some megabytes in each worker process,
and they refuse a whole result for one block of an unknown kind. Tests check our messages against them.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from minions import __version__

MODERN = "2026-07-28"
"""Without sessions: each request has the version, the client and its capabilities in `_meta`."""
LEGACY = "2025-11-25"
"""With `initialize`, and with sessions if the server wants them."""
LEGACY_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", LEGACY)
CLIENT = {"name": "minions", "version": __version__}

META = "_meta"
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
IDEMPOTENCY_KEY = "minions/idempotency-key"
"""The protocol has no such field yet. Servers ignore fields that they do not know."""
TRACE_KEY = "traceparent"
TASKS = "io.modelcontextprotocol/tasks"
"""The extension with tasks (SEP-2663)."""

VERSION_HEADER = "MCP-Protocol-Version"
METHOD_HEADER = "Mcp-Method"
NAME_HEADER = "Mcp-Name"

DISCOVER = "server/discover"

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
ONLY_MODERN = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})
"""Errors that only servers of the modern era send."""

PLAIN = re.compile(r"([\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?)?")
ENCODED = re.compile(r"=\?base64\?.*\?=")


def header_value(text: str) -> str:
    """Return a text as the value of a header: as it is, or in base64 if a header cannot hold it."""
    if PLAIN.fullmatch(text) and not ENCODED.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def request(id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
