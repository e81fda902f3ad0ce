"""Security events of functions: denials, kills and tampering, and the quarantine that follows. Those of programs.

A function version is quarantined after `MINION_QUARANTINE_AFTER` events since it was stored or last released: it no
longer runs, and its callers get an error. Limits and crashes, which an input may cause, count once per task within an
hour; `minion_security_event` in the database does the counting.

A program is written by a model, for one task: there is nothing to quarantine. Its event is an action that the kernel
refused, or a forged message. A forbidden import or name is none: models try what they know, and correct themselves.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.sandbox import SandboxFault
from shared.settings import get_settings

log = structlog.get_logger(__name__)

# Faults that indicate malicious or greedy code; exceptions of the function and wrong output do not.
KINDS = frozenset(
    "import_denied forbidden_name security crashed memory_limit timeout cpu_limit output_too_large stdout_too_large "
    "hash_mismatch".split()
)
# Seconds for which a process may use its cached status of a version.
FRESH_SECONDS = 1.0

RECORD = text("SELECT minion_security_event(:version, :task, :kind, :detail, :threshold)").bindparams(
    bindparam("detail", type_=JSONB)
)
RECORD_OF_PROGRAM = text(
    "INSERT INTO security_events (task_id, kind, detail) VALUES (:task, 'security', :detail)"
).bindparams(bindparam("detail", type_=JSONB))
STATUS = text("SELECT status, status_reason FROM function_versions WHERE id = :version")

_known: dict[UUID, tuple[float, str, str | None]] = {}


def record(engine: Engine, version_id: UUID, kind: str, detail: dict[str, Any], *, task_id: UUID | None = None) -> str:
    """Store an event of one of `KINDS`.

    Returns:
        the current status of the version: `quarantined` if this event reached the threshold.
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


def record_of_program(connection: Connection, task_id: UUID, fault: SandboxFault) -> None:
    """Store an event of a program of this task."""
    connection.execute(RECORD_OF_PROGRAM, {"task": task_id, "detail": detail_of(fault)})
    log.warning("security_event", kind=fault.type, task_of=str(task_id), why=fault.message)


def detail_of(fault: SandboxFault) -> dict[str, Any]:
    """Return the details of a fault to store, without its traceback, which may quote data."""
    return {name: value for name, value in fault.as_dict().items() if name != "traceback"}


def quarantined(engine: Engine, version_id: UUID) -> str | None:
    """Return why a version is quarantined, or None if it is not; the answer is at most a second old."""
    looked, status, why = _known.get(version_id, (float("-inf"), "", None))
    if time.monotonic() - looked > FRESH_SECONDS:
        with engine.connect() as connection:
            row = connection.execute(STATUS, {"version": version_id}).one_or_none()
        status, why = (row.status, row.status_reason) if row else ("active", None)
        _known[version_id] = (time.monotonic(), status, why)
    return (why or "no reason given") if status == "quarantined" else None


def forget(version_id: UUID) -> None:
    """Drop the cached status, so that the next call reads it again after a local change."""
    _known.pop(version_id, None)
