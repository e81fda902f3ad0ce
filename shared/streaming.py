"""Streamed text sent over Redis with an authentication tag.

Without the tag, any process that can write to Redis could make followers read text that no model has produced. The key
is a random secret of the execution (`executions.stream_key`), which PostgreSQL creates at the claim. The worker
receives it with the task, and the orchestrator reads it; no API, export or message contains it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.contracts.strict_json import canonical

STREAMED = frozenset({"step.text", "step.restarted"})
"""Types of events that are streamed and not stored."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A message about a step, as a worker sends it and an orchestrator receives it.

    Attributes:
        number: counts the messages about a step under one claim, from 1: a recorded message cannot be replayed.
        type: `step.text` or `step.restarted`.
        data: JSON with `step` and `claim`, numbers.
    """

    number: int
    type: str
    data: dict[str, Any]
    tag: str = ""

    @property
    def step(self) -> int:
        """The number of the step that the message is about."""
        return int(self.data["step"])

    @property
    def claim(self) -> int:
        """The claim under which the step runs."""
        return int(self.data["claim"])

    def seal(self, task: UUID, key: bytes) -> str:
        """Return the message as JSON, with its tag. Releases up to 0.2 read `type` and `data`."""
        message = {"type": self.type, "data": self.data, "number": self.number, "tag": self._tag(task, key)}
        return json.dumps(message)

    def is_genuine(self, task: UUID, key: bytes) -> bool:
        """Return whether the tag was made with this key, for this task."""
        with suppress(ValueError, RecursionError):  # not JSON that a worker could have sent
            return hmac.compare_digest(self.tag.encode("utf-8", "replace"), self._tag(task, key).encode())
        return False

    def _tag(self, task: UUID, key: bytes) -> str:
        said = canonical([str(task), self.number, self.type, self.data])
        return hmac.new(key, said.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def received(message: bytes) -> Streamed | None:
    """Return the unchecked content of a message; None for a bare notification, and for anything else in Redis."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        parsed = json.loads(message, parse_constant=_refuse)
        said = Streamed(parsed["number"], parsed["type"], parsed["data"], parsed["tag"])
        numbers = (said.number, said.data["step"], said.data["claim"])
        if said.type in STREAMED and isinstance(said.tag, str) and all(type(number) is int for number in numbers):
            return said
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
