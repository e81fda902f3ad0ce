"""Trace context: which trace a task belongs to, and the ids of its spans.

All ids are derived from the rows that the spans describe, so that every process, and every export, uses the same ones.
The trace is that of the root task: its caller's, if the caller sent one (W3C Trace Context), else the root's own, whose
id is the root's. A replay is a root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

HEADER = "traceparent"
SAMPLED = 1
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of a task.

    Attributes:
        id: 16 bytes.
        caller: the caller's span, 8 bytes; empty if there is none.
        sampled: whether its spans are recorded, as the caller decided.
    """

    id: bytes
    caller: bytes = b""
    sampled: bool = True

    @classmethod
    def of(cls, root: UUID, traceparent: str | None) -> Trace:
        """Return the trace of a task.

        Args:
            root: the root task.
            traceparent: the one that is stored with the task. An invalid one starts a new trace.
        """
        return (traceparent is not None and _parse(traceparent)) or cls(root.bytes)

    def parent(self, span: bytes) -> str:
        """Return the `traceparent` of work that a span causes."""
        return f"00-{self.id.hex()}-{span.hex()}-{int(self.sampled):02x}"


def task_span(task: UUID) -> bytes:
    """Return the id of a task's span."""
    return _span("task", task)


def claim_span(task: UUID, claim: int) -> bytes:
    """Return the id of the span of one claim of a task."""
    return _span("claim", task, claim)


def step_span(task: UUID, number: int) -> bytes:
    """Return the id of a step's span."""
    return _span("step", task, number)


def read_header(traceparent: str | None) -> str | None:
    """Return a `traceparent` from a caller's headers in the form of version 00; None if it is invalid.

    W3C Trace Context has its receiver ignore an invalid one, and read the known part of a later version.
    """
    trace = traceparent is not None and _parse(traceparent)
    return trace.parent(trace.caller) if trace else None


def _parse(traceparent: str) -> Trace | None:
    found = _FORM.fullmatch(traceparent) if len(traceparent) <= _LONGEST else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return Trace(bytes.fromhex(trace), bytes.fromhex(span), bool(int(flags, 16) & SAMPLED))


def _span(kind: str, task: UUID, number: int = 0) -> bytes:
    return sha256(f"minions/{kind}/{task}/{number}".encode()).digest()[:8]
