"""Results of sandboxed calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.errors import NotConfigured


class SandboxRefused(NotConfigured):
    """This machine cannot confine functions, and no alternative was permitted; the message says why."""

    code = "sandbox_refused"


@dataclass(frozen=True)
class Limits:
    """Size limits in bytes, the same for all calls of a `Sandbox`.

    Attributes:
        source: of a function's source.
        arguments: of the arguments, and of the context, as JSON.
        output: of the returned value as JSON.
        stdout: of the printed output.
    """

    source: int = 256 << 10
    arguments: int = 4 << 20
    output: int = 4 << 20
    stdout: int = 64 << 10


@dataclass(frozen=True)
class SandboxFault:
    """The reason why a call has no value.

    Attributes:
        type: one of the names in `docs/sandbox.md`: `exception`, `timeout`, `memory_limit` and so on.
        message: for people.
        line: the line of the function's source, where there is one.
        column: the column, for syntax errors and forbidden names.
        traceback: the frames of the function, for exceptions.
        limit: for limits, the limit.
        observed: for limits, what was observed, in the same unit.
    """

    type: str
    message: str
    line: int | None = None
    column: int | None = None
    traceback: str | None = None
    limit: float | None = None
    observed: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the known facts of the fault, as stored in a record."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """The result of one call.

    Attributes:
        ok: whether there is a value.
        value: the function's return value, as JSON.
        error: why there is no value.
        stdout: the printed output, of stdout and stderr.
        duration: seconds of wall time, from the request to the reply.
        cpu_time: seconds of CPU time, counted by the kernel.
        peak_memory: bytes that the call added to the parked child, counted by the kernel.
        layers: the layers that confined it.
    """

    ok: bool
    value: Any
    error: SandboxFault | None
    stdout: str
    duration: float
    cpu_time: float
    peak_memory: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One reason not to store a source.

    Attributes:
        message: what is wrong.
        line: from 1, or None for the source as a whole.
        column: from 1, or None.
        code: `syntax_error`, `import_denied`, `forbidden_name`, `no_entrypoint`, `signature`,
            `source_too_large`, or the type of the fault that stopped the check itself.
    """

    message: str
    line: int | None
    column: int | None
    code: str
