"""Agents with a scripted model: a local server that speaks the Messages API, and tools of every effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minions.testing import MessagesApi
from tests.conftest import Define
from tests.integration.conftest import ACT
from tests.support.sdk_types import faults_of

ANYTHING = {"type": "object"}
TOOLS = [
    {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
    {**ACT, "input_schema": ANYTHING},
    {**ACT, "name": "careful", "effect": "unsafe", "input_schema": ANYTHING, "approval": True},
    {**ACT, "name": "checked", "input_schema": ANYTHING, "approval": True},
    {**ACT, "name": "send", "effect": "unsafe", "input_schema": ANYTHING},
    {"kind": "agent", "name": "Helper", "type": "function", "tool": "act", "config": {"capabilities": ["other"]}},
    {"kind": "tool", "name": "help", "type": "agent", "agent": "Helper", "input_schema": ANYTHING},
]

DefineAgent = Callable[..., None]


def plain(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a request without marks for the prompt cache; text as text."""
    return [{"role": message["role"], "content": _plain(message["content"])} for message in request["messages"]]


def _plain(content: Any) -> Any:
    if isinstance(content, str):
        return content
    blocks = [{name: value for name, value in block.items() if name != "cache_control"} for block in content]
    if [block["type"] for block in blocks] == ["text"]:
        return blocks[0]["text"]
    return blocks


@pytest.fixture
def messages_api(messages_api: MessagesApi) -> Iterator[MessagesApi]:
    """The scripted model, whose requests are checked against the types of the SDK."""
    yield messages_api
    # (A test may have cleared the older requests.)
    for headers, request in zip(reversed(messages_api.headers), reversed(messages_api.requests), strict=False):
        if "anthropic-version" in headers:
            assert faults_of(request) == []


@pytest.fixture
def define_agent(define: Define) -> DefineAgent:
    """Defines `Agent` with the tools echo (pure), act (idempotent), careful (unsafe, to be approved) and help (a
    sub-agent): `agent(config={…})`. There are also checked (idempotent, to be approved) and send (unsafe).
    """

    def make(config: dict[str, Any] | None = None, **fields: Any) -> None:
        values = {"capabilities": ["work"], "retry_backoff": 0.01, "retry_backoff_max": 0.02, **(config or {})}
        names = ["echo", "act", "careful", "help"]
        given = {"name": "Agent", "model": "claude-sonnet-5-5", "tools": names, **fields}
        define(*TOOLS, {"kind": "agent", "config": values, **given})

    return make
