"""One system of the matrix (database, worker, orchestrator, model and web service) and the cells played on it.

Lanes share only the two servers, so that several can play at the same time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx2
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from minions import testing
from orchestrator.tracing.state import read_metrics
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import make_engine
from shared.definitions.store import DefinitionStore
from shared.settings import Settings
from shared.tasks.queries import get_task
from shared.tasks.states import FINAL
from shared.tasks.submission import submit_within
from shared.trace_context import claim_span, step_span, task_span
from tests.chaos import audit
from tests.crash_matrix import points, tools
from tests.crash_matrix.cells import Cell, Hit, Point, Strike
from tests.crash_matrix.process import Nursery, ProductProcess, freeze, thaw
from tests.crash_matrix.world import AGENTS, BUILTIN, IMAGE, OF_CODER, RESULTS, Model, definitions, web_service
from tests.support.lanes import is_alive, lanes_of
from tests.support.otlp_receiver import collecting
from tests.support.processes import ONLINE, wait_until

PATIENCE = 30.0
HEARTBEAT, LEASE, LOST_MESSAGE, LOST_BATCH = 0.2, 1.0, 0.5, 2.0
QUIET_SECONDS = 0.05
LOOK_SECONDS = 0.1
ASKED = ("ask", "after commit")
LAST = ("lead", "finish", "after commit")
API_KEY = "crash-crash-crash"
# The interruption may also come while the fenced process writes its record: the main process then reports it.
FENCED = re.compile(r'"event": "(claim_lost|child_lost|given_back)"')

TREE = text(
    "SELECT t.agent_name AS agent, s.state FROM tasks t JOIN task_status s ON s.task_id = t.id WHERE t.root_id = :root"
)
STEPS = text(
    "SELECT t.agent_name AS agent, s.number, s.kind, s.name, s.status, s.effect FROM steps s "
    "JOIN tasks t ON t.id = s.task_id WHERE t.root_id = :root ORDER BY t.id, s.number"
)
RUNNING = text(
    "SELECT t.agent_name AS agent, e.claim FROM executions e JOIN tasks t ON t.id = e.task_id "
    "WHERE t.root_id = :root AND e.outcome = 'running'"
)
SUCCEEDED = text(
    "SELECT t.agent_name AS agent, e.claim FROM executions e JOIN tasks t ON t.id = e.task_id "
    "WHERE t.root_id = :root AND e.outcome = 'succeeded'"
)
CLAIMS = text(
    "SELECT t.agent_name AS agent, count(*) AS claims FROM executions e JOIN tasks t ON t.id = e.task_id "
    "WHERE t.root_id = :root GROUP BY 1"
)
OUR_NAME = "crash matrix"
NAMED = f"SET application_name = '{OUR_NAME}'"
CUT = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name <> :ours AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
LOST_WORKER = text("SELECT 1 FROM workers WHERE pid = :pid AND status = 'lost'")
AT_WORK = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
STATE = text("SELECT state FROM task_status WHERE task_id = :task")
FOR_PEOPLE = text(
    "SELECT t.id, t.agent_name AS agent, s.wait_reason FROM tasks t JOIN task_status s ON s.task_id = t.id "
    "WHERE t.root_id = :root AND s.state = 'waiting' AND s.wait_reason IN ('approval', 'answer')"
)
INTERRUPTED = text(
    "SELECT name FROM steps WHERE task_id = :task AND status = 'started' AND effect = 'unsafe' ORDER BY number LIMIT 1"
)
SPANS = text(
    "SELECT t.root_id, s.task_id, s.number, 'step' AS kind FROM steps s JOIN tasks t ON t.id = s.task_id "
    "UNION ALL SELECT t.root_id, e.task_id, e.claim, 'claim' FROM executions e JOIN tasks t ON t.id = e.task_id "
    "UNION ALL SELECT t.root_id, o.task_id, 0, 'task' FROM task_outcomes o JOIN tasks t ON t.id = o.task_id"
)
BEGIN_TRACES = text("INSERT INTO tracing_state (exported_below) VALUES (0)")
FILES = text("SELECT file_id FROM task_files WHERE task_id = :root")
NOTES = text("SELECT command FROM memory_changes WHERE task_id = :root ORDER BY number")
WHOSE = text("SELECT agent_name, root_id FROM tasks WHERE id = :task")


@dataclass(frozen=True, slots=True)
class Done:
    """An event outside the product: a model request (`model 3`: the third turn), or a tool's effect.

    Attributes:
        phase: the number of earlier strikes.
        key: the idempotency key, if one was sent.
    """

    agent: str
    what: str
    phase: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents of PostgreSQL after a strike.

    Attributes:
        finished: steps as (agent, what), as in `Done`.
        begun: steps that were started and not finished.
        interrupted: unsafe steps that were started and not finished.
        lost: executions as (agent, claim) that ended with the victim, or were taken from it.
    """

    strike: Strike
    finished: frozenset[tuple[str, str]]
    interrupted: frozenset[tuple[str, str]]
    lost: frozenset[tuple[str, int]]
    begun: frozenset[tuple[str, str]] = frozenset()


@dataclass
class Played:
    """A finished run with all observations.

    Attributes:
        reached: the number of strikes whose points have been reached. Each of them waits until those before it have
            been noted as snapshots.
        files: ids of those that the task refers to.
        notes: the commands that changed its memory.
    """

    cell: Cell
    reached: int = 0
    trace: list[Hit] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    questions: int = 0
    state: str = "not ended"
    output: Any = None
    error: Any = None
    tree: Counter[tuple[str, str]] = field(default_factory=Counter)
    claims: dict[str, int] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    left_open: int = 0
    seconds: float = 0.0


class Lane:
    """Everything that a cell needs. Ends with the block.

    Args:
        folder: for logs, sockets and records.
        database_url: an empty database with the schema.
    """

    def __init__(self, folder: Path, nursery: Nursery, name: str, database_url: str, redis_url: str) -> None:
        self.folder = folder
        self.nursery = nursery
        self.name = name
        self.record = folder / "record"
        self.engine: Engine = make_engine(Settings(DATABASE_URL=database_url, REDIS_URL=redis_url))
        event.listen(self.engine, "connect", _name)
        self.env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "MINION_API_KEY": API_KEY,
            "MINION_API_PORT": "0",
            "MINION_DATA_DIR": str(folder / "data"),
            "MINION_LOG_FORMAT": "json",
            "MINION_LEASE_SECONDS": str(LEASE),
            "MINION_HEARTBEAT_SECONDS": str(HEARTBEAT),
            "MINION_LOST_MESSAGE_SECONDS": str(LOST_MESSAGE),
            "MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.0/8",
            "ANTHROPIC_API_KEY": testing.KEY,
            "MINION_BATCH_SECONDS": "0",
            "MINION_BATCH_POLL_SECONDS": "0.02",
            "MINION_BATCH_LOST_SECONDS": str(LOST_BATCH),
            "NO_PROXY": "127.0.0.1",
            points.ADDRESS: str(folder / "points"),
            tools.RECORD: str(self.record),
        }
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._played: Played | None = None
        self._root: UUID | None = None
        self._whose: dict[str, str | None] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._labels: dict[tuple[str, str], str] = {}
        self._working: tuple[int, str] | None = None
        self._striking = threading.Lock()
        self._thawed: list[ProductProcess] = []
        self._logged = 0
        self._news = threading.Event()
        self._runs = 0

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(self.engine.dispose)
            self.record.touch()
            service = self._stack.enter_context(web_service(self._web_received, self._web_made))
            model = self._stack.enter_context(testing.messages_api(Model(self._model_seen)))
            self.env["ANTHROPIC_BASE_URL"] = model.url
            self.collector = self._stack.enter_context(collecting())
            self.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.collector.url
            self._stack.enter_context(_listening(Path(self.env[points.ADDRESS]), self._handle_point))
            with self.engine.begin() as connection:
                audit.install(connection)
                connection.execute(BEGIN_TRACES)
            with Session(self.engine) as session, session.begin():
                offered = [parse_definition(one) for one in definitions(self.name, service)]
                DefinitionStore(session, validate_code=lambda function: None).apply(offered)
            self._stack.callback(self._end)
            self.worker, self.orchestrator = self._start_worker(), self._start_orchestrator()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ------------------------------------------------------------------------------------------ a cell

    def play(self, cell: Cell) -> Played:
        """Run one task and strike as the cell demands; `verdict` judges the result."""
        self._wait_ready()
        begun = time.monotonic()
        played = self._begin(cell)
        try:
            self._follow(played, begun + PATIENCE)
        finally:
            with self._striking, self._lock:
                self._played = None
        self._collect(played)
        while self._thawed:
            self._thawed.pop().kill()
        played.seconds = time.monotonic() - begun
        return played

    def findings(self) -> list[str]:
        """Return what the independent record of all transitions, and the received spans, show to be wrong."""
        with self.engine.connect() as connection:
            return audit.examine(connection).broken(len(AGENTS) * self._runs) + self._wrong_spans()

    def _wrong_spans(self) -> list[str]:
        """Return the differences between the rows of all runs and the spans that the collector has received."""
        self._wait_ready()
        wait_until(self._is_exported, "everything is exported", PATIENCE)
        with self.engine.connect() as connection:
            rows = connection.execute(SPANS).all()
        ids = {"step": step_span, "claim": claim_span, "task": lambda task, _: task_span(task)}
        expected = {
            (row.root_id.bytes, ids[row.kind](row.task_id, row.number)): f"{row.kind} {row.number} of {row.task_id}"
            for row in rows
        }
        found = {(span.trace_id, span.span_id): span.name for span in self.collector.spans()}
        missing = [f"no span of {name}" for key, name in expected.items() if key not in found]
        return missing + [f"a span of nothing: {name}" for key, name in found.items() if key not in expected]

    def _is_exported(self) -> bool:
        with self.engine.connect() as connection:
            exported = read_metrics(connection)
        return exported is not None and not exported["age"]

    def _begin(self, cell: Cell) -> Played:
        self._runs += 1
        self.record.write_bytes(b"")
        self._counts.clear()
        self._labels.clear()
        self._whose.clear()
        self._working = None
        said = [{"role": "user", "content": [IMAGE, {"type": "text", "text": f"Run {self._runs}."}]}]
        request = TaskRequest(agent="lead", messages=said, key=f"run-{self._runs}")
        with self._lock:
            played = self._played = Played(cell)
            # The first points wait at the lock until their task is known.
            with self.engine.begin() as connection:
                [accepted] = submit_within(connection, [request], submitted_by="crash-matrix")
            self._root = accepted.task_id
        return played

    def _follow(self, played: Played, deadline: float) -> None:
        """Decide as an operator must, until the task has ended."""
        asked: set[UUID] = set()
        while time.monotonic() < deadline:
            self._news.wait(LOOK_SECONDS)
            self._news.clear()
            with self.engine.connect() as connection:
                state = connection.scalar(STATE, {"task": self._root})
                waiting = connection.execute(FOR_PEOPLE, {"root": self._root}).all()
            for task in waiting:
                if task.wait_reason == "answer":
                    self._answer(played, task.id, task.agent)
                    continue
                if task.id not in asked:
                    self._point(task.agent, "refund", "a person is asked", "test")
                asked.add(task.id)
                if self._decide(task.id, {"verdict": "approve"}):
                    self._point(task.agent, "refund", "approved", "test")
            if state in FINAL:
                with suppress(AssertionError):
                    wait_until(lambda: self._is_over(played), "the last point", 2)
                return

    def _answer(self, played: Played, task: UUID, agent: str) -> None:
        """Answer as a person who checks for an unsafe effect, once no process is left that could cause it."""
        if self._thawed and any(snapshot.lost for snapshot in played.snapshots):
            thawed = self._thawed[-1]
            try:
                wait_until(lambda: FENCED.search(thawed.output(), self._logged), "the thawed one is fenced")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{played.cell}: {thawed.timeout_message()}") from None
        with self.engine.connect() as connection:
            tool = connection.scalar(INTERRUPTED, {"task": task})
        self._read_record(played)
        happened = any((done.agent, done.what) == (agent, tool) for done in played.done)
        results = OF_CODER if agent == "coder" else RESULTS
        self._decide(task, {"verdict": "result", "value": results[tool]} if happened else {"verdict": "again"})

    def _decide(self, waiting: UUID, decision: dict[str, Any]) -> bool:
        """Call the API; return False if it is unavailable, or the decision has been made already."""
        address = self.orchestrator.api_address()
        if address is None:
            return False
        task, headers = f"{address}/v1/tasks/{waiting}", {"Authorization": f"Bearer {API_KEY}"}
        try:
            why = httpx2.get(f"{task}/why", headers=headers, timeout=5)
            if why.status_code != 200 or "proposal" not in why.json()["facts"]:
                return False
            seen = {**decision, "proposal": why.json()["facts"]["proposal"]}
            response = httpx2.post(f"{task}/decisions", json=seen, headers=headers, timeout=5)
        except httpx2.TransportError:
            return False
        # 503: the API's own connection was cut.
        assert response.status_code in (200, 409, 503), response.text
        return response.status_code == 200

    @staticmethod
    def _is_over(played: Played) -> bool:
        """Return whether the process that ended the task has reported that."""
        return any((hit.point.agent, hit.point.step, hit.point.where) == LAST for hit in tuple(played.trace))

    # ------------------------------------------------------------------------------------------ points

    def _handle_point(self, step: str, where: str, task: str | None, pid: int) -> bool:
        """Handle a process that reached a point; return when it may continue, and whether it loses an answer."""
        agent = self._agent_of(task) if task else ""
        if agent is None:
            return False
        if pid == self.orchestrator.pid:
            source = "orchestrator"
        elif pid == self.worker.pid:
            source = "main"
        else:
            source = "lane" if pid in lanes_of(self.nursery.lanes) else "slot"
            self._working = (pid, agent)
        return self._point(agent, step, where, source, pid)

    def _model_seen(self, agent: str, turn: int, where: str) -> None:
        with self._lock:
            if self._played is not None and where == "request received":
                self._played.done.append(Done(agent, f"model {turn}", len(self._played.snapshots)))
        self._point(agent, self._labels.get((agent, "model"), f"model {turn}"), where, "server")

    def _web_received(self, tool: str) -> int:
        """Record a request of an HTTP tool; return the number of strikes before it."""
        phase = self._phase()
        self._point("lead", tool, "request received", "server")
        return phase

    def _web_made(self, tool: str, key: str | None, phase: int) -> None:
        with self._lock:
            if self._played is not None:
                self._played.done.append(Done("lead", tool, phase, key))
        self._point("lead", tool, "effect made", "server")

    def _phase(self) -> int:
        with self._lock:
            return len(self._played.snapshots) if self._played is not None else 0

    def _point(self, agent: str, step: str, where: str, source: str, pid: int = 0) -> bool:
        """Record that the run has reached a point; strike if the cell says so. Return True to lose an answer.

        Args:
            pid: the process at the point, if it is a slot or the lane.
        """
        with self._lock:
            played = self._played
            if played is None:
                return False
            self._counts[agent, step, where] += 1
            point = Point(agent, step, where, self._counts[agent, step, where])
            if step.startswith("model, "):
                self._labels[agent, "model"] = step
            if where == "called" and step == "double":
                played.done.append(Done(agent, step, len(played.snapshots)))
            played.trace.append(Hit(point, source, self._working is not None))
            if step in ("ask", "finish") or step.startswith("suspend"):
                self._news.set()
            strike = self._next_strike(played)
            if strike is None or strike.point != point:
                return False
            played.reached += 1
        with self._striking:
            if self._played is not played:
                return False  # The cell has ended in the meantime.
            # Others reach points while the strike is made, so the process is chosen once.
            child = pid if source in ("slot", "lane") else self._working and self._working[0]
            self._strike(played, strike, source, child)
        return _loses_answer(strike)

    def _agent_of(self, task: str) -> str | None:
        """Return the name of the agent of a task; None for a task of an earlier cell."""
        with self._lock:
            root = self._root
        if task not in self._whose:
            with self.engine.connect() as connection:
                row = connection.execute(WHOSE, {"task": task}).one_or_none()
            self._whose[task] = row.agent_name if row and row.root_id == root else None
        return self._whose[task]

    @staticmethod
    def _next_strike(played: Played) -> Strike | None:
        return next(iter(played.cell.strikes[played.reached :]), None)

    # ------------------------------------------------------------------------------------------ striking

    def _strike(self, played: Played, strike: Strike, source: str, child: int | None) -> None:
        """Kill the victim and start another process in its place, or freeze it, or cut connections. The process at the
        point waits in the meantime.
        """
        if strike.victim in ("frozen", "connection"):
            frozen = self._freeze(source) if strike.victim == "frozen" else []
            snapshot = self._snapshot(played, strike, source)
            if strike.victim == "frozen":
                self._note(played, snapshot)
                self._replace(snapshot, source)
                thaw(frozen)
                return
            if not _loses_answer(strike):
                with self.engine.connect() as connection:
                    connection.execute(CUT, {"ours": OUR_NAME})
        elif strike.victim in ("child", "lane"):
            # The worker lives and reports the loss at once. Nothing must run again before it has been looked at.
            frozen = self.orchestrator.freeze()
            try:
                snapshot = self._snapshot(played, strike, source, self._lose(played, strike, child))
                self._note(played, snapshot)
            finally:
                thaw(frozen)
            return
        else:
            self._kill(strike, child)
            snapshot = self._snapshot(played, strike, source)
        self._note(played, snapshot)

    def _lose(self, played: Played, strike: Strike, child: int | None) -> set[tuple[str, int]]:
        """Kill a process of the worker; return the executions that the worker loses with it."""
        # It must not claim another task between this look and its end, nor be about to.
        freeze(self._children(strike, child))
        with suppress(AssertionError):
            wait_until(self._is_quiet, "its statements are over", 1)
        running = self._running()
        self._kill(strike, child)
        # The worker also records the ends in a pack that its slot had not committed.
        with suppress(AssertionError):
            wait_until(lambda: self._is_reported(played, running), "the worker has reported", 5)
        return running - self._executions(SUCCEEDED)

    def _is_reported(self, played: Played, running: set[tuple[str, int]]) -> bool:
        """Return whether the worker has reported the loss, or waits at the next strike's point."""
        return played.reached > len(played.snapshots) + 1 or not self._running() & running

    def _note(self, played: Played, snapshot: Snapshot) -> None:
        """Attribute everything from now on to the time after the strike."""
        self._read_record(played)
        with self._lock:
            played.snapshots.append(snapshot)

    def _kill(self, strike: Strike, child: int | None) -> None:
        if strike.victim == "orchestrator":
            self.orchestrator.kill()
            self.orchestrator = self._start_orchestrator()
        elif strike.victim == "worker":
            self.worker.kill()
            self.worker = self._start_worker()
        elif child is not None:
            for pid in self._children(strike, child):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if strike.victim == "lane":
                wait_until(lambda: not is_alive(child), "the slot has ended with the lane", 5)
        if strike.victim != "orchestrator":
            # Requests that the victim sent must arrive before they are counted.
            time.sleep(QUIET_SECONDS)
            self._working = None

    def _children(self, strike: Strike, child: int | None) -> list[int]:
        """Return the processes of the worker that the strike kills: the one at the point, or the lane."""
        if strike.victim == "lane":
            return lanes_of(self.nursery.lanes, self.worker.pid)
        return [] if child is None else [child]

    def _freeze(self, source: str) -> list[int]:
        """Freeze the process at the point, or the worker that waits for a reply; return all its processes."""
        victim = self.orchestrator if source == "orchestrator" else self.worker
        self._thawed.append(victim)
        self._logged = len(victim.output())
        return victim.freeze()

    def _replace(self, snapshot: Snapshot, source: str) -> None:
        """Wait until another process has taken over from the frozen one."""
        victim = self._thawed[-1]
        if source == "orchestrator":
            self.orchestrator = self._start_orchestrator()
            wait_until(lambda: self.orchestrator.api_address() is not None, self.orchestrator.timeout_message(), 60)
            time.sleep(LEASE)
        else:
            self.worker = self._start_worker()
            wait_until(lambda: self._is_lost(victim, snapshot), "the frozen worker's task has been claimed again", 20)

    def _is_lost(self, worker: ProductProcess, snapshot: Snapshot) -> bool:
        running = self._running()
        with self.engine.connect() as connection:
            claims = {row.agent: row.claims for row in connection.execute(CLAIMS, {"root": self._root})}
            claimed = all(claims[agent] > claim for agent, claim in snapshot.lost)
            lost = connection.scalar(LOST_WORKER, {"pid": worker.pid}) is not None
        return lost and claimed and not running & snapshot.lost

    def _running(self) -> set[tuple[str, int]]:
        return self._executions(RUNNING)

    def _executions(self, which: Any) -> set[tuple[str, int]]:
        with self.engine.connect() as connection:
            return {(row.agent, row.claim) for row in connection.execute(which, {"root": self._root})}

    def _snapshot(
        self, played: Played, strike: Strike, source: str, running: set[tuple[str, int]] | None = None
    ) -> Snapshot:
        wait_until(self._is_quiet, "the statements of the dead are over", 5)
        with self.engine.connect() as connection:
            rows = connection.execute(STEPS, {"root": self._root}).mappings().all()
        running = self._running() if running is None else running
        # A claim whose answer is cut off is lost too: its worker does not know that it has the task.
        unheard = _loses_answer(strike) and strike.point.step in ("claim", "claim_pack")
        stays = strike.victim in ("orchestrator", "connection") and not unheard
        if stays or (strike.victim == "frozen" and source == "orchestrator"):
            running = set()
        lost_before = {one for snapshot in played.snapshots for one in snapshot.lost}
        steps = list(zip(named(rows), rows, strict=True))
        begun = [(what, row) for what, row in steps if row["status"] == "started"]
        return Snapshot(
            strike,
            frozenset(what for what, row in steps if row["status"] == "finished"),
            frozenset(what for what, row in begun if row["effect"] == "unsafe"),
            frozenset(running - lost_before),
            frozenset(what for what, _ in begun),
        )

    def _is_quiet(self) -> bool:
        with self.engine.connect() as connection:
            return bool(connection.scalar(AT_WORK) == 0)

    def _read_record(self, played: Played) -> None:
        """Add what the builtin tools have recorded since the last look."""
        lines = self.record.read_text().splitlines()
        with self._lock:
            known = sum(done.what in BUILTIN for done in played.done)
            for line in lines[known:]:
                wrote = json.loads(line)
                played.done.append(Done(wrote["agent"], wrote["tool"], len(played.snapshots), wrote["key"]))

    def _collect(self, played: Played) -> None:
        self._read_record(played)
        played.questions = sum((hit.point.step, hit.point.where) == ASKED for hit in played.trace)
        root = {"root": self._root}
        with self.engine.connect() as connection:
            task = get_task(connection, self._root)  # type: ignore[arg-type]
            played.state, played.output, played.error = task["state"], task["output"], task["error"]
            played.tree = Counter((row.agent, row.state) for row in connection.execute(TREE, root))
            played.claims = {row.agent: row.claims for row in connection.execute(CLAIMS, root)}
            played.steps = [dict(row) for row in connection.execute(STEPS, root).mappings()]
            played.files = set(connection.scalars(FILES, root))
            played.notes = list(connection.scalars(NOTES, root))
            played.left_open = len(connection.execute(RUNNING, root).all())

    # ------------------------------------------------------------------------------------------ processes

    def _start_worker(self) -> ProductProcess:
        name = f"{self.name}-{time.monotonic_ns()}@%h"
        options = ["-Q", self.name, "-c", "1", "-n", name, "--without-mingle", "--without-gossip"]
        return self._start("worker", ["-A", "workers.app", "worker", *options])

    def _start_orchestrator(self) -> ProductProcess:
        return self._start("orchestrator", [])

    def _start(self, role: str, argv: list[str]) -> ProductProcess:
        return self.nursery.start(role, argv, self.env, self.folder / f"{role}-{time.monotonic_ns()}.log")

    def _end(self) -> None:
        self.worker.kill()
        self.orchestrator.kill()

    def _wait_ready(self) -> None:
        wait_until(lambda: self.orchestrator.api_address() is not None, self.orchestrator.timeout_message(), 60)
        wait_until(self._is_online, self.worker.timeout_message(), 60)

    def _is_online(self) -> bool:
        with suppress(DBAPIError), self.engine.connect() as connection:
            return connection.scalar(ONLINE, {"pid": self.worker.pid}) is not None
        return False


def _name(connection: Any, _: object) -> None:
    """Name the test's connections, so that they differ from the product's."""
    connection.execute(NAMED)
    connection.commit()


def _loses_answer(strike: Strike) -> bool:
    """Return whether the statement is committed and its answer lost. (The waker's has no task: it gets the answer.)"""
    committed = strike.point.where.endswith("after commit") and strike.point.step != "wake"
    return strike.victim == "connection" and committed


def named(rows: Any) -> list[tuple[str, str]]:
    """Return steps as (agent, what): `model 3` for the third model call of an agent, a tool by its name."""
    turns: Counter[str] = Counter()
    names = []
    for row in rows:
        turns[row["agent"]] += row["kind"] == "model_call"
        what = f"model {turns[row['agent']]}" if row["kind"] == "model_call" else row["name"]
        # The approval of a call is a separate step.
        names.append((row["agent"], f"approval of {what}" if row["kind"] == "wait" else what))
    return names


class _listening:
    """The socket at which processes report that they have reached a point."""

    def __init__(self, address: Path, came: Any) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    if line := self.rfile.readline():
                        hit = json.loads(line)
                        lost = came(hit["step"], hit["where"], hit["task"], hit["pid"])
                        self.wfile.write(points.LOST if lost else b".")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server(str(address), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
