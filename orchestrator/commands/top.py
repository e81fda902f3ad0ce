"""A live view of the installation at the terminal: capabilities, workers, tasks, cost, alerts.

It reads what lists and pages read, at most once a second; figures that change slowly are read less often.
"""

from __future__ import annotations

import codecs
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from minions import Client, errors
from minions.backoff import exponential
from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, STATE_STYLES, console, interactive, print_json, styled
from shared.contracts.visible_text import one_line

MOST_WORKERS = 200
MOST_TASKS = 50
MOST_ALERTS = 5
SLOW_SECONDS = 15.0
"""Cost, alerts and workers are read this often at most."""
SORTS = ("pending", "name", "running", "oldest")
STATES = (None, "running", "waiting", "failed")
LONGEST_PAUSE = 10.0
"""Seconds between two readings while they fail, unless a refusal or `--interval` asks for more."""
KEYS = "q quit, s sort, t tasks, f filter, space now"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)


def top(
    interval: float = typer.Option(2.0, "--interval", min=1, max=3600, help="Seconds between two readings."),
    sort: str = typer.Option("pending", help="Order of capabilities: pending, name, running, oldest."),
    once: bool = typer.Option(False, "--once", help="Print it once; the default if the output is not a terminal."),
    as_json: bool = AS_JSON,
) -> None:
    """Show capabilities, workers, the newest tasks, cost and alerts, live."""
    if sort not in SORTS:
        raise typer.BadParameter(f"--sort must be one of {', '.join(SORTS)}, not {sort!r}")
    live = not (as_json or once) and interactive() and sys.stdin.isatty()
    # The live view has its own pauses, in which keys work.
    with connect(retries=0 if live else 1) as client:
        view = View(sort=sort)
        readings = Readings(client)
        if live:
            _watch(readings, view, interval)
        elif as_json:
            print_json(readings.read(view.state))
        else:
            console.print(Group(*view.parts(readings.read(view.state), None)))


@dataclass
class Readings:
    """Reads the parts of the view. A part that this key may not read is a sentence in place of its value."""

    client: Client
    slow: dict[str, Any] = field(default_factory=dict)
    slow_at: float | None = None

    def read(self, state: str | None) -> dict[str, Any]:
        """Return the parts.

        Args:
            state: of the tasks that are listed; None: any.

        Raises:
            Unavailable: the API cannot be reached.
        """
        if self.slow_at is None or time.monotonic() - self.slow_at >= SLOW_SECONDS:
            self.slow = {
                "workers": _permitted(lambda: list(islice(self.client.workers("online"), MOST_WORKERS))),
                "cost_today": _permitted(self._cost_today),
                "alerts": _permitted(lambda: list(islice(self.client.alerts(state="firing"), MOST_ALERTS))),
            }
            self.slow_at = time.monotonic()
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "capabilities": _permitted(self.client.capabilities),
            **self.slow,
            "tasks": _permitted(lambda: self._tasks(state)),
        }

    def _cost_today(self) -> float:
        """Return the dollars since midnight UTC, of work that has been counted."""
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return float(self.client.costs(by=("day",), since=midnight)["total"]["dollars"])

    def _tasks(self, state: str | None) -> list[dict[str, Any]]:
        found = islice(self.client.tasks(state=state, page=MOST_TASKS), MOST_TASKS)
        facts = ("id", "agent", "state", "capability", "created_at", "finished_at")
        return [{name: getattr(task, name) for name in facts} for task in found]


@dataclass
class View:
    """What a person has chosen to see.

    Attributes:
        typed: the filter while it is typed; None if it is not.
    """

    sort: str = SORTS[0]
    state: str | None = None
    filter: str = ""
    typed: str | None = None

    def press(self, key: str) -> bool:
        """Do what a key says; return False if it ends the view."""
        if self.typed is not None:
            self._type(key)
        elif key == "q":
            return False
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key == "t":
            self.state = STATES[(STATES.index(self.state) + 1) % len(STATES)]
        elif key == "f":
            self.typed = ""
        return True

    def _type(self, key: str) -> None:
        assert self.typed is not None
        if key in ("\r", "\n"):
            self.filter, self.typed = self.typed, None
        elif key == "\x1b":
            self.typed = None
        elif key in ("\x7f", "\b"):
            self.typed = self.typed[:-1]
        elif key.isprintable():
            self.typed += key

    def parts(self, read: dict[str, Any], rows: int | None, trouble: str | None = None) -> Iterator[RenderableType]:
        """Yield what is shown.

        Args:
            rows: height of the terminal; None: no limit.
            trouble: why the figures are old.
        """
        left = (rows or 1000) - 4
        yield _head(read, trouble)
        yield styled((one_line(self._status()), "dim") if rows else "")
        for alert in _items(read["alerts"]):
            yield styled((one_line(f"! {alert['rule']}: {alert['sentence']}")[: console.width], "bold red"))
            left -= 1
        for part, share in ((self._capabilities(read), 0.4), (self._workers(read), 0.5), (self._tasks(read), 1.0)):
            columns, lines = part
            shown = lines[: max(1, int(left * share) - 2)]
            left -= len(shown) + 2
            yield _table(columns, shown)
            yield ""

    def _status(self) -> str:
        if self.typed is not None:
            return f"filter: {self.typed}_ (Enter, Esc)"
        chosen = [
            f"sort {self.sort}",
            f"tasks {self.state or 'all'}",
            *([f"filter {self.filter!r}"] * bool(self.filter)),
        ]
        return f"{', '.join(chosen)} | {KEYS}"[: console.width]

    def _capabilities(self, read: dict[str, Any]) -> tuple[Any, Any]:
        found = [each for each in _items(read["capabilities"]) if self._matches(each["name"], *each["agents"])]
        orders: dict[str, Callable[[dict[str, Any]], Any]] = {
            "name": lambda each: each["name"],
            "pending": lambda each: (-each["pending"], each["name"]),
            "running": lambda each: (-each["running"], each["name"]),
            "oldest": lambda each: (each.get("oldest_pending") or "~", each["name"]),
        }
        rows = [
            (
                c["name"],
                c["pending"],
                c["queued"],
                c["running"],
                f"{c['busy']}/{c['slots']}" if c["served"] else "NO WORKER",
                _age(c.get("oldest_pending"), read["at"]),
            )
            for c in sorted(found, key=orders[self.sort])
        ]
        return ("capability", "pending", "queued", "running", "slots", "oldest"), _or_refusal(
            read["capabilities"], rows
        )

    def _workers(self, read: dict[str, Any]) -> tuple[Any, Any]:
        found = [w for w in _items(read["workers"]) if self._matches(w["name"], *w["capabilities"])]
        rows = [
            (w["name"], f"{w['busy']}/{w['slots']}", _age(w["last_seen"], read["at"]), ", ".join(w["capabilities"]))
            for w in found
        ]
        return ("worker", "slots", "seen", "capabilities"), _or_refusal(read["workers"], rows)

    def _tasks(self, read: dict[str, Any]) -> tuple[Any, Any]:
        found = [t for t in _items(read["tasks"]) if self._matches(t["id"], t["agent"], t["state"], t["capability"])]
        rows = [(t["id"], t["agent"], t["state"], _age(t["created_at"].isoformat(), read["at"])) for t in found]
        return ("task", "agent", "state", "age"), _or_refusal(read["tasks"], rows)

    def _matches(self, *texts: str | None) -> bool:
        return any(self.filter.casefold() in (text or "").casefold() for text in texts)


def _head(read: dict[str, Any], trouble: str | None) -> RenderableType:
    at = datetime.fromisoformat(read["at"]).astimezone().strftime("%H:%M:%S")
    capabilities, workers = _items(read["capabilities"]), _items(read["workers"])
    counts = {name: sum(each[name] for each in capabilities) for name in ("pending", "queued", "running")}
    cost = read["cost_today"]
    work = ", ".join(f"{number} {name}" for name, number in counts.items())
    slots = f"{sum(w['busy'] for w in workers)}/{sum(w['slots'] for w in workers)} slots of {len(workers)} workers"
    dollars = f"${cost:.4f} today (UTC)" if isinstance(cost, float) else "cost: not permitted"
    old = f"\n{trouble}"[: console.width] if trouble else ""
    return styled((f"minion top {at}", "bold"), f" {work}\n{slots}, {dollars}", (old, "bold red"))


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis", min_width=36 if column == "task" else None)
    for row in rows:
        texts = ["" if value is None else one_line(str(value)) for value in row]
        table.add_row(*(styled((text, STATE_STYLES.get(text, ""))) for text in texts))
    return table


def _permitted(load: Callable[[], Any]) -> Any:
    """Return a part, or the sentence of its refusal."""
    try:
        return load()
    except errors.Forbidden as error:
        return error.message


def _items(part: Any) -> list[dict[str, Any]]:
    return part if isinstance(part, list) else []


def _or_refusal(part: Any, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(part,)] if isinstance(part, str) else rows


def _age(since: str | None, now: str) -> str:
    if since is None:
        return ""
    seconds = max(0.0, (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds())
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _watch(readings: Readings, view: View, interval: float) -> None:
    """Show the view until a key ends it. While the API refuses or cannot be reached, the last figures stay."""
    read, trouble, failures = readings.read(view.state), None, 0
    with _keys() as wait_for_key, Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + interval
        while True:
            live.update(Group(*view.parts(read, console.height, trouble)), refresh=True)
            key = wait_for_key(max(0.0, due - time.monotonic()))
            if key is not None and not view.press(key):
                return
            if key is None or (key in (" ", "t") and view.typed is None):
                try:
                    read, trouble, failures = readings.read(view.state), None, 0
                    due = time.monotonic() + interval
                except errors.Unauthorized:
                    raise
                except errors.MinionsError as error:
                    failures += 1
                    pause = _pause_after(error, failures, interval)
                    trouble = one_line(f"Old figures; the next in {pause:.0f} s. {error.message}")
                    due = time.monotonic() + pause


def _pause_after(error: errors.MinionsError, failures: int, interval: float) -> float:
    """Return the seconds until the next reading: at least as many as a refusal asks for, and more at each failure."""
    asked = error.detail.get("retry_after")
    own = exponential(failures, first=interval, longest=max(interval, LONGEST_PAUSE))
    return max(own, float(asked)) if isinstance(asked, int | float) else own


@contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """Read single keys: the value waits some seconds for one. "" is a resized window."""
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    with ExitStack() as restored:
        restored.callback(os.close, woken)
        restored.callback(os.close, wake)
        earlier = signal.signal(signal.SIGWINCH, lambda *_: os.write(wake, b"."))
        restored.callback(signal.signal, signal.SIGWINCH, earlier)
        restored.callback(termios.tcsetattr, keyboard, termios.TCSADRAIN, before)
        tty.setcbreak(keyboard)

        def wait_for_key(seconds: float) -> str | None:
            ready, _, _ = select.select([keyboard, woken], [], [], seconds)
            if woken in ready:
                os.read(woken, 1024)
                return ""
            if not ready:
                return None
            # The other side of a terminal that is gone sends nothing.
            return characters.decode(byte) if (byte := os.read(keyboard, 1)) else "q"

        yield wait_for_key
