"""One call, as the child reads it from its channel."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .modules import SAFE_IMPORTS
from .wire import REQUEST


@dataclass(slots=True)
class Request:
    """What the child is asked to do.

    Attributes:
        operation: "call", "validate", or the name of a canary.
        entrypoint: the function to call.
        allowed: modules that the source may import.
        check: whether the Python-level policy is on.
        address_space: bytes of address space in all.
        cpu_seconds: whole seconds of CPU time after which the kernel kills.
        max_output: bytes of JSON that the value may take.
        max_stdout: bytes of captured output.
        source: the function's source.
        arguments: JSON object of keyword arguments; for "validate" the input schema or `null`.
        context: JSON object for the keyword `context`, or `null`.
    """

    operation: str
    entrypoint: str
    allowed: frozenset[str]
    check: bool
    address_space: int
    cpu_seconds: int
    max_output: int
    max_stdout: int
    source: str = ""
    arguments: bytes = b"{}"
    context: bytes = b"null"


def encode(settings: dict[str, Any], source: bytes = b"", arguments: bytes = b"{}", context: bytes = b"null") -> bytes:
    """The request's bytes.

    Args:
        settings: the other fields of `Request`; `allowed` is a list, or None for the safe set.
        source: Python source.
        arguments: JSON.
        context: JSON.
    """
    parts = (json.dumps(settings).encode(), source, arguments, context)
    return b"".join((REQUEST.pack(*map(len, parts)), *parts))


def read(read_exactly: Callable[[int], bytes]) -> Request:
    """Read one request with a function that returns exactly so many bytes."""
    lengths = REQUEST.unpack(read_exactly(REQUEST.size))
    settings, source, arguments, context = (read_exactly(length) for length in lengths)
    fields = json.loads(settings)
    fields["allowed"] = SAFE_IMPORTS if fields["allowed"] is None else frozenset(fields["allowed"])
    return Request(source=source.decode(), arguments=arguments, context=context, **fields)
