"""The mixed scenario: all features together, under overlapping faults.

A load of every kind comes through four entry points. A schedule ticks; an operator cancels, replays and decides;
retention deletes; a receiver takes webhooks; a local model answers. In each round, two or three faults of different
targets strike at the same time. Afterwards `mixed_audit` checks every promise.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from minions import Client, testing
from minions.errors import InvalidSignature, MinionsError
from minions.webhooks import verify
from orchestrator.local.embedded import scratch_dir
from orchestrator.local.embedded.postgres import SOCKET
from orchestrator.retention.retention import prune
from shared.settings import Settings
from tests.chaos import audit, mixed_audit
from tests.chaos.faults import choose_overlapping, strike_together
from tests.chaos.mixed_audit import Witness
from tests.chaos.mixed_load import (
    DEFINITIONS,
    EFFECTIVE,
    KINDS,
    LABEL,
    LIMITED,
    TICK,
    EntryPoint,
    Submission,
    Submitter,
    by_celery,
    by_http,
    by_python,
    by_sql,
    submissions,
)
from tests.chaos.network import Link
from tests.chaos.scenarios import Result, keep_logs
from tests.chaos.system import SLOTS, Minions, Timing
from tests.support.processes import wait_until
from tests.support.webhook_receiver import SECRET, Received, Receiver, receiving

NAME = "everything-together"
WHAT = "All features at once; two or three faults strike at the same time."
TASKS_A_ROUND = 100
# A run must have used these features to mean anything; the other ones depend on the faults.
ALWAYS_COVERED = ("tasks", "replays", "slots", "pruned", "webhooks", "decisions", "model_calls")
CANCELLED_DAYS = 1e-5  # about a second
LISTENING = re.compile(r'"address": "(http://[^"]+)"')
MARK = re.compile(rf"{LABEL}-(\d+) (think|spend)")
COMMITTED = text("SELECT 1 FROM chaos_effects WHERE task_id = CAST(:task AS uuid)")


class Model(testing.MessagesApi):
    """Model that calls its tool once and then answers or, for a spending task, calls it until the budget is used up."""

    def __init__(self, asked: Counter[tuple[int, int]]) -> None:
        super().__init__()
        self.asked = asked

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, testing.Reply]:
        """Count the request by task and turn."""
        found = MARK.search(json.dumps(body["messages"]))
        assert found is not None, body
        number, wanted = int(found[1]), found[2]
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        with self._lock:
            self.asked[number, turn] += 1
        if wanted == "spend":
            reply = testing.tool_use(("double", {"x": turn}))
        elif turn == 0:
            reply = testing.tool_use(("commit", {"seconds": 0.02}))
        else:
            reply = testing.text("Done.")
        return 200, self.message(body, reply)


class Everything(Minions):
    """Minions with all its features in use, and the services it talks to."""

    definitions = DEFINITIONS

    def __init__(self, folder: Path, timing: Timing, seed: str, model_url: str) -> None:
        super().__init__(folder, timing, seed)
        self.patience = max(60.0, 10 * timing.lease)
        self.env |= {
            "ANTHROPIC_BASE_URL": model_url,
            "ANTHROPIC_API_KEY": testing.KEY,
            "NO_PROXY": "127.0.0.1",
            "MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.1",
            "MINION_CANCEL_GRACE_SECONDS": "1",
            "MINION_RETENTION_CANCELLED": str(CANCELLED_DAYS),
        }

    def prepare(self) -> None:
        super().prepare()
        self._link_processes()
        with self.engine.begin() as connection:
            mixed_audit.install(connection)

    def _link_processes(self) -> None:
        """Connect the processes to both servers over TCP links that can lose packets; the test connects directly."""
        postgres, valkey = self.servers.postgres, self.servers.valkey
        sockets = (postgres.socket_dir / SOCKET, valkey.socket)
        self.links = [self._stack.enter_context(Link(path)) for path in sockets]
        database = make_url(postgres.url).set(host="127.0.0.1", port=self.links[0].port, query={})
        broker = urlsplit(self.redis_url)
        self.env |= {
            "DATABASE_URL": database.render_as_string(hide_password=False),
            "REDIS_URL": f"redis://:{broker.password}@127.0.0.1:{self.links[1].port}/0",
        }

    def client(self) -> Client:
        """Return a client of the running orchestrator."""
        found = LISTENING.findall(self.orchestrators[-1].output())
        if not found:
            raise ConnectionError("no orchestrator listens")
        return Client(found[-1], self.env["MINION_API_KEY"], timeout=10.0, retries=0)

    def busy(self) -> bool:
        """Return whether half the slots are at work."""
        with suppress(DBAPIError), self.engine.connect() as connection:
            return mixed_audit.running(connection) >= len(self.workers) * SLOTS // 2
        return False

    def prune(self) -> None:
        """Delete cancelled tasks, as `minion prune` does."""
        kept = Settings(
            DATABASE_URL=self.settings.require_database_url(),
            retention_succeeded=0,
            retention_failed=0,
            retention_expired=0,
            retention_cancelled=CANCELLED_DAYS,
        )
        for _ in prune(self.engine, kept):
            pass


class Operator(threading.Thread):
    """Thread that approves or rejects waiting calls, cancels, replays and prunes, until it is stopped.

    Attributes:
        decided: task, proposal and verdict, recorded before each is sent.
        replayed: originals whose replay is accepted.
    """

    def __init__(self, system: Everything) -> None:
        super().__init__(name="operator", daemon=True)
        self.system = system
        self.decided: list[tuple[str, str, str]] = []
        self.replayed: set[str] = set()
        self.replaying = True
        self._stopping = threading.Event()

    def run(self) -> None:
        duties = (self._decide, self._cancel, self._replay, self._prune)
        while not self._stopping.wait(0.2):
            for duty in duties:
                # Operators retry after any error.
                with suppress(Exception):
                    duty()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join()

    def _decide(self) -> None:
        with self.system.client() as api:
            for task in api.tasks(state="waiting"):
                if task.wait_reason not in ("approval", "answer"):
                    continue
                with suppress(MinionsError, KeyError):
                    why = api.why(task.id)
                    verdict, value = self._verdict(task.id, task.labels, why["reason"])
                    proposal = why["facts"]["proposal"]
                    self.decided.append((task.id, proposal, verdict))
                    api.decide(task.id, verdict, value, proposal=proposal)

    def _verdict(self, task: str, labels: dict[str, str], reason: str) -> tuple[str, Any]:
        """Decide as a person who first checks whether an interrupted call happened."""
        if reason == "approval":
            return ("reject" if labels["kind"] == "rejected" else "approve"), None
        with self.system.engine.connect() as connection:
            happened = connection.scalar(COMMITTED, {"task": task}) is not None
        return ("result", {"committed": True}) if happened else ("again", None)

    def _cancel(self) -> None:
        with self.system.client() as api:
            for kind, states in (("later", ["scheduled"]), ("cancelled", ["pending", "queued", "running"])):
                for task in api.tasks(labels={"kind": kind}, state=states):
                    if not task.cancel_requested:
                        api.cancel(task.id)

    def _replay(self) -> None:
        """Replay some originals. (An accepted replay whose answer was lost is found, and not submitted again.)"""
        with self.system.client() as api:
            for kind in (name for name, kind in KINDS.items() if kind.replayed and self.replaying):
                for task in api.tasks(labels={"kind": kind}, state="succeeded"):
                    if task.replay_of or task.id in self.replayed or int(task.labels[LABEL]) % 3:
                        continue
                    if not any(api.tasks(replay_of=task.id)):
                        api.replay(task.id)
                    self.replayed.add(task.id)

    def _prune(self) -> None:
        self.system.prune()


@dataclass
class MixedResult(Result):
    """The outcome of the mixed scenario.

    Attributes:
        violations: a line for each broken promise.
        covered: how often each feature was used.
        faults: the faults that struck together, round by round.
    """

    violations: list[str] = field(default_factory=list)
    covered: dict[str, int] = field(default_factory=dict)
    faults: list[list[str]] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Return the features that were used and the faults that struck, in a line."""
        used = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.covered.items())
        return f"{used}; {sum(map(len, self.faults))} faults in {len(self.faults)} rounds"

    def broken(self) -> list[str]:
        unused = [f"nothing was tested of: {name}" for name in ALWAYS_COVERED if not self.covered.get(name)]
        return self.violations + self.unexpected + unused


def play(tasks: int, seed: int, lease: float, *, rounds: int | None = None, logs: Path | None = None) -> MixedResult:
    """Play the scenario on fresh servers.

    Args:
        tasks: number of submissions; sub-tasks, replays and scheduled tasks come on top.
        seed: of the choice of faults, victims and times.
        lease: seconds.
        rounds: how often faults strike together; by default once per hundred tasks, at least twice.
        logs: a folder for the output of the processes.
    """
    result = MixedResult(NAME, tasks)
    asked: Counter[tuple[int, int]] = Counter()
    with (
        scratch_dir() as folder,
        keep_logs(NAME, folder, logs),
        testing.messages_api(Model(asked)) as model,
        receiving() as receiver,
        Everything(folder, Timing.of_lease(lease), f"{seed} {NAME}", model.url) as system,
    ):
        operator, submitter = Operator(system), Submitter(_entry_points(system))
        try:
            _start(system, receiver)
            rounds = rounds or max(2, tasks // TASKS_A_ROUND)
            result.faults += _attack(system, operator, submitter, submissions(tasks), rounds)
        except AssertionError as error:
            result.unexpected.append(f"waited in vain: {error}")
        witness = Witness(
            submitted=[(one.number, one.kind, KINDS[one.kind].ends) for one in submitter.accepted],
            limits=LIMITED,
            decided=operator.decided,
            received=[_read(message) for message in list(receiver.received)],
            asked=dict(asked),
        )
        with system.engine.begin() as connection:
            result.findings = audit.examine(connection)
            result.violations = mixed_audit.examine(
                connection, witness, effective=EFFECTIVE, unsafe="unsafe", approved="approved"
            )
            result.covered = mixed_audit.covered(connection)
            result.pause = audit.longest_pause(connection)
        result.tasks = result.covered["tasks"]
        result.refused = system.refused_messages()
        result.unexpected += system.unexpected
    return result


def _read(message: Received) -> tuple[str, str, str, bool]:
    """Return the content of a webhook. (By now it may be older than a receiver would accept.)"""
    body, signed = json.loads(message.body), False
    with suppress(InvalidSignature):
        signed = bool(verify(message.body, message.headers, SECRET, tolerance=86_400))
    return message.id, body["data"]["id"], body["type"], signed


def _entry_points(system: Everything) -> list[EntryPoint]:
    return [
        by_python(system.engine),
        by_sql(system.engine),
        by_http(system.client),
        by_celery(system.settings.require_broker_url(), system.engine),
    ]


def _start(system: Everything, receiver: Receiver) -> None:
    """Start all processes, and set up what the load needs."""
    for _ in range(2):
        system.start_worker()
    system.start_orchestrator()
    system.wait_all_ready()
    with system.client() as api:
        for key, most in LIMITED.items():
            api.set_limit("key", key, max_running=most)
        api.add_webhook("ends", receiver.url, states=["succeeded", "failed", "expired"], secret=SECRET)
        api.put_schedule("tick", TICK, interval_seconds=1, missed="all")


def _attack(
    system: Everything, operator: Operator, submitter: Submitter, load: Sequence[Submission], rounds: int
) -> Iterator[list[str]]:
    """Strike in rounds, and wait for the end of all tasks.

    Yields:
        The faults of each round, before they strike.
    """
    share = len(load) // (rounds + 1)
    with ExitStack() as stack:
        stack.callback(operator.stop)
        stack.callback(submitter.stop)
        operator.start()
        for number in range(rounds):
            submitter.grant(load[number * share : (number + 1) * share])
            goal = number * share + int(share * system.random.uniform(0.1, 0.5))
            wait_until(lambda goal=goal: len(submitter.accepted) >= goal, "tasks accepted", 120)
            with suppress(AssertionError):  # all may be waiting for each other, or for the operator
                wait_until(system.busy, "half the slots at work", 10)
            faults = choose_overlapping(system.random)
            yield [fault.__name__ for fault in faults]
            strike_together(system, faults)
            system.wait_all_ready()
        submitter.grant(load[rounds * share :])
        wait_until(lambda: submitter.done, "all tasks accepted", 300)
        _settle(system, operator)


def _settle(system: Everything, operator: Operator) -> None:
    """Wait until nothing is left to do."""
    wait_until(lambda: operator.replayed, "a task is replayed", 120)
    operator.replaying = False
    wait_until(lambda: _succeeds(system, _rest), "the schedule rests", 120)
    _wait_for_end(system)
    wait_until(lambda: _succeeds(system, _delivered), "all webhooks delivered", 120)
    with suppress(AssertionError):
        wait_until(system.drained, "no messages left", system.patience)


def _succeeds(system: Everything, action: Callable[[Client], bool]) -> bool:
    """Return whether the API succeeded; it may be unavailable at the moment."""
    with suppress(MinionsError, OSError), system.client() as api:
        return action(api)
    return False


def _rest(api: Client) -> bool:
    api.change_schedule("tick", enabled=False)
    return True


def _delivered(api: Client) -> bool:
    """Retry pending webhooks now, including those of a killed orchestrator; return whether all are delivered."""
    pending = list(api.webhook_deliveries("ends", status="pending"))
    for delivery in pending:
        api.retry_delivery(delivery["id"])
    if pending:
        time.sleep(0.5)
    return not pending


def _wait_for_end(system: Everything) -> None:
    """Wait until all tasks have ended, or nothing has changed for as long as patience permits."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < system.patience:
        time.sleep(0.1)
        system.supervise()
        with suppress(DBAPIError), system.engine.connect() as connection:
            if not mixed_audit.unfinished(connection):
                return
            if (now := mixed_audit.progress(connection)) != last:
                last, since = now, time.monotonic()
