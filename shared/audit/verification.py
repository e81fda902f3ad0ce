"""Verify the audit log: find rows that were changed, removed, moved or inserted, and a chain whose end was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import Connection, RowMapping, text

from shared.audit import chain
from shared.audit.signing import BEGINNING, Link, Signer

Kind = Literal["changed", "moved", "inserted", "removed", "truncated", "unsealed", "forged"]
# The sealer needs seconds. Rows of the last minutes have no place while no orchestrator runs.
PATIENCE = timedelta(minutes=10)
NOW = text("SELECT now()")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as the processes of this installation left it."""

    kind: Kind
    message: str
    position: int | None = None
    id: int | None = None


@dataclass(slots=True)
class Report:
    """Result of a verification.

    Attributes:
        rows: rows with a place in the chain.
        unsealed: rows without one yet.
        start: the checkpoint of the rows that retention deleted.
        head: the last place.
        begins_at: the time of the oldest row.
    """

    faults: list[Fault] = field(default_factory=list)
    rows: int = 0
    unsealed: int = 0
    start: Link = BEGINNING
    head: Link = BEGINNING
    begins_at: datetime | None = None


def verify(connection: Connection, signer: Signer, *, logged_head: Link | None = None) -> Report:
    """Check every row, its place, and both ends of the chain.

    Args:
        connection: in a transaction that sees one state of the database.
        logged_head: a place that the log of an orchestrator shows. It finds a database that was put back as a whole.
    """
    report = Report()
    ends = chain.ends(connection)
    for name, (link, signature) in ends.items():
        if not signer.is_end(name, link, signature):
            report.faults.append(Fault("forged", _end_forged(name), link.position))
    report.start = ends.get("start", (BEGINNING, b""))[0]
    known = _check_rows(connection, signer, report, logged_head)
    report.faults += _check_head(ends.get("head"), report.head)
    report.faults += _check_unsealed(connection, signer, report)
    report.faults += (_fault("inserted", row, "is a copy of another row") for row in chain.copies(connection))
    if logged_head is not None and not known and logged_head.position >= report.start.position:
        report.faults.append(
            Fault("truncated", f"The logged head, position {logged_head.position}, is not in the chain.")
        )
    return report


def _check_rows(connection: Connection, signer: Signer, report: Report, wanted: Link | None) -> bool:
    """Check the chain row by row; return whether the wanted place is in it."""
    previous, known = report.start, wanted == report.start
    for row in chain.sealed(connection):
        place = Link(row["position"], bytes(row["hash"] or b""))
        report.begins_at = report.begins_at or row["at"]
        report.rows += 1
        report.faults += _check_row(signer, previous, row)
        previous = place if place.position > previous.position else previous
        known = known or place == wanted
    report.head = previous
    return known


def _check_row(signer: Signer, previous: Link, row: RowMapping) -> Iterator[Fault]:
    position = row["position"]
    if position <= previous.position:
        yield _fault("inserted", row, "is before the checkpoint that retention left")
        return
    if position > previous.position + 1:
        yield Fault("removed", _removed(previous.position + 1, position - 1), previous.position + 1)
    follows = position > previous.position + 1 or signer.is_link(previous, row)
    match signer.is_row(row), follows:
        case True, False:
            yield _fault("moved", row, "is signed, but not for this place and time")
        case False, True:
            yield _fault("inserted", row, f"was {_unsigned(row)} when it was sealed")
        case False, False:
            yield _fault("changed", row, "matches neither its signature nor its hash")


def _check_head(stored: tuple[Link, bytes] | None, last: Link) -> Iterator[Fault]:
    if stored is None:
        if last != BEGINNING:
            yield Fault("forged", "The stored head is gone: the end of the chain may have been cut off.")
        return
    head = stored[0]
    if head.position > last.position:
        yield Fault("truncated", _removed(last.position + 1, head.position), last.position + 1)
    elif head.position < last.position:
        yield Fault("inserted", _beyond(head.position, last.position), head.position + 1)
    elif head.hash != last.hash:
        yield Fault("changed", f"The row at position {last.position} is not the one of the head.", last.position)


def _check_unsealed(connection: Connection, signer: Signer, report: Report) -> Iterator[Fault]:
    now = connection.execute(NOW).scalar_one().astimezone(UTC)
    for row in chain.unsealed(connection):
        report.unsealed += 1
        if not signer.is_row(row):
            yield _fault("inserted", row, f"is {_unsigned(row)}")
        elif now - row["at"] > PATIENCE:
            yield _fault("unsealed", row, "has no place in the chain yet. Does an orchestrator with the key run?")


def _fault(kind: Kind, row: RowMapping, what: str) -> Fault:
    where = f" at position {row['position']}" if row["position"] is not None else ""
    return Fault(kind, f"Row {row['id']}{where} ({row['act']}) {what}.", row["position"], row["id"])


def _unsigned(row: RowMapping) -> str:
    if row["signature"] is None:
        return "not signed: its writer had no MINION_SECRET_KEY"
    return "not signed with a key of this installation"


def _removed(first: int, last: int) -> str:
    if first == last:
        return f"The row at position {first} is gone."
    return f"The rows at positions {first} to {last} are gone."


def _beyond(head: int, last: int) -> str:
    return f"The chain has rows up to position {last}, but its head is at {head}."


def _end_forged(name: str) -> str:
    what = "The checkpoint of retention" if name == "start" else "The head of the chain"
    return f"{what} is not signed with a key of this installation."
