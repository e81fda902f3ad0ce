"""The audit log: acts, their actors and their changes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import StrictQuery, Text
from orchestrator.pages.access import Reading
from orchestrator.pages.forms import Typed, corrected, show
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.audit import chain, log
from shared.audit.log import AuditFilter
from shared.audit.signing import Signer
from shared.tasks.task_query import parse_query, written_query

ROWS = 50
MOST_SEARCHED = 50_000
LONGEST_VALUE = 300
LONGEST_CHANGES = 1500
"""Characters of the changes of a row, after which no other field is shown."""
MOST_COUNTED = 10_000
FILTERS = ("actor", "act", "target", "since", "until")
SIGNED = text(f"SELECT {chain.COLUMNS} FROM audit_log WHERE id = ANY (:ids)").bindparams(  # noqa: S608
    bindparam("ids", type_=ARRAY(BIGINT))
)
ENDS = text("SELECT min(id), max(id) FROM audit_log")
UNSEALED = text("SELECT count(*) FROM (SELECT FROM audit_log WHERE position IS NULL LIMIT :most) AS counted")

router = APIRouter(route_class=Page, include_in_schema=False)


class LogQuery(StrictQuery):
    """Filters for rows, and the page."""

    actor: Text = ""
    act: Text = ""
    target: Text = ""
    since: Text = ""
    until: Text = ""
    cursor: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None


@router.get("/audit")
def show_audit(query: Annotated[LogQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The audit log, the newest rows first."""
    filters = {name: getattr(query, name).strip() for name in FILTERS}
    return corrected(
        "audit",
        filters,
        lambda: _page(request, database, key, Typed("audit", filters), query.cursor),
        lambda typed: _shown(request, typed, rows=[], verified=None),
    )


def _page(request: Request, database: Reading, key: Key, typed: Typed, cursor: int | None) -> Response:
    filters = {name: value for name, value in typed.fields.items() if value}
    chosen = AuditFilter(namespace=key.scope.namespace, **_read(filters))
    signer = Signer.find(request.app.state.settings)
    with database.connect() as connection:
        found, following = _search(connection, chosen, cursor)
        valid = _signed(connection, signer, [row["id"] for row in found])
        # It is about all namespaces together.
        verified = _verified(connection, signer) if key.scope.is_whole else None
    rows = [{**row, **_changes(row), "signed": row["id"] in valid} for row in found]
    following_text = "Older acts" if len(rows) == ROWS else "Continue the search"
    return _shown(
        request,
        typed,
        rows=rows,
        verified=verified,
        next=following and {**filters, "cursor": following},
        next_text=following_text,
    )


def _shown(request: Request, typed: Typed, **values: Any) -> Response:
    more = {"most_counted": MOST_COUNTED, "most_searched": MOST_SEARCHED, **values}
    return show(request, "audit.html", "Audit log", typed, **more)


def _search(connection: Connection, chosen: AuditFilter, cursor: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """Return a page of rows and the cursor of the next. An index finds a target; without one, few rows are searched."""
    first, last = connection.execute(ENDS).one()
    before = (last or 0) + 1 if cursor is None else cursor
    after = before - 1 - MOST_SEARCHED if chosen.target is None else 0
    rows = log.list_rows(connection, chosen, limit=ROWS, before=before, after=after)
    if len(rows) > ROWS:
        return rows[:ROWS], rows[ROWS - 1]["id"]
    return rows, after + 1 if first is not None and after >= first else None


def _read(filters: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a filter. Times are written as in a query for tasks.

    Raises:
        InvalidInput: a time is none.
    """
    times = parse_query(written_query({name: filters[name] for name in ("since", "until") if name in filters}))
    named = {"created_after": "since", "created_before": "until"}
    plain = {name: value for name, value in filters.items() if name not in ("since", "until")}
    return {**plain, **{named[name]: value for name, value in times.items()}}


def _changes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that an act changed, and whether there are more than fit."""
    shown: list[tuple[str, str | None, str | None]] = []
    length = 0
    for name, before, after in changes_of(row):
        if length > LONGEST_CHANGES:
            return {"changes": shown, "is_cut": True}
        shown.append((name, before, after))
        length += len(name) + len(before or "") + len(after or "")
    return {"changes": shown, "is_cut": False}


def changes_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the fields that an act changed: name, value before and value after, as text; None: there is none."""
    before, after = row["before"] or {}, row["after"] or {}
    for name in {**before, **after}:
        if before.get(name) is not None or after.get(name) is not None:
            yield name, _value(before, name), _value(after, name)


def _value(facts: Mapping[str, Any], name: str) -> str | None:
    if name not in facts:
        return None
    value = facts[name]
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]}…"


def _signed(connection: Connection, signer: Signer | None, ids: list[int]) -> set[int]:
    """Return the rows whose signature is that of a process of this installation."""
    if signer is None:
        return set()
    rows = connection.execute(SIGNED, {"ids": ids}).mappings()
    return {row["id"] for row in rows if signer.is_row(row)}


def _verified(connection: Connection, signer: Signer | None) -> dict[str, Any]:
    """Return what is known about the chain without reading all of it."""
    head = chain.ends(connection).get("head")
    return {
        "has_key": signer is not None,
        "position": head and head[0].position,
        "is_signed": bool(head and signer and signer.is_end("head", *head)),
        "unsealed": connection.scalar(UNSEALED, {"most": MOST_COUNTED + 1}),
    }
