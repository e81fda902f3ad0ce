"""Running stored functions: verified, in the sandbox, with their limits. Denials and kills are recorded."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.orm import object_session

from shared.contracts.documents import FunctionDefinition, content_in_order
from shared.contracts.json_schema import validate
from shared.contracts.strict_json import JsonValue, check
from shared.database.connections import get_engine
from shared.database.tables import FunctionVersion
from shared.errors import FunctionError, InvalidInput, InvalidOutput, MinionError
from shared.functions import security_events
from shared.sandbox import Outcome, Sandbox, SandboxFault, levels
from shared.sandbox.keeper import Keeper
from shared.settings import get_settings
from shared.tasks.directives import is_result


@dataclass(frozen=True)
class StoredFunction:
    """A verified function version, with everything needed to run it."""

    version_id: UUID
    number: int
    checksum: str
    status: str
    definition: FunctionDefinition

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def label(self) -> str:
        """The function's name in messages: `'search_docs' (version 2)`."""
        return f"{self.name!r} (version {self.number})"

    @classmethod
    def of(cls, row: FunctionVersion) -> StoredFunction:
        """Verify a stored row against its hash.

        Raises:
            FunctionError: the stored code does not match the hash from when it was stored.
        """
        definition = _intact(row)
        if definition is None:
            raise FunctionError(
                f"Function {row.name!r} (version {row.number}) does not match its stored SHA-256 and is not run. The "
                "row was changed from outside: quarantine the version, and store the function with a change, such as "
                "another description, as a new one.",
                reason="hash_mismatch",
            )
        return cls(row.id, row.number, row.checksum, row.status, definition)


def _intact(row: FunctionVersion) -> FunctionDefinition | None:
    """Return a row's definition if it matches its hash."""
    try:
        content = content_in_order(row.definition, row.key_order)
        definition = FunctionDefinition.model_validate({"name": row.name, **content})
    except (ValidationError, MinionError, TypeError):
        return None
    return definition if definition.checksum() == row.checksum else None


def verify(row: FunctionVersion, engine: Engine) -> StoredFunction:
    """Verify a stored row against its hash; a mismatch is a security event.

    Raises:
        FunctionError: the stored code does not match the hash from when it was stored.
    """
    try:
        return StoredFunction.of(row)
    except FunctionError as error:
        if session := object_session(row):
            # The record needs a connection. Many tasks may share few: a task must not hold one and wait for another.
            session.close()
        security_events.record(engine, row.id, "hash_mismatch", {"message": error.message})
        raise


_keepers: list[Keeper] = []


def share_sandbox() -> None:
    """Let the processes that this one forks from now on share one zygote, which starts when one of them needs it."""
    if not _keepers and levels.unsupported() is None:
        _keepers.append(Keeper(get_settings().sandbox_preload))


@lru_cache(maxsize=1)
def _sandbox_of(pid: int) -> Sandbox:
    door = _keepers[0].door if _keepers else None
    sandbox = Sandbox(preload=tuple(get_settings().sandbox_preload), door=door)
    atexit.register(sandbox.close)
    return sandbox


def get_sandbox() -> Sandbox:
    """Return the process's sandbox, created at its first use; a forked child creates its own.

    After `share_sandbox`, they have separate children of one zygote.
    """
    return _sandbox_of(os.getpid())


def run_function(
    function: StoredFunction,
    arguments: JsonValue,
    context: dict[str, Any] | None = None,
    *,
    engine: Engine | None = None,
    task_id: UUID | None = None,
) -> tuple[JsonValue, Outcome]:
    """Run a stored function in the sandbox. All stored functions run through here.

    Args:
        arguments: the input object; its properties become keyword arguments.
        context: passed to the function as the read-only `context` if it `requires_context`.
        engine: for reading the function's status and storing security events; the process's own by default.
        task_id: the task that the function runs for, for the record of events.

    Returns:
        the value, which matches the output schema or is a directive, and the outcome of the call.

    Raises:
        InvalidInput, InvalidOutput: a schema is not matched; all violations are in the message.
        FunctionError: the function is quarantined, raised, was refused, or exceeded a limit.
    """
    engine = engine or get_engine()
    _refuse_quarantined(function, engine)
    if not isinstance(arguments, dict):
        raise InvalidInput(f"The input of function {function.label} must be an object, not {type(arguments).__name__}.")
    definition = function.definition
    validate(definition.input_schema, arguments, what=f"The input of function {function.label}", error=InvalidInput)
    outcome = _call(function, arguments, context)
    if outcome.error is not None:
        raise _error_of(function, outcome.error, engine, task_id)
    what = f"The output of function {function.label}"
    check(outcome.value, what=what, limit=get_settings().max_output_bytes)
    if is_result(outcome.value):
        validate(definition.output_schema, outcome.value, what=what, error=InvalidOutput)
    return outcome.value, outcome


def _call(function: StoredFunction, arguments: dict[str, Any], context: dict[str, Any] | None) -> Outcome:
    definition, config, sandbox = function.definition, function.definition.config, get_sandbox()
    if config.safe_mode and sandbox.level == "insecure":
        raise FunctionError(
            f"Function {function.label} has safe_mode and is not run: this machine's sandbox is at level insecure. "
            "`minion doctor` says what is missing.",
            reason="insecure_sandbox",
        )
    return sandbox.call(
        definition.code,
        str(definition.entrypoint),
        arguments,
        allowed_imports=config.allowed_imports,
        memory_limit=config.memory_limit,
        timeout=config.timeout,
        # Without safe_mode only the kernel confines the function.
        check=config.safe_mode,
        context=(context or {}) if config.requires_context else None,
    )


def _refuse_quarantined(function: StoredFunction, engine: Engine) -> None:
    why = security_events.quarantined(engine, function.version_id)
    if why is not None:
        raise FunctionError(
            f"Function {function.label} is quarantined and is not run: {why}. `minion functions events "
            f"{function.name}` shows why; release it with `minion functions release`, or store a corrected version.",
            reason="quarantined",
            function=function.name,
            version=function.number,
        )


def _error_of(function: StoredFunction, fault: SandboxFault, engine: Engine, task_id: UUID | None) -> FunctionError:
    """Return the error for a fault; store a security event, which may put the function into quarantine."""
    message = f"Function {function.label}: {fault.message}"
    if fault.type in security_events.KINDS:
        detail = security_events.detail_of(fault)
        status = security_events.record(engine, function.version_id, fault.type, detail, task_id=task_id)
        if status == "quarantined":
            message += " It has caused too many security events and is now quarantined."
    known = {"line": fault.line, "limit": fault.limit, "observed": fault.observed}
    facts = {name: value for name, value in known.items() if value is not None}
    error = FunctionError(message, reason=fault.type, function=function.name, version=function.number, **facts)
    # The code would do the same again; only a fault of the sandbox itself is worth a retry.
    error.retryable = fault.type == "unavailable"
    return error
