"""Memory that the children of the pool share with the worker's main process."""

from __future__ import annotations

import gc

from sqlalchemy.orm import configure_mappers

from shared.contracts.documents import parse_definition
from shared.contracts.json_schema import validate
from shared.errors import InvalidInput
from shared.settings import get_settings

REHEARSED = (
    {"kind": "agent", "name": "rehearsal", "type": "agent", "system_prompt": "", "config": {"capabilities": ["x"]}},
    {"kind": "tool", "name": "rehearsal", "type": "builtin", "builtin": "echo"},
    {"kind": "function", "name": "rehearsal", "code": "def rehearsal(value: int):\n    return value\n"},
)


def share_memory() -> None:
    """Prepare for the first fork: later collections, in this process or a child, leave the present objects alone.

    The garbage collector writes to every object that it examines. Each such page would be copied, once for each child.
    """
    if not gc.get_freeze_count():
        rehearse()
        gc.collect()
        gc.freeze()


def rehearse() -> None:
    """Create what every child would otherwise create for itself with its first tasks."""
    configure_mappers()
    for _ in range(10):
        for each in REHEARSED:
            parse_definition(each)
        validate({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}, {"a": 1}, what="x", error=InvalidInput)
    if get_settings().anthropic_api_key:
        from workers.llm import anthropic
        from workers.llm.usage import spent
        anthropic._client()
        anthropic._limits()
        spent({"usage":{"input_tokens":3,"output_tokens":4}},"claude-sonnet-5-5")
