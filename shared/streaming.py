"""Streamed text on its way over Redis, with an authentication tag.

A client that can write to Redis could otherwise make followers read what no model has said. The key is a random secret
of the execution (`executions.stream_key`), which PostgreSQL makes at the claim. The worker gets it with the task, the
orchestrator reads it; no API, export or message has it.
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
"""The types of events that are streamed and not stored."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A message about a step, as a worker sends it and an orchestrator receives it.

    Attributes:
        number: counts the messages about a step under one claim, from 1: a recorded message cannot be shown twice.
        type: `step.text` or `step.restarted`.
        data: JSON with `step` and `claim`, numbers.
    """

    number: int
    type: str
    data: dict[str, Any]
    tag: str = ""

    @property
    def step(self) -> int:
        """The step that it is about."""
        return int(self.data["step"])

    @property
    def claim(self) -> int:
        """The claim under which the step is made."""
        return int(self.data["claim"])

    def sealed(self, task: UUID, key: bytes) -> str:
        """Return the message as JSON, with its tag. Releases up to 0.2 read `type` and `data`."""
        message = {"type": self.type, "data": self.data, "number": self.number, "tag": self._tag(task, key)}
        return json.dumps(message)

    def is_genuine(self, task: UUID, key: bytes) -> bool:
        """Return whether the tag was made with this key, for this task."""
        with suppress(ValueError, RecursionError):  # no JSON text that a worker could have sent
            return hmac.compare_digest(self.tag.encode("utf-8", "replace"), self._tag(task, key).encode())
        return False

    def _tag(self, task: UUID, key: bytes) -> str:
        said = canonical([str(task), self.number, self.type, self.data])
        return hmac.new(key, said.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def received(message: bytes) -> Streamed | None:
    """Return what a message says, not yet checked; None for a bare hint, and for anything else that stands in Redis."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        parsed = json.loads(message, parse_constant=_refuse)
        said = Streamed(parsed["number"], parsed["type"], parsed["data"], parsed["tag"])
        numbers = (said.number, said.data["step"], said.data["claim"])
        if said.type in STREAMED and isinstance(said.tag, str) and all(type(number) is int for number in numbers):
            return said
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
