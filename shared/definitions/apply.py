"""Apply definitions of all kinds in one transaction, and export them."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from shared.contracts import shares
from shared.contracts.documents import AnyDefinition
from shared.database.connections import be_patient
from shared.definitions import canaries
from shared.definitions.audit import record_change
from shared.definitions.store import Change, DefinitionStore
from shared.errors import InvalidDefinition
from shared.functions.validation import validate_code
from shared.functions.worker_packages import WorkerPackages


def store_definitions(
    session: Session,
    definitions: list[Any],
    *,
    namespace: str = "default",
    dry_run: bool = False,
    strict: bool = False,
    share: str | None = None,
    inactive: bool = False,
) -> list[Change]:
    """Apply definitions and commit; with `dry_run`, only report the changes.

    Args:
        strict: treat warnings as errors.
        share: of the new tasks that new versions of existing agents get, as canaries: `10%`. None: they become active.
        inactive: store new versions of existing agents without activating them.

    Raises:
        InvalidDefinition: the first error; nothing is stored.
    """
    try:
        be_patient(session.connection())  # functions are compiled in the sandbox, and schemas compared
        packages = WorkerPackages.reported(session)
        check_code = partial(validate_code, packages=packages)
        hundredths = None if share is None else canaries.parse_share(share)
        some = None if hundredths == shares.ALL else hundredths
        store = DefinitionStore(session, check_code, namespace, packages, share=some, inactive=inactive)
        changes = store.apply(definitions)
        warnings = [warning for change in changes for warning in change.warnings]
        if strict and warnings:
            raise InvalidDefinition("\n".join(warnings), faults=warnings)
        if not dry_run:
            for version, before in store.activated:
                replaced = None if before is None else session.get_one(type(version), before)
                record_change(session, namespace, version, replaced)
            for version, active in store.stored:
                record_change(session, namespace, version, session.get_one(type(version), active), activated=False)
            session.commit()
            return changes
    except BaseException:
        session.rollback()
        raise
    session.rollback()
    return changes


def export_definitions(session: Session, *, namespace: str = "default") -> list[AnyDefinition]:
    """Return the active version of every definition."""
    return DefinitionStore(session, validate_code, namespace).export()
