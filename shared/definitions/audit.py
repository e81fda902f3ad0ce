"""Changes of definitions in the audit log: what differs from the version before, without texts that may be private."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy.orm import Session

from shared.access import actors
from shared.audit import log

# Prompts are payloads, and descriptions, schemas, code, addresses and headers may quote a secret.
HIDDEN = frozenset(
    {
        "system_prompt",
        "description",
        "input_schema",
        "output_schema",
        "code",
        "url",
        "headers",
        "query",
        "result",
        "examples",
    }
)
MOST_FIELDS = 200


def record_change(
    session: Session, namespace: str, version: Any, replaced: Any | None, *, activated: bool = True
) -> None:
    """Write that a version of a definition became the active one, or was stored.

    Args:
        replaced: the version that was active before; None for a new definition.
        activated: False: it was only stored, and the other version is still active.
    """
    states: dict[str, log.Facts | None]
    if replaced is None:
        states = {"after": {name: value for name, value in _described(version).items() if value not in (None, "", [])}}
    else:
        states = log.changed(_described(replaced), _described(version))
    change = "definition.change" if activated else "definition.store"
    act = "definition.create" if replaced is None else change
    kind = type(version).__tablename__.removesuffix("_versions")
    target = f"{kind} {version.name}"
    log.record(session.connection(), actors.local_actor(), act, target, namespace=namespace, **states)


def _described(version: Any) -> dict[str, Any]:
    """Return the fields of a version by their paths."""
    fields = dict(islice(_fields(version), MOST_FIELDS))
    return {"version": version.number, "checksum": version.checksum[:12], **fields}


def _fields(version: Any) -> Iterator[tuple[str, Any]]:
    for name, value in version.definition.items():
        yield from _flattened(name, value, hidden=name in HIDDEN)


def _flattened(path: str, value: Any, *, hidden: bool) -> Iterator[tuple[str, Any]]:
    """Yield the values below a path. Those that are hidden become digests, which show only that they changed."""
    if hidden and value:
        yield path, log.fingerprint(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _flattened(f"{path}.{name}", item, hidden=name in HIDDEN)
    else:
        yield path, value
