"""An orchestrator that dies while it takes submissions: each still becomes one task."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, event

from orchestrator import ingress as ingress_module
from orchestrator.ingress import Ingress
from orchestrator.submissions import Submissions
from shared.broker import SUBMIT_QUEUE
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.set_aside import SHOWN
from tests.integration.broker.test_ingress import drained
from tests.integration.conftest import Tasks
from tests.support.processes import killed_on_exit, start_orchestrator, wait_until

GOOD, BAD = 20, 5


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it, and what it leaves behind is left behind."""


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings with a lease that is over at once."""
    return settings.model_copy(update={"lease_seconds": 0.05})


@pytest.fixture
def sent(settings: Settings, act: Any) -> None:
    """Good submissions, and some that are refused, in the queue."""
    act("Act", config={"capabilities": ["nobody"]})
    with (
        Celery("somebody", broker=settings.require_broker_url(), set_as_current=False) as app,
        app.producer_pool.acquire(block=True) as producer,
    ):
        for number in range(GOOD + BAD):
            fields = {"agent": "Nobody" if number % 5 == 4 else "Act"}
            app.send_task("minion.submit", kwargs=fields, queue=SUBMIT_QUEUE, task_id=f"s-{number}", producer=producer)


def dies(function: Callable[..., Any], *, at_call: int, before: bool) -> Callable[..., Any]:
    """The function, which kills its caller at one of its calls, before or after it did its work."""
    calls = iter(range(1, 1000))

    def deadly(*arguments: Any, **options: Any) -> Any:
        now = next(calls) == at_call
        if now and before:
            raise Killed
        result = function(*arguments, **options)
        if now:
            raise Killed
        return result

    return deadly


def test_a_death_loses_no_message_that_is_too_large(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_redis() as broker:
        broker.lpush(SUBMIT_QUEUE, "x" * 2000)
    first, second = (Submissions(patience=0.05, largest=1000) for _ in range(2))
    monkeypatch.setattr(first, "set_aside", dies(first.set_aside, at_call=1, before=True))
    with pytest.raises(Killed):
        first.take(1)
    assert wait_until(lambda: second.take(1), "it is taken again") == [b"x" * SHOWN]


@contextmanager
def dies_at_commit(engine: Engine, at_call: int) -> Iterator[None]:
    """Kill the committing process, just before the commit."""
    deadly = dies(lambda connection: None, at_call=at_call, before=True)
    event.listen(engine, "commit", deadly)
    try:
        yield
    finally:
        event.remove(engine, "commit", deadly)


def run_until_killed(ingress: Ingress) -> None:
    """Rounds until it dies."""
    with pytest.raises(Killed):
        deque((ingress.run_once() for _ in range(50)), maxlen=0)
    ingress.close()


def finish_the_rest(settings: Settings, engine: Engine, tasks: Tasks) -> None:
    """Another orchestrator takes what is left; nothing is lost and nothing comes twice."""
    successor = Ingress(settings, engine)
    wait_until(lambda: successor.run_once() == 0.0 and drained(), "nothing is left")
    successor.close()
    assert tasks.count() == {"pending": GOOD, "failed": BAD}


POINTS = [
    (Submissions, "take", 1, False),
    (Submissions, "take_refused", 1, True),
    (Submissions, "take_refused", 2, False),
    (Submissions, "finish", 3, True),
    (Submissions, "finish", 3, False),
    (Submissions, "put_off", 1, True),
    (Submissions, "put_off", 1, False),
    (Submissions, "finish", GOOD + 2, True),
    (Submissions, "finish", GOOD + 2, False),
    (ingress_module, "open_envelope", 7, False),
    (ingress_module, "prepare_each", 1, True),
    (ingress_module, "prepare_each", 1, False),
    (lifecycle, "accept", 5, True),
    (lifecycle, "accept", 5, False),
]


@pytest.mark.usefixtures("sent")
@pytest.mark.parametrize(
    ("owner", "name", "at_call", "before"),
    POINTS,
    ids=[f"{'before' if before else 'after'}-{name}-{at_call}" for _, name, at_call, before in POINTS],
)
def test_a_death_loses_no_submission(
    owner: Any, name: str, at_call: int, before: bool, quick: Settings, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies(getattr(owner, name), at_call=at_call, before=before))
        run_until_killed(Ingress(quick, tasks.engine))
    finish_the_rest(quick, tasks.engine, tasks)


@pytest.mark.usefixtures("sent")
@pytest.mark.parametrize("at_call", [1, GOOD, GOOD + 1, GOOD + BAD])
def test_a_death_at_a_commit_loses_no_submission(at_call: int, quick: Settings, tasks: Tasks) -> None:
    with dies_at_commit(tasks.engine, at_call):
        run_until_killed(Ingress(quick, tasks.engine))
    finish_the_rest(quick, tasks.engine, tasks)


@pytest.mark.usefixtures("sent")
def test_messages_held_by_a_0_2_orchestrator_are_recovered(quick: Settings, tasks: Tasks) -> None:
    # As kombu records it; a worker's message and garbage stay where they are.
    with make_redis() as broker:
        for number in range(3):
            message = broker.rpop(SUBMIT_QUEUE)
            assert isinstance(message, bytes)
            broker.hset("unacked", f"tag-{number}", f'[{message.decode()}, "", "{SUBMIT_QUEUE}"]')
            broker.zadd("unacked_index", {f"tag-{number}": 1})
        broker.hset("unacked", mapping={"work": '[{}, "", "work"]', "garbage": "garbage"})
        broker.zadd("unacked_index", {"work": 1, "garbage": 1, "gone": 1})
        finish_the_rest(quick, tasks.engine, tasks)
        assert broker.hkeys("unacked") == [b"work", b"garbage"]


@pytest.mark.usefixtures("sent")
def test_a_killed_orchestrator_loses_no_submission(quick: Settings, tasks: Tasks, tmp_path: Path) -> None:
    process = start_orchestrator(tmp_path)
    with killed_on_exit(process):
        wait_until(lambda: sum(tasks.count().values()) > 0, "it has taken some")
        process.signal(signal.SIGKILL)
        process.wait()
    finish_the_rest(quick, tasks.engine, tasks)
