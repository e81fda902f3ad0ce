"""The result or the error of a program for its model: as untrusted as the output of any other tool, and bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared.contracts.code_mode import CodeMode
from shared.contracts.strict_json import JsonValue
from shared.errors import FunctionError
from shared.sandbox.outcome import SandboxFault
from shared.sandbox.program_events import Failed, Finished
from shared.storable import storable
from workers.code_mode.calls import counted


def value_of(event: Finished, settings: CodeMode) -> dict[str, JsonValue]:
    """Return the result of a program: `result`, and `printed` if it printed something."""
    text = json.dumps(event.value, ensure_ascii=False)
    result = event.value if len(text) <= settings.max_output else _cut(text, settings.max_output)
    printed = _printed(event.stdout, settings)
    return {"result": result, **({"printed": printed} if printed else {})}


def error_of(event: Failed, called: Sequence[str], settings: CodeMode) -> FunctionError:
    """Return the error for the model: where its program failed, and the calls that it had made by then."""
    fault = event.fault
    parts = [f"The program failed{_place(fault)}: {storable(fault.message)}"]
    if fault.traceback:
        parts.append(storable(fault.traceback).rstrip())
    if called:
        parts.append(f"Its calls until then were made, and are not undone: {counted(called)}.")
    if printed := _printed(event.stdout, settings):
        parts.append(f"It had printed:\n{printed}")
    facts: dict[str, Any] = {"reason": fault.type, "line": fault.line, "limit": fault.limit, "observed": fault.observed}
    known = {name: value for name, value in facts.items() if value is not None}
    return FunctionError(_cut("\n".join(parts), settings.max_output), **known)


def _place(fault: SandboxFault) -> str:
    return f" in line {fault.line}" if fault.line is not None else ""


def _printed(text: str, settings: CodeMode) -> str:
    return str(_cut(storable(text).rstrip("\n"), settings.max_output))


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]}… [cut: it has {len(text):,} characters, and {most:,} is the most]"
