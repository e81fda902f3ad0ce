"""What a call comes back with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.errors import NotConfigured


class SandboxRefused(NotConfigured):
    """This machine cannot confine functions, and nothing else was permitted; the message says why."""

    code = "sandbox_refused"


@dataclass(frozen=True)
class Limits:
    """Limits of size, the same for all calls of a `Sandbox`; all in bytes.

    Attributes:
        source: of a function's source.
        arguments: of the arguments, and of the context, as JSON.
        output: of the returned value as JSON.
        stdout: of what the function prints.
    """

    source: int = 256 << 10
    arguments: int = 4 << 20
    output: int = 4 << 20
    stdout: int = 64 << 10


@dataclass(frozen=True)
class SandboxFault:
    """Why a call has no value.

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
        """The fault as it is stored in a record: the facts that are known."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """The end of one call.

    Attributes:
        ok: whether there is a value.
        value: what the function returned: JSON.
        error: why there is none.
        stdout: what it printed, to stdout or stderr.
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
