"""The function store: Python functions as immutable versions that run only in the sandbox."""

from __future__ import annotations

import asyncio
from difflib import unified_diff
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared.access import actors
from shared.audit import log
from shared.contracts.documents import FunctionDefinition, parse_definition
from shared.contracts.strict_json import JsonValue, check
from shared.database.tables import Function, FunctionVersion, SecurityEvent
from shared.definitions.apply import store_definitions
from shared.definitions.files import dump
from shared.errors import Conflict, FunctionError, InvalidInput, NotFound
from shared.functions import security_events
from shared.functions.runner import StoredFunction, run_function, verify
from shared.settings import get_settings

STATUSES = ("active", "deprecated", "quarantined")
MAX_REASON_BYTES = 10_000


class FunctionStore:
    """Functions of one namespace, in the database of the caller's session.

    Each call has its own short transaction: it does not touch or see the caller's uncommitted changes, no transaction
    stays open while a function runs, and calls may run concurrently.
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
        """Store a function, as a new version if something changed, and commit.

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
        """Run a function's active version, or the given one, in the sandbox, and return its value.

        Raises:
            NotFound: there is no such function or version.
            InvalidInput, InvalidOutput, FunctionError: see `run_function`.
        """
        check(arguments, what=f"The input of function {name!r}", limit=get_settings().max_input_bytes)
        function = self.get(name, version)
        value, _ = await asyncio.to_thread(run_function, function, arguments, context, engine=self.engine)
        return value

    def versions(self, name: str) -> list[FunctionVersion]:
        """Return all versions of a function, the newest first.

        Raises:
            NotFound: there is no such function.
        """
        with Session(self.engine, expire_on_commit=False) as session:
            head = self._head(session, name)
            query = select(FunctionVersion).filter_by(function_id=head.id).order_by(FunctionVersion.number.desc())
            return list(session.scalars(query))

    def diff(self, name: str, before: int, after: int) -> str:
        """Return the changes between two versions, as a unified diff of their YAML.

        Raises:
            NotFound: there is no such function or version.
        """
        old, new = self.get(name, before), self.get(name, after)
        lines = unified_diff(
            dump(old.definition).splitlines(),
            dump(new.definition).splitlines(),
            f"{name}@{before}",
            f"{name}@{after}",
            lineterm="",
        )
        return "\n".join(lines)

    def set_status(
        self,
        name: str,
        status: str,
        *,
        version: int | None = None,
        reason: str | None = None,
        actor: actors.Actor | None = None,
    ) -> FunctionVersion:
        """Make a version `active`, `deprecated` (still runs) or `quarantined` (does not run).

        Making a version active again ends its quarantine: the count of security events starts over. A version whose
        row was changed from outside can be quarantined, but not made active.

        Args:
            actor: for the audit log; None: the user of the operating system.

        Raises:
            NotFound: there is no such function or version.
            InvalidInput: there is no such status, or the reason cannot be stored.
            Conflict: the version is to be active, and does not match its hash.
        """
        if status not in STATUSES:
            raise InvalidInput(
                f"The status of a function must be one of {', '.join(STATUSES)}, not {str(status)[:50]!r}."
            )
        check(reason, what="The reason", limit=MAX_REASON_BYTES)
        values: dict[str, Any] = {"status": status, "status_reason": reason}
        if status == "active":
            version = self._intact(name, version)
            values["released_at"] = func.now()
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            row = self._version(session, name, version)
            session.refresh(row, with_for_update=True)
            before = {"status": row.status, "status_reason": row.status_reason}
            session.execute(update(FunctionVersion).where(FunctionVersion.id == row.id).values(**values))
            states = log.changed(before, {"status": status, "status_reason": reason})
            target = f"{name}@{row.number}"
            log.record(
                session.connection(),
                actor or actors.local_actor(),
                "function.status",
                target,
                namespace=self.namespace,
                **states,
            )
            session.refresh(row)
        security_events.forget(row.id)
        return row

    def events(self, name: str, *, most: int = 50) -> list[SecurityEvent]:
        """Return the latest security events of all versions of a function, the newest first.

        Raises:
            NotFound: there is no such function.
        """
        with Session(self.engine, expire_on_commit=False) as session:
            query = (
                select(SecurityEvent)
                .join(FunctionVersion, FunctionVersion.id == SecurityEvent.function_version_id)
                .where(FunctionVersion.function_id == self._head(session, name).id)
                .order_by(SecurityEvent.id.desc())
                .limit(most)
            )
            return list(session.scalars(query))

    def get(self, name: str, version: int | None = None) -> StoredFunction:
        """Return a function's active version, or the given one.

        Raises:
            NotFound: there is no such function or version.
        """
        with Session(self.engine, expire_on_commit=False) as session:
            row = self._version(session, name, version)
        return verify(row, self.engine)

    def _intact(self, name: str, version: int | None) -> int:
        """Return the number of a version that matches its hash."""
        try:
            return self.get(name, version).number
        except FunctionError as error:
            raise Conflict(error.message) from None

    def _version(self, session: Session, name: str, version: int | None) -> FunctionVersion:
        head = self._head(session, name)
        wanted = {"id": head.active_version_id} if version is None else {"function_id": head.id, "number": version}
        row = session.scalar(select(FunctionVersion).filter_by(**wanted)) if is_number(version) else None
        if row is None:
            raise NotFound(f"The function {name!r} has no version {str(version)[:20]}.")
        return row

    def _head(self, session: Session, name: str) -> Function:
        head = session.scalar(select(Function).filter_by(namespace=self.namespace, name=name))
        if head is None:
            raise NotFound(f"There is no function named {str(name)[:100]!r}. `minion functions list` lists them.")
        return head

    def _store(self, definition: FunctionDefinition) -> StoredFunction:
        with Session(self.engine) as session:
            store_definitions(session, [definition], namespace=self.namespace)
        return self.get(definition.name)


def is_number(version: Any) -> bool:
    """Return whether a version number can be looked up at all; None means the active version."""
    return version is None or (type(version) is int and 0 < version < 1 << 31)
