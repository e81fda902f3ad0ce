"""Outputs as the types that a caller names: Pydantic models, dataclasses, TypedDicts, `list[Model]` and the like.

Pydantic does the work and is imported at the first use: the client does not depend on it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minions.errors import InvalidInput, NotConfigured, OutputMismatch

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def check_type(output: Any) -> None:
    """Refuse a type that no output can be read as, before a task is submitted for it. None is any output.

    Raises:
        InvalidInput: Pydantic cannot validate the type.
        NotConfigured: Pydantic is not installed.
    """
    if output is not None:
        _adapter(output)


def read_output(value: Any, output: Any, *, task: Any) -> Any:
    """Return a task's output as the type; unchanged if that is None.

    Raises:
        OutputMismatch: the output is not of the type. `violations` names each fault, without its value.
    """
    if output is None:
        return value
    adapter = _adapter(output)
    from pydantic import ValidationError

    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        faults = [
            {"path": "/".join(["", *map(str, fault["loc"])]), "message": fault["msg"]}
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    listed = "; ".join(f"{fault['path'] or '/'}: {fault['message']}" for fault in faults[:5])
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise OutputMismatch(
        f"The output of task {task.id} is not a valid {_name(output)}: {listed}{more}. Change the type, or the output "
        "schema of the agent; the JSON is in `output` of the task.",
        task=task,
        violations=faults,
    )


def _adapter(output: Any) -> TypeAdapter[Any]:
    try:
        return _cached(output)
    except TypeError:  # it cannot be hashed
        return _build(output)


def _build(output: Any) -> TypeAdapter[Any]:
    try:
        from pydantic import PydanticUserError, TypeAdapter
    except ImportError:
        raise NotConfigured(
            f"The output type {_name(output)} needs Pydantic, which is not installed: `pip install pydantic`, or leave "
            "`output` out to get JSON."
        ) from None
    try:
        return TypeAdapter(output)
    except PydanticUserError as error:
        raise InvalidInput(f"Pydantic cannot validate the output type {_name(output)}: {error.message}") from None


_cached = lru_cache(maxsize=256)(_build)


def _name(output: Any) -> str:
    return getattr(output, "__name__", None) or str(output)
