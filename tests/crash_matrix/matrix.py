"""The matrix: servers, lanes, recorded runs, and the cells played on the lanes."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.database.connections import make_engine
from shared.database.schema import migrate
from shared.settings import Settings
from tests.crash_matrix.cells import Cell, Point, Strike, cells_of, recovery
from tests.crash_matrix.lane import Lane, Played
from tests.crash_matrix.process import Nursery
from tests.crash_matrix.verdict import broken, disturbed

ATTEMPTS = 3
# Runs with these strikes are recorded too, and struck at: a second death during the recovery from the first one.
FIRST_STRIKES = (
    Strike(Point("lead", "mail", "effect made"), "child"),
    Strike(Point("lead", "mail", "effect made"), "worker"),
)


@dataclass(frozen=True)
class Result:
    """The outcome of a cell.

    Attributes:
        broken: the promises that do not hold.
        again: the reasons why it was played again.
    """

    cell: Cell
    played: Played
    broken: list[str]
    again: list[str]


@contextmanager
def lanes(number: int, logs: Path | None = None) -> Iterator[list[Lane]]:
    """Provide this many lanes on separate servers."""
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_dir())
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))
        servers = stack.enter_context(EmbeddedServers(scratch / "servers", durable=False))
        nursery = stack.enter_context(Nursery(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))))
        addresses = servers.start()
        made = [f"lane{one}" for one in range(number)]
        urls = _databases(addresses.database_url, addresses.redis_url, made)
        opened = []
        for name in made:
            (folder / name).mkdir(parents=True)
            lane = Lane(folder / name, nursery, name, urls[name], addresses.redis_url)
            opened.append(stack.enter_context(lane))
        yield opened


def _databases(database_url: str, redis_url: str, names: Sequence[str]) -> dict[str, str]:
    """Create a database with the schema for each name; the schema is created once."""
    engine = make_engine(Settings(DATABASE_URL=database_url, REDIS_URL=redis_url))
    migrate(engine)
    engine.dispose()
    url = make_url(database_url)
    maker = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with maker.connect() as connection:
        for name in names:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {url.database}"))
    maker.dispose()
    return {name: url.set(database=name).render_as_string(hide_password=False) for name in names}


def all_cells(opened: Sequence[Lane]) -> list[Cell]:
    """Return the cells of the whole matrix, from runs that are recorded now.

    Raises:
        AssertionError: a recorded run itself breaks a promise.
    """
    recorded = play_all(opened, [Cell(()), *(Cell((first,)) for first in FIRST_STRIKES)])
    for result in recorded:
        assert not result.broken, f"{result.cell}: {result.broken}"
    plain, *struck = [result.played.trace for result in recorded]
    cells = cells_of(plain)
    for first, trace in zip(FIRST_STRIKES, struck, strict=True):
        cells += cells_of(recovery(trace, first), (first,))
    return cells


def play(lane: Lane, cell: Cell) -> Result:
    """Play a cell; play it again if something else disturbed its run."""
    again: list[str] = []
    while True:
        played = lane.play(cell)
        why = disturbed(played)
        if why is None or len(again) == ATTEMPTS - 1:
            return Result(cell, played, broken(played) + ([f"disturbed: {why}"] if why else []), again)
        again.append(why)


def play_all(
    opened: Sequence[Lane], cells: Sequence[Cell], tell: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Play cells on all lanes at the same time; return the results in the order of the cells."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(cells)):
        left.put(place)
    results: dict[int, Result] = {}
    faults: list[BaseException] = []

    def work(lane: Lane) -> None:
        try:
            while not faults:
                place = left.get_nowait()
                results[place] = play(lane, cells[place])
                tell(results[place])
        except queue.Empty:
            pass
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return [results[place] for place in sorted(results)]
