"""One call, as it travels from the host to a child."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .modules import SAFE_IMPORTS
from .wire import REQUEST


@dataclass(slots=True)
class Request:
    """The request that a child serves.

    Attributes:
        operation: "call", "compile", "program", "validate", or the name of a canary.
        entrypoint: the function to call.
        allowed: modules that the source may import.
        check: whether the Python-level policy is on.
        address_space: bytes of address space in all.
        data: bytes of it that may be private and writable.
        cpu_seconds: whole seconds of CPU time after which the kernel kills.
        max_output: bytes of JSON that the value may take.
        max_stdout: bytes of captured output.
        source: the function's source.
        code: the result of "compile" for this source, or nothing.
        arguments: JSON object of keyword arguments; for "validate" the input schema or `null`, for "program" its
            settings.
        context: JSON object for the keyword `context`, or `null`.
    """

    operation: str
    entrypoint: str
    allowed: frozenset[str]
    check: bool
    max_output: int
    max_stdout: int
    address_space: int = 0
    data: int = 0
    cpu_seconds: int = 0
    source: bytes = b""
    code: bytes = b""
    arguments: bytes = b"{}"
    context: bytes = b"null"

    def encode(self) -> bytes:
        """Return the request's bytes, in a fixed form: reading JSON would cost the child a tenth of a call."""
        parts = (
            self.operation.encode(),
            self.entrypoint.encode("utf-8", "replace"),
            b"" if self.allowed is SAFE_IMPORTS else _lines(self.allowed),
            self.source,
            self.code,
            self.arguments,
            self.context,
        )
        sizes = (self.address_space, self.data, self.cpu_seconds, self.max_output, self.max_stdout)
        return b"".join((REQUEST.pack(self.check, *sizes, *map(len, parts)), *parts))


def read(receive: Callable[[], bytes]) -> Request:
    """Read one request.

    Args:
        receive: returns all bytes that have arrived next.
    """
    data = bytearray(receive())
    while len(data) < REQUEST.size:
        data += receive()
    check, address_space, data_size, cpu_seconds, max_output, max_stdout, *lengths = REQUEST.unpack_from(data)
    while len(data) < REQUEST.size + sum(lengths):
        data += receive()
    operation, entrypoint, allowed, source, code, arguments, context = _truncate(bytes(data), lengths)
    return Request(
        operation=operation.decode(),
        entrypoint=entrypoint.decode(),
        allowed=frozenset(allowed.decode().split("\n")[1:-1]) if allowed else SAFE_IMPORTS,
        check=check,
        address_space=address_space,
        data=data_size,
        cpu_seconds=cpu_seconds,
        max_output=max_output,
        max_stdout=max_stdout,
        source=source,
        code=code,
        arguments=arguments,
        context=context,
    )


def _lines(names: frozenset[str]) -> bytes:
    """Return the names between line ends; a single line end means none."""
    return "\n".join(["", *sorted(names), ""] if names else ["", ""]).encode("utf-8", "replace")


def _truncate(data: bytes, lengths: list[int]) -> list[bytes]:
    parts, start = [], REQUEST.size
    for length in lengths:
        parts.append(data[start : start + length])
        start += length
    return parts
