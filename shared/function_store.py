"""The function store: Python functions as immutable versions, run in the sandbox and nowhere else.

`run_function` is the one place that executes a stored function: for `FunctionStore.execute_function` and for
minions alike.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.definitions import Change, DefinitionStore
from shared.errors import FunctionError, InvalidDefinition, InvalidInput, InvalidOutput, MinionError, NotFound
from shared.json_schema import validate
from shared.json_values import JsonValue, check
from shared.models import Function, FunctionVersion
from shared.sandbox import SAFE_IMPORTS, Outcome, Sandbox
from shared.schemas import AnyDefinition, FunctionDefinition, parse_definition
from shared.settings import get_settings


@dataclass(frozen=True)
class StoredFunction:
    """A function version, verified: what is needed to run it."""

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
        """How messages call it: `'search_docs' (version 2)`."""
        return f"{self.name!r} (version {self.number})"

    @classmethod
    def of(cls, row: FunctionVersion) -> StoredFunction:
        """Verifies a stored row against its hash.

        Raises:
            FunctionError: the stored code is not what was hashed when it was stored.
        """
        definition = _intact(row)
        if definition is None:
            raise FunctionError(
                f"Function {row.name!r} (version {row.number}) does not match its stored SHA-256 and is not run. "
                "Somebody changed the row; store the function again.",
                reason="hash_mismatch",
            )
        return cls(row.id, row.number, row.checksum, row.status, definition)


def _intact(row: FunctionVersion) -> FunctionDefinition | None:
    """A row's definition, if it is what was stored."""
    try:
        definition = FunctionDefinition.model_validate({"name": row.name, **row.definition})
    except (ValidationError, MinionError, TypeError):
        return None
    return definition if definition.checksum() == row.checksum else None


@lru_cache(maxsize=1)
def _sandbox_of(pid: int) -> Sandbox:
    return Sandbox(preload=tuple(get_settings().sandbox_preload))


def get_sandbox() -> Sandbox:
    """The process's sandbox, made at its first use; a forked child makes its own."""
    return _sandbox_of(os.getpid())


def run_function(
    function: StoredFunction, arguments: JsonValue, context: dict[str, Any] | None = None
) -> tuple[JsonValue, Outcome]:
    """Runs a stored function in the sandbox.

    Args:
        arguments: the input object; its properties become keyword arguments.
        context: given to the function as `context`, read-only, where it `requires_context`.

    Returns:
        the value, which matches the output schema, and how the call went.

    Raises:
        InvalidInput, InvalidOutput: a schema is not matched; all violations are in the message.
        FunctionError: the function raised, was refused, or went over a limit.
    """
    definition, config = function.definition, function.definition.config
    if function.status == "quarantined":
        raise FunctionError(f"Function {function.label} is quarantined and is not run.", reason="quarantined")
    if not isinstance(arguments, dict):
        raise InvalidInput(f"The input of function {function.label} is an object, not {type(arguments).__name__}.")
    validate(definition.input_schema, arguments, what=f"The input of function {function.label}", error=InvalidInput)
    outcome = get_sandbox().call(
        definition.code,
        str(definition.entrypoint),
        arguments,
        allowed_imports=config.allowed_imports,
        memory_limit=config.memory_limit,
        timeout=config.timeout,
        context=(context or {}) if config.requires_context else None,
    )
    if not outcome.ok:
        raise _error_of(function, outcome)
    check(outcome.value, what=f"The output of function {function.label}", limit=get_settings().max_output_bytes)
    validate(
        definition.output_schema, outcome.value, what=f"The output of function {function.label}", error=InvalidOutput
    )
    return outcome.value, outcome


def validate_code(definition: FunctionDefinition) -> None:
    """Checks a function's source in the sandbox before it is stored.

    Raises:
        InvalidDefinition: every problem with its line and column.
    """
    config = definition.config
    place = f"function {definition.name!r}"
    known = set(SAFE_IMPORTS) | set(get_settings().sandbox_preload)
    if unknown := [name for name in config.allowed_imports if name not in known]:
        raise InvalidDefinition(
            f"{place}, config.allowed_imports: {', '.join(unknown)} cannot be imported in the sandbox. "
            f"Safe modules are: {', '.join(sorted(SAFE_IMPORTS))}."
        )
    problems = get_sandbox().validate(
        definition.code,
        str(definition.entrypoint),
        allowed_imports=config.allowed_imports,
        input_schema=definition.input_schema,
    )
    if problems:
        listed = "; ".join(f"line {p.line}, column {p.column}: {p.message}" for p in problems[:20])
        raise InvalidDefinition(
            f"{place} cannot be stored: {listed}.",
            problems=[{"line": p.line, "column": p.column, "message": p.message} for p in problems[:20]],
        )


class FunctionStore:
    """Functions of one namespace, in the database of the caller's session.

    Each call has a short transaction of its own: nothing that the caller has not committed is touched or seen, no
    transaction stays open while a function runs, and calls may run at the same time.
    """

    def __init__(self, session: Session, namespace: str = "default") -> None:
        self.engine = session.get_bind().engine
        self.namespace = namespace

    async def store_function(
        self,
        name: str,
        code: str,
        description: str = "",
        input_schema: dict[str, Any] | None = None,
        output_schema: dict[str, Any] | None = None,
        *,
        entrypoint: str | None = None,
        config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> StoredFunction:
        """Stores a function, as a new version if something changed, and commits.

        Args:
            settings: fields of `FunctionConfig`, such as `is_async=True` or `timeout=5`.

        Raises:
            InvalidDefinition: the code, a schema or a setting is wrong, with line and column or path.
        """
        definition = parse_definition(
            {
                "kind": "function",
                "name": name,
                "code": code,
                "description": description,
                "input_schema": input_schema,
                "output_schema": output_schema,
                "entrypoint": entrypoint,
                "config": {**config, **settings} if isinstance(config, dict) else config or settings,
            }
        )
        return await asyncio.to_thread(self._store, definition)  # type: ignore[arg-type]  # `kind` makes it a function

    async def execute_function(
        self, name: str, arguments: dict[str, Any], *, version: int | None = None, context: dict[str, Any] | None = None
    ) -> JsonValue:
        """Runs a function's active version, or the given one, in the sandbox, and returns its value.

        Raises:
            NotFound: there is no such function or version.
            InvalidInput, InvalidOutput, FunctionError: see `run_function`.
        """
        check(arguments, what=f"The input of function {name!r}", limit=get_settings().max_input_bytes)
        function = self.get(name, version)
        value, _ = await asyncio.to_thread(run_function, function, arguments, context)
        return value

    def get(self, name: str, version: int | None = None) -> StoredFunction:
        """A function's active version, or the given one.

        Raises:
            NotFound: there is no such function or version.
        """
        with Session(self.engine) as session:
            head = session.scalar(select(Function).filter_by(namespace=self.namespace, name=name))
            if head is None:
                raise NotFound(f"There is no function named {str(name)[:100]!r}. `minion functions list` lists them.")
            wanted = {"id": head.active_version_id} if version is None else {"function_id": head.id, "number": version}
            row = session.scalar(select(FunctionVersion).filter_by(**wanted)) if is_number(version) else None
            if row is None:
                raise NotFound(f"The function {name!r} has no version {str(version)[:20]}.")
            return StoredFunction.of(row)

    def _store(self, definition: FunctionDefinition) -> StoredFunction:
        with Session(self.engine) as session:
            store_definitions(session, [definition], namespace=self.namespace)
        return self.get(definition.name)


def is_number(version: Any) -> bool:
    """Whether a version's number can be looked up at all; None stands for the active one."""
    return version is None or (type(version) is int and 0 < version < 1 << 31)


def store_definitions(
    session: Session, definitions: list[Any], *, namespace: str = "default", dry_run: bool = False
) -> list[Change]:
    """Applies definitions and commits; with `dry_run`, only tells what would change.

    Raises:
        InvalidDefinition: the first fault; nothing is stored.
    """
    try:
        changes = DefinitionStore(session, validate_code, namespace).apply(definitions)
        if not dry_run:
            session.commit()
            return changes
    except BaseException:
        session.rollback()
        raise
    session.rollback()
    return changes


def export_definitions(session: Session, *, namespace: str = "default") -> list[AnyDefinition]:
    """The active version of every definition."""
    return DefinitionStore(session, validate_code, namespace).export()


def _error_of(function: StoredFunction, outcome: Outcome) -> FunctionError:
    fault = outcome.error
    assert fault is not None
    error = FunctionError(
        f"Function {function.label}: {fault.message}",
        reason=fault.type,
        function=function.name,
        version=function.number,
    )
    # The code will do the same again; only the sandbox itself may do better next time.
    error.retryable = fault.type == "unavailable"
    return error
