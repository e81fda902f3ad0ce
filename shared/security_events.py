"""Security events of functions: what was denied, killed or tampered with, and the quarantine that follows.

A function version that trips `MINION_QUARANTINE_AFTER` events since it was stored, or last released, is quarantined:
it is not run any more, and whoever calls it is told so. Of limits and crashes, which an input may cause, one for each
task within an hour counts; `minion_security_event` in the database does the counting.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.sandbox import SandboxFault
from shared.settings import get_settings

log = structlog.get_logger(__name__)

# Faults that say something about the code's intent or appetite; an exception of its own or wrong output does not.
KINDS = frozenset(
    "import_denied forbidden_name security crashed memory_limit timeout cpu_limit output_too_large stdout_too_large "
    "hash_mismatch".split()
)
# How long a process may go on with what it knew of a version's status.
FRESH_SECONDS = 1.0

RECORD = text("SELECT minion_security_event(:version, :task, :kind, :detail, :threshold)").bindparams(
    bindparam("detail", type_=JSONB)
)
STATUS = text("SELECT status, status_reason FROM function_versions WHERE id = :version")

_known: dict[UUID, tuple[float, str, str | None]] = {}


def record(engine: Engine, version_id: UUID, kind: str, detail: dict[str, Any], *, task_id: UUID | None = None) -> str:
    """Stores an event of one of `KINDS`.

    Returns:
        the version's status now: `quarantined` where this was the event too many.
    """
    values = {
        "version": version_id,
        "task": task_id,
        "kind": kind,
        "detail": detail,
        "threshold": get_settings().quarantine_after,
    }
    with engine.begin() as connection:
        status = str(connection.scalar(RECORD, values))
    _known.pop(version_id, None)
    log.warning("security_event", kind=kind, function_version=str(version_id), task_of=str(task_id), status=status)
    return status


def detail_of(fault: SandboxFault) -> dict[str, Any]:
    """What is kept of a fault. Its traceback may quote data and is left out."""
    return {name: value for name, value in fault.as_dict().items() if name != "traceback"}


def quarantined(engine: Engine, version_id: UUID) -> str | None:
    """Why a version is quarantined, or None where it is not; at most a second old."""
    looked, status, why = _known.get(version_id, (float("-inf"), "", None))
    if time.monotonic() - looked > FRESH_SECONDS:
        with engine.connect() as connection:
            row = connection.execute(STATUS, {"version": version_id}).one_or_none()
        status, why = (row.status, row.status_reason) if row else ("active", None)
        _known[version_id] = (time.monotonic(), status, why)
    return (why or "no reason given") if status == "quarantined" else None


def forget(version_id: UUID) -> None:
    """Looks again at the next call, after the status was changed here."""
    _known.pop(version_id, None)
