"""A pack on both sides of the pool, without the pool: a slot and the main process in the test's thread."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.worker.state import active_requests
from sqlalchemy import text

from orchestrator.explain import explain
from shared import broker
from shared.database.connections import transaction
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.integration.conftest import ACT, InlineWorker, Tasks
from workers import pack, pack_request
from workers.heartbeat import Heartbeat
from workers.pack import Report
from workers.pack_request import PackRequest

LIMIT = text("INSERT INTO limits (scope, name, max_running) VALUES ('agent', 'Act', 100)")


@dataclass
class Slot:
    """A pool with one slot, which runs a pack when the test says so."""

    given: list[dict[str, Any]] = field(default_factory=list)

    def apply_async(self, _: Any, **given: Any) -> None:
        self.given.append(given)

    def accept(self) -> None:
        self.given[-1]["accept_callback"](os.getpid(), time.monotonic())

    def run(self) -> list[Report]:
        return pack.run(*self.given[-1]["args"])

    def end(self, reports: list[Report]) -> None:
        self.given[-1]["callback"](reports)


@dataclass
class Packs:
    """Sends tasks of the agent `Act` in one message."""

    worker: InlineWorker
    tasks: Tasks
    heartbeat: Heartbeat
    app: Celery
    slot: Slot = field(default_factory=Slot)
    acknowledged: list[str] = field(default_factory=list)

    def submit(self, *inputs: dict[str, Any], agent: str = "Act") -> list[UUID]:
        return [self.tasks.submit(agent, value) for value in inputs]

    def receive(self) -> PackRequest:
        """Receive the message of all tasks."""
        [first, *others] = self.worker.dispatch()
        message = broker._message(self.app, first, *others)
        received = SimpleNamespace(
            headers=message.headers, properties=message.properties, delivery_info={}, body=message.body
        )
        return PackRequest(
            received,
            on_ack=lambda *_: self.acknowledged.append(str(first.task_id)),
            app=self.app,
            hostname="here",
            task=SimpleNamespace(acks_late=True, ignore_result=True, send_events=True),
            decoded=True,
        )

    def begin(self) -> PackRequest:
        """Give the pack to the slot."""
        request = self.receive()
        request.execute_using_pool(self.slot)
        self.slot.accept()
        return request

    def record(self) -> None:
        """Let the heartbeat's thread record what it was given."""
        self.heartbeat._report()

    def states(self, submitted: list[UUID]) -> list[str]:
        return [self.tasks.get(task)["state"] for task in submitted]

    def outcomes(self, submitted: list[UUID]) -> list[list[str]]:
        return [[execution["outcome"] for execution in self.tasks.executions(task)] for task in submitted]


@pytest.fixture
def packs(inline_worker: InlineWorker, tasks: Tasks, act: Any, tool_package: Any, heartbeat: Heartbeat) -> Packs:
    act(effect="pure")
    return Packs(inline_worker, tasks, heartbeat, broker.make_app(heartbeat.settings))


def stop_after(first: int, packs: Packs, request: PackRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the slot to stop while it handles a task."""
    handle = pack.Pack._handle

    def handled(self: pack.Pack, index: int, task: Any) -> None:
        if index == first:
            request.stop("Stopped by the test.")
        handle(self, index, task)

    monkeypatch.setattr(pack.Pack, "_handle", handled)


@pytest.mark.parametrize("limited", [False, True])
def test_tasks_that_a_slot_did_not_begin_are_given_back(
    packs: Packs, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """With a limit, each is claimed in its turn."""
    if limited:
        with packs.tasks.engine.begin() as connection:
            connection.execute(LIMIT)
    submitted = packs.submit({}, {}, {}, {})
    request = packs.begin()
    stop_after(1, packs, request, monkeypatch)
    packs.slot.end(packs.slot.run())
    assert request not in active_requests
    assert packs.acknowledged == [str(submitted[0])]
    packs.record()
    assert packs.states(submitted) == ["succeeded"] * 2 + ["pending"] * 2
    assert packs.outcomes(submitted) == [["succeeded"]] * 2 + [[] if limited else ["handed_back"]] * 2
    assert {packs.tasks.get(task)["attempts"] for task in submitted} == {0}


def test_pool_that_has_ended_loses_no_end_of_its_packs(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot was killed before it committed the ends of two tasks."""
    submitted = packs.submit({}, {}, {})
    request = packs.begin()
    stop_after(1, packs, request, monkeypatch)
    monkeypatch.setattr(pack.Pack, "_commit", lambda self: None)
    packs.slot.run()
    assert packs.states(submitted) == ["running"] * 3
    pack_request.give_back_all()
    packs.record()
    assert packs.states(submitted) == ["succeeded"] * 2 + ["pending"]
    assert packs.outcomes(submitted) == [["succeeded"], ["succeeded"], ["handed_back"]]
    assert {packs.tasks.get(task)["attempts"] for task in submitted} == {0}


def test_cancelled_task_of_a_claimed_pack_has_no_effect(
    packs: Packs, act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    act("Act", effect="unsafe")
    log = tmp_path / "calls"
    submitted = packs.submit(*[{"log": str(log)}] * 3)
    packs.begin()
    claim = pack.Pack._claim

    def claimed(self: pack.Pack) -> Any:
        found = claim(self)
        assert packs.tasks.cancel(submitted[1]) == "running"
        return found

    monkeypatch.setattr(pack.Pack, "_claim", claimed)
    packs.slot.end(packs.slot.run())
    assert packs.states(submitted) == ["succeeded", "cancelled", "succeeded"]
    assert [line.split()[0] for line in log.read_text().splitlines()] == [str(submitted[0]), str(submitted[2])]


def test_why_counts_the_tasks_that_were_claimed_together(packs: Packs) -> None:
    first, *_, last = submitted = packs.submit({}, {}, {})
    packs.worker.dispatch()
    with transaction() as connection:
        lifecycle.claim_pack(connection, [(str(task), 0) for task in submitted], packs.worker.id)
    with transaction() as connection:
        lifecycle.finish(connection, first, 1, State.SUCCEEDED, {"output": None, "steps": []})
    with transaction() as connection:
        answer = explain(connection, last, lease=3600)
    assert (answer.reason, answer.facts["pack"]) == ("running", 2)
    assert "in a pack, of which 2 tasks have not ended" in answer.sentence


def test_task_of_a_pack_waits_for_its_approval(packs: Packs, define: Any) -> None:
    define({**ACT, "effect": "unsafe", "approval": True})
    submitted = packs.submit({}, {})
    packs.begin()
    packs.slot.end(packs.slot.run())
    assert [packs.tasks.get(task)["wait_reason"] for task in submitted] == ["approval"] * 2


def test_lost_answer_of_a_group_commit_leaves_each_end_once(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is repeated on another connection, and finds its own work."""
    monkeypatch.setattr(pack, "GROUP_SECONDS", 60.0)
    finish_pack, lost = lifecycle.finish_pack, []

    def answer_lost(connection: Any, ends: str) -> Any:
        found = finish_pack(connection, ends)
        if not lost:
            lost.append(found)
            connection.connection.dbapi_connection.close()
            connection.execute(text("SELECT 1"))
        return found

    monkeypatch.setattr(lifecycle, "finish_pack", answer_lost)
    submitted = packs.submit({}, {}, {})
    packs.begin()
    reports = packs.slot.run()
    assert lost == [set(submitted)]
    assert [report.event and report.event[0] for report in reports] == ["task-succeeded"] * 3
    assert packs.outcomes(submitted) == [["succeeded"]] * 3


def test_slot_without_shared_memory_begins_nothing(packs: Packs) -> None:
    """A child that was not forked from the main process has other memory, and would have no time limits."""
    submitted = packs.submit({}, {})
    packs.begin()
    [*arguments, owner] = packs.slot.given[-1]["args"]
    packs.slot.end(pack.run(*arguments, owner + 1))
    packs.record()
    assert packs.states(submitted) == ["pending"] * 2
    assert packs.outcomes(submitted) == [["handed_back"]] * 2


def test_pack_without_a_free_cell_is_left_to_the_republisher(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_request, "_free", [])
    submitted = packs.submit({}, {})
    request = packs.receive()
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(packs.slot)
    assert packs.acknowledged == [str(submitted[0])]
    assert packs.slot.given == []
    assert packs.states(submitted) == ["queued"] * 2
    with transaction() as connection:
        connection.execute(text("UPDATE task_status SET published_at = now() - interval '1 h'"))
        connection.execute(text("UPDATE workers SET idle_since = now() - interval '1 h'"))
        again = lifecycle.republish(connection, lease=3600, patience=5, empty_queues=["work"])
    assert {task.task_id for task in again} == set(submitted)
