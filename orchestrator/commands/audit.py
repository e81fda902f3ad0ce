"""`minion audit`: read, export and verify the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import (
    AS_JSON,
    console,
    local_time,
    print_json,
    print_json_line,
    print_table,
    styled,
    zoned,
)
from shared.settings import get_settings

if TYPE_CHECKING:
    from shared.audit.verification import Report

app = typer.Typer(help="Read the audit log: list, export, verify.", invoke_without_command=True)
ACT = typer.Option(None, "--act", help="Only this act, such as task.cancel, or all that begin with task.: task.")
BY = typer.Option(None, "--by", metavar="NAME", help="Only acts of this key or user, or of keys with this prefix.")
TARGET = typer.Option(None, "--target", help="Only acts on this task, agent, key, …")
SINCE = typer.Option(None, "--since", help="Only acts since this time; without a zone, local time.")
UNTIL = typer.Option(None, "--until", help="Only acts before this time; without a zone, local time.")
LIMIT = typer.Option(50, "--limit", "-n", min=1, help="The maximum number of rows.")
MOST_SHOWN = 50
HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="audit")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_rows(None, None, None, None, None, 50, as_json=as_json)


@app.command("list")
def list_rows(
    act: str | None = ACT,
    by: str | None = BY,
    target: str | None = TARGET,
    since: datetime | None = SINCE,
    until: datetime | None = UNTIL,
    limit: int = LIMIT,
    as_json: bool = AS_JSON,
) -> None:
    """List acts, the newest first."""
    with connect() as client:
        rows = client.audit(act=act, actor=by, target=target, since=zoned(since), until=zoned(until))
        found = list(islice(rows, limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("at", "act", "actor", "key", "address", "target", "before", "after"),
        (
            (
                local_time(row["at"]),
                row["act"],
                row["actor"] + (f" (claims to be {row['claimed']})" if row["claimed"] else ""),
                row["key_prefix"],
                row["address"],
                row["target"],
                _facts(row["before"]),
                _facts(row["after"]),
            )
            for row in found
        ),
        empty="No acts.",
    )


@app.command()
def export(
    act: str | None = ACT,
    by: str | None = BY,
    target: str | None = TARGET,
    since: datetime | None = SINCE,
    until: datetime | None = UNTIL,
) -> None:
    """Print acts as JSON lines, the newest first."""
    with connect() as client:
        for row in client.audit(act=act, actor=by, target=target, since=zoned(since), until=zoned(until)):
            print_json_line(row)


@app.command()
def verify(
    head: str | None = typer.Option(
        None, metavar="POSITION:HASH", help="A head from an orchestrator's log, which must be in the chain."
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Check on the database that no row was changed, removed, moved or inserted. Exit code 1 if one was."""
    # Imported on use: lists go over HTTP and need no database layer.
    from shared.audit.signing import Link, Signer
    from shared.audit.verification import verify as check
    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database

    match = HEAD.fullmatch(head) if head else None
    if head and match is None:
        raise typer.BadParameter("--head must be a number, a colon and 64 hexadecimal digits, as in the log")
    signer = Signer.of(get_settings())
    wait_for_database(get_settings())
    with get_engine().connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        logged = Link(int(match[1]), bytes.fromhex(match[2])) if match else None
        report = check(connection, signer, logged_head=logged)
    if as_json:
        print_json(_as_json(report))
    else:
        _print_report(report)
    if report.faults:
        raise typer.Exit(1)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "intact": not report.faults,
        "rows": report.rows,
        "unsealed": report.unsealed,
        "pruned_through": report.start.position,
        "head": str(report.head),
        "begins_at": report.begins_at,
        "faults": [asdict(fault) for fault in report.faults],
    }


def _print_report(report: Report) -> None:
    for fault in report.faults[:MOST_SHOWN]:
        console.print(styled((f"{fault.kind}: ", "red"), fault.message))
    if more := report.faults[MOST_SHOWN:]:
        console.print(f"{len(more)} more faults; --json lists all.")
    pruned = f", after {report.start.position} that retention deleted" if report.start.position else ""
    console.print(f"{report.rows} rows in the chain{pruned}; {report.unsealed} are not sealed yet.")
    console.print(f"Head: {report.head}")
    console.print(f"{len(report.faults)} faults." if report.faults else "The audit log is intact.")


def _facts(facts: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in (facts or {}).items())


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return _joined(f"{name}: {item}" for name, item in value.items())
    return _joined(map(str, value)) if isinstance(value, list) else str(value)


def _joined(parts: Iterable[str]) -> str:
    return f"({', '.join(parts)})"
