"""Packs: several tasks in one message, each with its own claim, limits, record and events, whatever ends the others."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from sqlalchemy import Engine, text

from orchestrator.local.embedded import EmbeddedServers
from shared.broker import make_app, publish, publish_packs
from shared.database.connections import transaction
from shared.settings import Settings
from shared.tasks import lifecycle, stops
from shared.tasks.lifecycle import Dispatched
from shared.tasks.states import FINAL
from tests.integration.conftest import ACT, Tasks, orchestrating
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until

OUTCOMES = text("SELECT task_id || '.' || claim AS id, outcome FROM executions")
STATES = {
    "succeeded": "task-succeeded",
    "failed": "task-failed",
    "lost": "task-failed",
    "retried": "task-retried",
    "handed_back": "task-retried",
    "cancelled": "task-revoked",
}
LIMIT = text("INSERT INTO limits (scope, name, max_running) VALUES ('agent', 'Act', 100)")
REFUSE_OUTCOME = """
    CREATE FUNCTION refuse_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.output = '"refused"' THEN
            RAISE EXCEPTION 'refused by the test';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse_outcome BEFORE INSERT ON task_outcomes FOR EACH ROW EXECUTE FUNCTION refuse_outcome();
"""


@dataclass
class Events:
    """Celery's events, as monitors receive them."""

    app: Celery
    received: list[dict[str, Any]] = field(default_factory=list)
    listening: threading.Event = field(default_factory=threading.Event)
    stopping: bool = False

    def listen(self) -> None:
        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"*": self.received.append})
            with receiver.consumer_context(wakeup=False) as (source, _, _):
                self.listening.set()
                while not self.stopping:
                    try:
                        source.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def of(self, message_id: str) -> list[str]:
        """The types of the events of a message."""
        return [event["type"] for event in self.received if event.get("uuid") == message_id]


@pytest.fixture
def app(settings: Settings) -> Celery:
    return make_app(settings)


@pytest.fixture
def events(app: Celery) -> Iterator[Events]:
    listener = Events(app)
    thread = threading.Thread(target=listener.listen)
    thread.start()
    assert listener.listening.wait(20)
    yield listener
    listener.stopping = True
    thread.join()


@dataclass
class Packs:
    """Dispatches tasks in the test's thread, and sends them as packs. There is no orchestrator."""

    app: Celery
    tasks: Tasks
    log: Path

    def submit(self, agent: str, *inputs: dict[str, Any]) -> list[UUID]:
        return [self.tasks.submit(agent, {"log": str(self.log), **value}) for value in inputs]

    def dispatch(self) -> list[Dispatched]:
        with transaction() as connection:
            lifecycle.wake_due(connection)
            return lifecycle.dispatch(connection, lease=3600, window=1000)

    def send(self, agent: str, *inputs: dict[str, Any]) -> list[UUID]:
        """Submit tasks, and send them in one message."""
        submitted = self.submit(agent, *inputs)
        publish_packs(self.app, [self.dispatch()])
        return submitted

    def warm_up(self, slots: int) -> None:
        """Let each slot load what its first task needs: that is not short."""
        self.log.touch()
        task = {"do": "sleep", "seconds": 0.5}
        self.run_rest(self.submit("Act", *[task] * slots))
        self.log.write_text("")

    def run_rest(
        self, submitted: list[UUID], until: Callable[[dict[str, Any]], bool] = lambda task: task["state"] in FINAL
    ) -> None:
        """Run what was given back, one message for each task, until all have ended."""

        def over() -> bool:
            publish(self.app, self.dispatch())
            return all(until(self.tasks.get(task)) for task in submitted)

        wait_until(over, "all tasks ended", 60)

    def calls(self) -> Counter[str]:
        """How often each task was called."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines())

    def outcomes(self, task: UUID) -> list[str]:
        return [execution["outcome"] for execution in self.tasks.executions(task)]


@pytest.fixture
def packs(app: Celery, tasks: Tasks, act: Any, worker: Process, events: Events, tmp_path: Path) -> Packs:
    act(effect="pure")
    made = Packs(app, tasks, tmp_path / "calls")
    made.warm_up(slots=2)
    return made


ALONE = {"capabilities": ["alone"]}
"""The module's worker serves `work`, and would take the tasks of a test that starts a worker."""
OneSlot = Callable[..., AbstractContextManager[tuple[Process, Packs]]]


@pytest.fixture
def one_slot(app: Celery, tasks: Tasks, tool_package: Path, tmp_path: Path) -> OneSlot:
    """Starts a worker with one slot, once the agent `Act` is defined for `ALONE`. The test ends it."""

    @contextmanager
    def start(**options: Any) -> Iterator[tuple[Process, Packs]]:
        process = start_worker(tmp_path, "alone", **options)
        with killed_on_exit(process):
            wait_online(tasks.engine, process)
            packs = Packs(app, tasks, tmp_path / "calls")
            packs.warm_up(slots=1)
            yield process, packs

    return start


def agree(events: Events, database: Engine) -> None:
    """Every execution has exactly the events that its outcome needs."""
    with database.connect() as connection:
        executions = connection.execute(OUTCOMES).all()
    for execution in executions:
        wait_until(lambda e=execution: STATES[e.outcome] in events.of(e.id), f"an event of {execution.id}")
        found = Counter(events.of(execution.id))
        # One that was given back may not have begun.
        began = found["task-started"] if execution.outcome == "handed_back" else 1
        assert found == Counter(["task-received", *["task-started"] * began, STATES[execution.outcome]]), execution


ANSWER: dict[str, Any] = {"do": "answer", "answer": 1}


def test_each_task_of_a_pack_has_its_own_record_and_events(
    packs: Packs, act: Any, events: Events, database: Engine
) -> None:
    agent = act(effect="pure", config={"max_attempts": 2})
    bad = {"do": "refuse"}
    submitted = packs.send(agent, ANSWER, bad, {"do": "fail", "times": 1}, *[{"answer": n} for n in range(9)])
    packs.run_rest(submitted)
    assert [packs.tasks.get(task)["state"] for task in submitted] == ["succeeded", "failed", *["succeeded"] * 10]
    assert [packs.tasks.get(task)["output"] for task in submitted[3:]] == [*range(9)]
    assert [packs.outcomes(task) for task in submitted[:3]] == [["succeeded"], ["failed"], ["retried", "succeeded"]]
    for task in submitted[3:]:
        [execution] = packs.tasks.executions(task)
        assert (execution["claim"], execution["outcome"]) == (1, "succeeded")
        assert execution["started_at"] <= execution["finished_at"]
        assert [step["status"] for step in packs.tasks.steps(task)] == ["finished"]
    assert set(packs.calls().values()) == {1, 2}
    agree(events, database)


@pytest.mark.parametrize("deed", ["freeze", "hang"])
def test_task_that_never_returns_ends_at_its_own_limit(
    packs: Packs, act: Any, events: Events, database: Engine, deed: str
) -> None:
    agent = act(effect="pure", config={"soft_time_limit": 2, "time_limit": 3, "max_attempts": 1})
    done, stuck, *rest = packs.send(agent, ANSWER, {"do": deed}, ANSWER, ANSWER)
    # The end of the first one does not wait for the second, nor do the others.
    assert packs.tasks.wait(done)["state"] == "succeeded"
    for task in rest:
        wait_until(lambda task=task: packs.outcomes(task) == ["handed_back"], "it is given back")
    assert packs.tasks.get(stuck)["state"] == "running"
    packs.run_rest([stuck, *rest])
    found = packs.tasks.get(stuck)
    assert (found["state"], found["attempts"]) == ("failed", 1)
    assert "hard time_limit of 3 s" in found["error"]["message"]
    assert [packs.tasks.get(task)["attempts"] for task in [done, *rest]] == [0, 0, 0]
    assert packs.outcomes(done) == ["succeeded"]
    assert [packs.outcomes(task) for task in rest] == [["handed_back", "succeeded"]] * 2
    assert set(packs.calls().values()) == {1}
    agree(events, database)


def test_soft_limit_ends_one_task_of_a_pack(packs: Packs, act: Any, events: Events, database: Engine) -> None:
    agent = act(effect="pure", config={"soft_time_limit": 1, "time_limit": 60, "max_attempts": 1})
    done, slow, rest = packs.send(agent, ANSWER, {"do": "sleep", "seconds": 60}, ANSWER)
    packs.run_rest([done, slow, rest])
    assert "soft_time_limit of 1 s" in packs.tasks.get(slow)["error"]["message"]
    assert [packs.tasks.get(task)["state"] for task in (done, rest)] == ["succeeded"] * 2
    agree(events, database)


@pytest.mark.parametrize("limited", [False, True])
def test_slot_that_dies_charges_only_the_running_task(
    packs: Packs, act: Any, events: Events, database: Engine, limited: bool
) -> None:
    """With a limit, each task is claimed in its turn, and those that were not are given back too."""
    if limited:
        with database.begin() as connection:
            connection.execute(LIMIT)
    agent = act(effect="pure", config={"max_attempts": 2})
    done, deadly, *rest = packs.send(agent, ANSWER, {"do": "die", "times": 1}, *[ANSWER] * 5)
    packs.run_rest([done, deadly, *rest])
    assert packs.outcomes(done) == ["succeeded"]
    assert packs.outcomes(deadly) == ["lost", "succeeded"]
    given_back = [] if limited else ["handed_back"]
    assert [packs.outcomes(task) for task in rest] == [[*given_back, "succeeded"]] * 5
    assert [packs.tasks.get(task)["attempts"] for task in [done, deadly, *rest]] == [0, 1, *[0] * 5]
    assert packs.calls() == {str(done): 1, str(deadly): 2, **{str(task): 1 for task in rest}}
    if not limited:
        agree(events, database)


@pytest.mark.parametrize("effect", ["pure", "unsafe"])
def test_killed_worker_repeats_no_committed_effect(
    one_slot: OneSlot, tasks: Tasks, act: Any, short_leases: Settings, tmp_path: Path, effect: str
) -> None:
    """Only the ends after the last commit are lost with the worker. Effects are repeated only if they may be."""
    agent = act(effect=effect, config=ALONE)
    with one_slot() as (process, packs):
        slow, deadly = {"do": "sleep", "seconds": 0.02}, {"do": "take_down"}
        saved, committer, unsaved, killer, *rest = packs.send(agent, ANSWER, slow, ANSWER, deadly, *[ANSWER] * 3)
        assert process.wait() == -signal.SIGKILL
    assert packs.outcomes(killer) == ["running"]
    heir = start_worker(tmp_path, "alone")
    with killed_on_exit(heir), orchestrating(short_leases):
        for task in (saved, committer, unsaved, *rest):
            assert tasks.wait(task, 60)["state"] == "succeeded"
        # A person decides about an unsafe effect that may have happened.
        assert tasks.wait_for(killer, "waiting" if effect == "unsafe" else "succeeded")["attempts"] == 0
        heir.stop()
    assert packs.outcomes(saved) == packs.outcomes(committer) == ["succeeded"]
    assert packs.outcomes(unsaved) in (["succeeded"], ["lost", "succeeded"])
    # On a slow machine, they were given back before the end of the worker.
    assert all(packs.outcomes(task) in (["lost", "succeeded"], ["handed_back", "succeeded"]) for task in rest)
    calls = packs.calls()
    assert {calls[str(task)] for task in (saved, committer, *rest)} == {1}
    assert calls[str(unsaved)] == (len(packs.outcomes(unsaved)) if effect == "pure" else 1)
    assert calls[str(killer)] == (1 if effect == "unsafe" else 2)
    assert [step["status"] for step in tasks.steps(unsaved)] == ["finished"]


def test_main_process_that_is_killed_loses_no_task_of_its_packs(
    one_slot: OneSlot, tasks: Tasks, act: Any, short_leases: Settings, tmp_path: Path
) -> None:
    """Its slot lives on, without lease and limits. What it commits in time counts, the rest runs elsewhere."""
    agent = act(effect="pure", config=ALONE)
    with one_slot() as (process, packs):
        submitted = packs.send(agent, ANSWER, {"do": "meet", "calls": 50}, *[ANSWER] * 3)
        wait_until(lambda: packs.calls()[str(submitted[1])] == 1, "the second task runs")
        process.signal(signal.SIGKILL)
        process.wait()
        with packs.log.open("a") as log:
            log.write(f"{submitted[1]}\n" * 50)
        heir = start_worker(tmp_path, "alone")
        with killed_on_exit(heir), orchestrating(short_leases):
            for task in submitted:
                assert tasks.wait(task, 60)["state"] == "succeeded"
    assert_each_ended_once(packs, submitted)


@pytest.mark.parametrize("down", ["postgres", "valkey"])
def test_restart_of_a_server_loses_no_task_of_a_pack(
    one_slot: OneSlot, tasks: Tasks, act: Any, short_leases: Settings, servers: EmbeddedServers, down: str
) -> None:
    """The database goes away while claims and ends are committed together."""
    agent = act(effect="pure", config=ALONE)
    with one_slot() as (process, packs):
        submitted = packs.send(agent, *[{"do": "sleep", "seconds": 0.005}] * 60)
        wait_until(lambda: packs.calls().total() > 5, "some of them have run")
        server = getattr(servers, down)
        server.kill()
        server.start()
        with orchestrating(short_leases):
            for task in submitted:
                assert tasks.wait(task, 60)["state"] == "succeeded"
        assert process.running
        process.stop()
    assert_each_ended_once(packs, submitted)
    calls = packs.calls()
    assert all(1 <= calls[str(task)] <= len(packs.outcomes(task)) for task in submitted)


def assert_each_ended_once(packs: Packs, submitted: list[UUID]) -> None:
    """Each has succeeded in its last execution, and none was charged."""
    for task in submitted:
        *before, last = packs.outcomes(task)
        assert last == "succeeded"
        assert set(before) <= {"handed_back", "lost"}
        assert packs.tasks.get(task)["attempts"] == 0


def test_limit_holds_while_the_worker_stops(one_slot: OneSlot, tasks: Tasks, act: Any) -> None:
    agent = act(effect="pure", config={**ALONE, "soft_time_limit": 2, "time_limit": 3, "max_attempts": 1})
    with one_slot() as (process, packs):
        done, stuck, rest = packs.send(agent, ANSWER, {"do": "freeze"}, ANSWER)
        wait_until(lambda: packs.calls()[str(stuck)] == 1, "the second task runs")
        process.signal(signal.SIGTERM)
        process.wait(30)
    assert tasks.get(done)["state"] == "succeeded"
    assert "hard time_limit of 3 s" in tasks.get(stuck)["error"]["message"]
    assert (tasks.get(rest)["state"], tasks.get(rest)["attempts"]) == ("pending", 0)


def test_stop_gives_back_what_was_not_begun(
    one_slot: OneSlot, tasks: Tasks, act: Any, events: Events, database: Engine
) -> None:
    agent = act(effect="pure", config=ALONE)
    with one_slot() as (process, packs):
        meet = {"do": "meet", "calls": 50}
        done, last, *rest = packs.send(agent, ANSWER, meet, *[ANSWER] * 4)
        wait_until(lambda: packs.calls()[str(last)] == 1, "the second task runs")
        process.signal(signal.SIGTERM)
        wait_until(lambda: "worker-offline" in [event["type"] for event in events.received], "the worker stops")
        with packs.log.open("a") as log:
            log.write(f"{last}\n" * 50)
        assert process.wait(30) == 0
    assert [tasks.get(task)["state"] for task in (done, last)] == ["succeeded"] * 2
    assert [packs.outcomes(task) for task in rest] == [["handed_back"]] * 4
    assert [tasks.get(task)["attempts"] for task in rest] == [0] * 4
    assert not {str(task) for task in rest} & packs.calls().keys()
    agree(events, database)


def test_cold_shutdown_keeps_the_ends_that_its_slots_have_not_committed(
    one_slot: OneSlot, tasks: Tasks, act: Any
) -> None:
    agent = act(effect="pure", config=ALONE)
    with one_slot(options=["--", "worker.soft_shutdown_timeout=0.1"]) as (process, packs):
        done, last, *rest = packs.send(agent, ANSWER, {"do": "meet", "calls": 50}, *[ANSWER] * 3)
        wait_until(lambda: packs.calls()[str(last)] == 1, "the second task runs")
        process.signal(signal.SIGQUIT)
        process.wait(30)
    assert packs.outcomes(done) == ["succeeded"]
    assert [packs.outcomes(task) for task in [last, *rest]] == [["handed_back"]] * 4
    assert [tasks.get(task)["attempts"] for task in [done, last, *rest]] == [0] * 5
    assert packs.calls() == {str(done): 1, str(last): 1}


def test_pack_that_is_delivered_twice_runs_once(packs: Packs, act: Any) -> None:
    agent = act(effect="pure")
    submitted = packs.submit(agent, *[{"do": "sleep", "seconds": 0.02}] * 6)
    messages = packs.dispatch()
    publish_packs(packs.app, [messages, messages, messages[3:], [messages[5]]])
    for task in submitted:
        packs.tasks.wait(task)
    publish_packs(packs.app, [messages])
    packs.run_rest(packs.send(agent, ANSWER))
    assert all(packs.outcomes(task) == ["succeeded"] for task in submitted)
    assert all(count == 1 for count in packs.calls().values())


def test_cancelled_tasks_of_a_pack_end_alone(packs: Packs, act: Any, events: Events, database: Engine) -> None:
    agent = act(effect="pure", config={"soft_time_limit": 60, "time_limit": 90})
    submitted = packs.submit(agent, ANSWER, {"do": "sleep", "seconds": 60}, ANSWER, ANSWER)
    done, running, queued, rest = submitted
    messages = packs.dispatch()
    assert packs.tasks.cancel(queued) == "cancelled"
    publish_packs(packs.app, [messages])
    wait_until(lambda: packs.log.exists() and packs.calls()[str(running)] == 1, "the second task runs")
    assert packs.tasks.cancel(running) == "running"
    packs.run_rest([*submitted])
    states = [packs.tasks.get(task)["state"] for task in submitted]
    assert states == ["succeeded", "cancelled", "cancelled", "succeeded"]
    assert packs.outcomes(queued) == []
    assert str(queued) not in packs.calls()
    assert packs.calls()[str(rest)] == packs.calls()[str(done)] == 1
    agree(events, database)


def test_ends_that_cannot_be_committed_together_are_tried_alone(
    packs: Packs, act: Any, events: Events, database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(text(REFUSE_OUTCOME))
    try:
        agent = act(effect="pure", config={"max_attempts": 1})
        submitted = packs.send(agent, ANSWER, {"answer": "refused"}, ANSWER, ANSWER)
        packs.run_rest(submitted)
        assert [packs.tasks.get(task)["state"] for task in submitted] == ["succeeded", "failed", *["succeeded"] * 2]
        assert [packs.outcomes(task) for task in submitted] == [["succeeded"], ["lost"], ["succeeded"], ["succeeded"]]
        agree(events, database)
    finally:
        with database.begin() as connection:
            connection.execute(text("DROP FUNCTION refuse_outcome CASCADE"))


def test_paused_and_limited_tasks_of_a_pack_wait(packs: Packs, act: Any, database: Engine) -> None:
    first, other = act("First", effect="pure"), act("Other", effect="pure")
    submitted = [*packs.submit(first, ANSWER, ANSWER), *packs.submit(other, ANSWER)]
    messages = packs.dispatch()
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pauses (scope, name) VALUES ('agent', 'First')"))
    publish_packs(packs.app, [messages])
    assert packs.tasks.wait(submitted[2])["state"] == "succeeded"
    assert [packs.tasks.get(task)["state"] for task in submitted[:2]] == ["pending"] * 2
    with database.begin() as connection:
        connection.execute(text("DELETE FROM pauses"))
    packs.run_rest(submitted)


def test_stopped_tasks_of_a_pack_begin_no_unsafe_effect(packs: Packs, act: Any, database: Engine) -> None:
    risky = act("Risky", effect="unsafe")
    target = stops.target_of("agent", "default", risky)
    submitted = packs.submit(risky, ANSWER, ANSWER)
    messages = packs.dispatch()
    with database.begin() as connection:
        stops.stop(connection, target)
    publish_packs(packs.app, [messages])
    packs.run_rest(submitted, until=lambda task: task["wait_reason"] == "stopped")
    assert not packs.calls()
    with database.begin() as connection:
        stops.lift(connection, target)
    packs.run_rest(submitted)
    assert packs.calls() == {str(task): 1 for task in submitted}


def test_tasks_of_a_pack_share_cached_results_within_a_tenant(packs: Packs, define: Any) -> None:
    define(
        {**ACT, "name": "cached", "effect": "pure", "cache": "1h"},
        {"kind": "agent", "name": "Cached", "type": "function", "tool": "cached", "config": {"capabilities": ["work"]}},
    )
    ours, theirs = ([packs.tasks.submit("Cached", {"log": str(packs.log)}, key=key) for _ in range(3)] for key in "ab")
    publish_packs(packs.app, [packs.dispatch()])
    packs.run_rest([*ours, *theirs])
    for tenant in (ours, theirs):
        origins = [packs.tasks.steps(task)[0]["usage"].get("cached") for task in tenant]
        [made] = [task for task, origin in zip(tenant, origins, strict=True) if origin is None]
        assert packs.calls()[str(made)] == 1
        assert [origin["task_id"] for origin in origins if origin] == [str(made)] * 2
    assert packs.calls().total() == 2


def test_worker_of_the_last_release_runs_the_first_task(app: Celery) -> None:
    """It ignores the header with the others, which are published again."""
    from shared import broker

    tasks = [Dispatched(UUID(int=n), 0, "work", "Act", 300, 330, 0) for n in (1, 2)]
    message = broker._message(app, *tasks)
    assert message.headers["task"] == "minion.run"
    assert message.body[1] == {"v": 1, "task_id": str(tasks[0].task_id), "claim": 0}
