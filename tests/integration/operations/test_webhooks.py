"""Webhooks: what is owed is delivered at least once, signed, and nowhere it must not go; one delays no other."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from minions.errors import InvalidSignature
from orchestrator.local.embedded import EmbeddedServers
from orchestrator.webhooks import deliverer
from orchestrator.webhooks import messages as webhook_messages
from orchestrator.webhooks.deliverer import AT_ONCE, AT_ONCE_PER_WEBHOOK, Webhooks
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.lifecycle_driver import NOOP, ByHand, agent
from tests.support.notification_flood import all_read, flood
from tests.support.processes import ended_at_last, ready, start_orchestrator, wait_until
from tests.support.webhook_receiver import SECRET, Receiver, receiving

SOON = (0.05, 0.05, 0.05)


@pytest.fixture
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"))
    return ByHand(database)


@pytest.fixture
def here(settings: Settings) -> Settings:
    """The settings of an operator whose endpoints are on this machine."""
    return settings.model_copy(update={"allow_private_addresses": ["127.0.0.0/8"]})


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def add(hand: ByHand, url: str, name: str = "hook", **fields: Any) -> UUID:
    """Adds a webhook."""
    values = {"name": name, "url": url, "secret": SECRET, **fields}
    names, places = ", ".join(values), ", ".join(f":{column}" for column in values)
    webhook: UUID = hand.sql(f"INSERT INTO webhooks ({names}) VALUES ({places}) RETURNING id", **values)
    return webhook


def end(hand: ByHand, agent: str = "A", state: State = State.SUCCEEDED, **fields: Any) -> UUID:
    """A task that has ended."""
    result = {"output": fields.pop("output", {"n": 1})} if state == State.SUCCEEDED else {}
    task = hand.run(agent, **fields)
    hand.finish(task, state=state, **result)
    return task


def deliveries(hand: ByHand) -> list[dict[str, Any]]:
    """What is recorded, the oldest first."""
    listed = hand.sql("SELECT COALESCE(jsonb_agg(to_jsonb(d) ORDER BY d.id), '[]') FROM webhook_deliveries d")
    return list(listed)


def settled(hand: ByHand, number: int = 1, timeout: float = 20.0) -> list[dict[str, Any]]:
    """The deliveries, when so many have been delivered or have failed."""

    def are_settled() -> bool:
        return sum(one["status"] != "pending" for one in deliveries(hand)) >= number

    wait_until(are_settled, f"{number} deliveries settled", timeout)
    return deliveries(hand)


@contextmanager
def sending(settings: Settings, engine: Engine, **options: Any) -> Iterator[Webhooks]:
    """The loop runs."""
    loop = Webhooks(settings, engine, **{"delays": SOON, **options})
    loop.start()
    try:
        yield loop
    finally:
        loop.stopping.set()
        with suppress(OperationalError), engine.begin() as connection:
            connection.exec_driver_sql("NOTIFY minion_webhooks")  # it need not wait for its time to be up
        loop.stop()


@pytest.fixture
def loop(here: Settings, database: Engine) -> Iterator[Webhooks]:
    with sending(here, database) as running:
        yield running


# ------------------------------------------------------------------------------------------------- the message


def test_a_signed_message_says_how_the_task_ended(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    add(hand, endpoint.url)
    task = end(hand, input={"secret": "input"}, output={"n": [1, "é"]}, key="t", labels={"a": "b"}, conversation_id="c")
    [request] = endpoint.wait_for(1)
    [delivery] = settled(hand)
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 204)
    assert request.id == delivery["id"]
    assert request.headers["Content-Type"] == "application/json"
    message = request.verified()
    row = hand.row(task)
    data = message.pop("data")
    assert message == {"type": "task.succeeded", "timestamp": data["finished_at"]}
    assert datetime.fromisoformat(data.pop("finished_at")) == row["finished_at"]
    assert datetime.fromisoformat(data.pop("created_at")) == row["created_at"]
    assert data == {
        "id": str(task),
        "namespace": "default",
        "agent": "A",
        "agent_version": 1,
        "state": "succeeded",
        "output": {"n": [1, "é"]},
        "output_omitted": False,
        "error": None,
        "error_fingerprint": None,
        "labels": {"a": "b"},
        "key": "t",
        "conversation_id": "c",
        "root_id": str(task),
        "parent_id": None,
        "replay_of": None,
        "path": f"/v1/tasks/{task}",
    }


def test_a_failure_has_its_error(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    add(hand, endpoint.url)
    end(hand, state=State.FAILED)
    message = endpoint.wait_for(1)[0].verified()
    assert message["type"] == "task.failed"
    assert message["data"]["error"] == {"type": "test", "message": "It failed."}


def test_a_large_output_is_left_out(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    add(hand, endpoint.url)
    end(hand, output="x" * 60_000)
    end(hand, output="x" * 70_000)
    small, large = sorted((one.verified()["data"] for one in endpoint.wait_for(2)), key=lambda d: d["output_omitted"])
    assert (len(small["output"]), small["output_omitted"]) == (60_000, False)
    assert (large["output"], large["output_omitted"], large["path"]) == (None, True, f"/v1/tasks/{large['id']}")


def test_after_a_rotation_both_secrets_fit_for_a_day(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    old, new = "whsec_" + "b2xk" * 10, "whsec_" + "bmV3" * 10
    add(hand, endpoint.url, secret=new, previous_secret=old, rotated_at=datetime.now().astimezone())
    end(hand)
    [request] = endpoint.wait_for(1)
    assert request.verified(old) == request.verified(new)
    hand.sql("UPDATE webhooks SET rotated_at = now() - interval '25 hours'")
    end(hand)
    request = endpoint.wait_for(2)[1]
    assert request.verified(new)
    with pytest.raises(InvalidSignature):
        request.verified(old)


# ---------------------------------------------------------------------------------------------- what is owed


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, ["A succeeded", "A failed", "A cancelled", "B succeeded"]),
        ({"states": ["failed", "cancelled"]}, ["A failed", "A cancelled"]),
        ({"agents": ["B", "C"]}, ["B succeeded"]),
        ({"agents": ["A"], "states": ["succeeded"]}, ["A succeeded"]),
        ({"enabled": False}, []),
        ({"namespace": "other"}, []),
    ],
)
def test_which_tasks_a_webhook_is_told_of(
    hand: ByHand, endpoint: Receiver, loop: Webhooks, fields: dict[str, Any], told: list[str]
) -> None:
    add(hand, endpoint.url, **fields)
    end(hand)
    end(hand, state=State.FAILED)
    hand.call(lifecycle.cancel, hand.submit(), reason="Enough.")
    end(hand, "B")
    settled(hand, len(told))
    messages = [one.verified()["data"] for one in endpoint.wait_for(len(told))]
    assert sorted(f"{data['agent']} {data['state']}" for data in messages) == sorted(told)
    assert len(deliveries(hand)) == len(told)


def test_labels_must_all_be_there(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    webhook = add(hand, endpoint.url)
    hand.sql('UPDATE webhooks SET labels = \'{"a": "b", "c": "d"}\' WHERE id = :id', id=webhook)
    for labels in ({}, {"a": "b"}, {"a": "b", "c": "x"}):
        end(hand, labels=labels)
    task = end(hand, labels={"a": "b", "c": "d", "e": "f"})
    settled(hand)
    assert [one["task_id"] for one in deliveries(hand)] == [str(task)]


@pytest.mark.parametrize(("roots_only", "told"), [(True, 1), (False, 2)])
def test_subtasks_are_told_of_where_it_is_asked_for(
    hand: ByHand, endpoint: Receiver, loop: Webhooks, roots_only: bool, told: int
) -> None:
    add(hand, endpoint.url, roots_only=roots_only)
    parent = hand.run("B")
    [child] = hand.suspend(parent, children=["A"])
    hand.again(child)
    hand.finish(child)
    hand.finish(parent, hand.again(parent))
    settled(hand, told)
    messages = [one.verified()["data"] for one in endpoint.wait_for(told)]
    assert {data["id"] for data in messages} == ({str(parent)} if roots_only else {str(parent), str(child)})
    assert {data["root_id"] for data in messages} == {str(parent)}


def test_an_end_that_is_rolled_back_owes_nothing(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    add(hand, endpoint.url)
    task = hand.run()
    with hand.engine.connect() as connection:
        lifecycle.finish(connection, task, 1, State.SUCCEEDED, {"output": 1})
        connection.rollback()
    assert deliveries(hand) == []
    hand.finish(task, output=2)
    [request] = endpoint.wait_for(1)
    assert request.verified()["data"]["output"] == 2
    assert len(settled(hand)) == 1


def test_removing_a_webhook_does_not_disturb_the_end_of_a_task(hand: ByHand, endpoint: Receiver) -> None:
    add(hand, endpoint.url)
    task = hand.run()
    with ThreadPoolExecutor(1) as threads:
        with hand.engine.begin() as removing:
            removing.exec_driver_sql("DELETE FROM webhooks")
            finishing = threads.submit(hand.finish, task, output=1)
            time.sleep(0.5)
            assert not finishing.done()
        assert finishing.result(10) == State.SUCCEEDED
    assert deliveries(hand) == []


def test_a_new_message_does_not_wait_for_the_next_look(hand: ByHand, endpoint: Receiver, loop: Webhooks) -> None:
    add(hand, endpoint.url)
    times = []
    for number in range(1, 6):
        time.sleep(0.4)
        end(hand)
        began = time.monotonic()
        endpoint.wait_for(number)
        times.append(time.monotonic() - began)
    assert sorted(times)[2] < deliverer.IDLE_SECONDS / 3


# ----------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "The endpoint answered 500 Internal Server Error: Nobody is here"),
        (429, "The endpoint answered 429 Too Many Requests"),
        (404, "The endpoint answered 404 Not Found"),
        (302, "Redirects are not followed"),
    ],
)
def test_what_is_refused_is_sent_again_with_the_same_id(hand: ByHand, here: Settings, status: int, words: str) -> None:
    with receiving() as elsewhere, receiving((status, {"Location": elsewhere.url})) as endpoint:
        add(hand, endpoint.url)
        end(hand)
        with sending(here, hand.engine, delays=(0.3,)):
            endpoint.wait_for(1)
            failed = wait_until(lambda: [one for one in deliveries(hand) if one["last_error"]], "an error")[0]
            assert (failed["status"], failed["last_status"]) == ("pending", status)
            assert words in failed["last_error"]
            [delivery] = settled(hand)
        first, second = endpoint.received
        assert first.id == second.id == delivery["id"]
        assert first.body == second.body
        assert second.verified()["type"] == "task.succeeded"
        assert (delivery["status"], delivery["attempts"], delivery["last_error"]) == ("delivered", 2, None)
        assert elsewhere.received == []


def test_in_the_end_it_has_failed_and_says_why(hand: ByHand, here: Settings) -> None:
    with receiving(*[503] * 10) as endpoint, sending(here, hand.engine):
        add(hand, endpoint.url)
        end(hand)
        [delivery] = settled(hand)
        assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("failed", len(SOON) + 1, 503)
        assert len(endpoint.received) == len(SOON) + 1
        assert delivery["finished_at"]


def test_an_unreadable_wish_to_be_left_alone_is_no_fault(hand: ByHand, here: Settings) -> None:
    wish = {"Retry-After": "Mon, 1 Jan 99999999999999999999 00:00:00 GMT"}
    with receiving((503, wish)) as endpoint, sending(here, hand.engine):
        add(hand, endpoint.url)
        end(hand)
        [delivery] = settled(hand)
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)


def test_a_fault_of_ours_ends_after_as_many_attempts(
    hand: ByHand, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(*_: Any) -> None:
        raise LookupError("never seen before")

    monkeypatch.setattr(deliverer.webhook_messages, "post", post)
    with sending(here, hand.engine):
        add(hand, "http://127.0.0.1:1/")
        end(hand)
        [delivery] = settled(hand)
        assert (delivery["status"], delivery["attempts"]) == ("failed", len(SOON) + 1)
        assert "a bug in Minions" in delivery["last_error"]


def test_it_goes_on_when_the_machine_has_threads_again(
    hand: ByHand, here: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    add(hand, endpoint.url)
    end(hand)
    loop = Webhooks(here, hand.engine, lease=0)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", start)
        for _ in range(AT_ONCE):
            with pytest.raises(RuntimeError, match="new thread"):
                loop.round()
    loop.round()
    endpoint.wait_for(1)
    loop.close()


def test_nobody_listens_and_then_somebody_does(hand: ByHand, here: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        add(hand, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        end(hand)
        with sending(here, hand.engine, delays=[0.1] * 50):
            wait_until(lambda: [one for one in deliveries(hand) if one["last_error"]], "an error")
            assert "cannot be reached" in deliveries(hand)[0]["last_error"]
            with receiving() as endpoint:
                hand.sql("UPDATE webhooks SET url = :url", url=endpoint.url)
                assert settled(hand)[0]["status"] == "delivered"


def next_delay(hand: ByHand, here: Settings, answer: Any, attempts: int = 0) -> float:
    """Seconds from a refusal to the next attempt."""
    with receiving(answer) as endpoint:
        add(hand, endpoint.url)
        end(hand)
        hand.sql("UPDATE webhook_deliveries SET attempts = :attempts", attempts=attempts)
        with sending(here, hand.engine, delays=deliverer.DELAYS):
            wait_until(lambda: [one for one in deliveries(hand) if one["last_error"]], "an error")
    return float(hand.sql("SELECT extract(epoch FROM next_at - now()) FROM webhook_deliveries"))


@pytest.mark.parametrize(("attempts", "least"), [(0, 5), (1, 300), (2, 1800), (3, 7200), (4, 18_000), (8, 36_000)])
def test_the_pauses_grow(hand: ByHand, here: Settings, attempts: int, least: float) -> None:
    assert least - 3 < next_delay(hand, here, 500, attempts) < least * 1.2 + 1


@pytest.mark.parametrize(
    ("asked", "least"),
    [("120", 120), ("1", 5), ("999999999999", 36_000), ("Fri, 31 Dec 2100 23:59:59 GMT", 36_000), ("soon", 5)],
)
def test_an_endpoint_may_ask_for_a_longer_pause(hand: ByHand, here: Settings, asked: str, least: float) -> None:
    assert least - 3 < next_delay(hand, here, (503, {"Retry-After": asked})) < least * 1.2 + 1


def test_an_endpoint_that_is_gone_is_left_alone(hand: ByHand, here: Settings) -> None:
    with receiving(410) as endpoint, sending(here, hand.engine):
        add(hand, endpoint.url)
        end(hand)
        [delivery] = settled(hand)
        assert (delivery["status"], delivery["attempts"]) == ("failed", 1)
        assert "410 Gone" in hand.sql("SELECT disabled_reason FROM webhooks WHERE NOT enabled")
        end(hand)
        assert len(deliveries(hand)) == 1


def test_a_disabled_webhook_is_sent_what_it_is_owed_when_it_is_enabled(
    hand: ByHand, endpoint: Receiver, loop: Webhooks
) -> None:
    webhook = add(hand, endpoint.url)
    hand.sql("UPDATE webhooks SET enabled = false")
    end(hand)
    assert deliveries(hand) == []
    owed = hand.sql(
        "INSERT INTO webhook_deliveries (webhook_id, task_id, state) SELECT :webhook, id, 'succeeded' FROM tasks "
        "RETURNING id",
        webhook=webhook,
    )
    time.sleep(1.5)
    assert endpoint.received == []
    hand.sql("UPDATE webhooks SET enabled = true")
    assert endpoint.wait_for(1)[0].id == str(owed)


def test_a_deleted_task_owes_nothing_more(hand: ByHand, here: Settings) -> None:
    with receiving(500) as endpoint, sending(here, hand.engine, delays=[0.5] * 5):
        add(hand, endpoint.url)
        end(hand)
        endpoint.wait_for(1)
        hand.sql("DELETE FROM tasks")
        end(hand)
        assert settled(hand)[0]["status"] == "delivered"
        assert len(endpoint.received) == 2


# -------------------------------------------------------------------------------------------- addresses


def test_a_private_address_is_refused(hand: ByHand, settings: Settings, endpoint: Receiver) -> None:
    add(hand, endpoint.url)
    add(hand, endpoint.url.replace("127.0.0.1", "localhost"), name="by-name")
    end(hand)
    with sending(settings, hand.engine, delays=()):
        found = settled(hand, 2)
    assert {one["status"] for one in found} == {"failed"}
    assert all("is not a public address" in one["last_error"] for one in found)
    assert endpoint.received == []


# ------------------------------------------------------------------------------------------- several at once


def test_a_slow_endpoint_does_not_delay_another(hand: ByHand, here: Settings) -> None:
    release = threading.Event()

    def slowly() -> int:
        release.wait(20)
        return 204

    with receiving(*[slowly] * 50) as slow, receiving() as quick, sending(here, hand.engine):
        add(hand, slow.url, name="slow")
        for _ in range(12):
            end(hand)
        slow.wait_for(AT_ONCE_PER_WEBHOOK)
        add(hand, quick.url, name="quick", agents=["B"])
        began = time.monotonic()
        for _ in range(5):
            end(hand, "B")
        quick.wait_for(5)
        assert time.monotonic() - began < 15
        assert len(slow.received) == AT_ONCE_PER_WEBHOOK
        release.set()
        slow.wait_for(17)
        assert {one["status"] for one in settled(hand, 22)} == {"delivered"}
        assert len(slow.ids()) == 17


def test_notifications_are_read_while_a_message_is_under_way(
    hand: ByHand, here: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of notifications that fills up would end every commit that notifies."""
    begun, release = threading.Event(), threading.Event()
    post = webhook_messages.post

    def slowly(*arguments: Any) -> Any:
        begun.set()
        release.wait(60)
        return post(*arguments)

    monkeypatch.setattr(webhook_messages, "post", slowly)
    add(hand, endpoint.url)
    with sending(here, hand.engine):
        end(hand)
        assert begun.wait(20)
        flood(hand.engine, "minion_webhooks")
        wait_until(lambda: all_read(hand.engine, "minion_webhooks"), "the notifications are read")
        release.set()
        settled(hand)


def test_several_orchestrators_share_the_work(hand: ByHand, here: Settings, endpoint: Receiver) -> None:
    add(hand, endpoint.url)
    for _ in range(30):
        end(hand)
    with sending(here, hand.engine), sending(here, hand.engine):
        settled(hand, 30)
    assert len(endpoint.received) == len(endpoint.ids()) == 30


def test_an_endpoint_that_answers_too_late_counts_as_one_that_does_not(
    hand: ByHand, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.webhooks.messages.TIMEOUT_SECONDS", 0.5)

    def late() -> int:
        time.sleep(1.5)
        return 204

    with receiving(late) as endpoint, sending(here, hand.engine, delays=(0.05,)):
        add(hand, endpoint.url)
        end(hand)
        wait_until(lambda: [one for one in deliveries(hand) if one["last_error"]], "an error")
        assert settled(hand)[0]["status"] == "delivered"
        assert len(endpoint.received) == 2
        assert len(endpoint.ids()) == 1


# ------------------------------------------------------------------------------------------------------ faults


def test_a_message_that_was_posted_and_not_settled_is_posted_again(
    hand: ByHand, here: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Webhooks._settle
    broken = [True]

    def lose_the_first(self: Webhooks, *args: Any) -> None:
        if broken:
            broken.clear()
            raise OperationalError("UPDATE", {}, Exception("the database went away"))
        settle(self, *args)

    monkeypatch.setattr(Webhooks, "_settle", lose_the_first)
    add(hand, endpoint.url)
    end(hand)
    with sending(here, hand.engine, lease=1.0):
        [delivery] = settled(hand)
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)
    assert [one.id for one in endpoint.received] == [delivery["id"]] * 2


def test_it_is_delivered_again_when_the_orchestrator_dies_before_it_is_settled(
    hand: ByHand, tmp_path: Path, settings: Settings
) -> None:
    env = {"MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.1"}
    first = start_orchestrator(tmp_path, env=env)

    def dies() -> int:
        first.kill()
        return 204

    with ended_at_last(first), receiving(dies) as endpoint:
        wait_until(lambda: ready(first), "the orchestrator")
        add(hand, endpoint.url)
        end(hand)
        endpoint.wait_for(1)
        wait_until(lambda: not first.running, "the orchestrator's end")
        [taken] = deliveries(hand)
        assert (taken["status"], taken["attempts"]) == ("pending", 1)
        hand.sql("UPDATE webhook_deliveries SET next_at = now()")  # its lease is over
        second = start_orchestrator(tmp_path, env=env)
        with ended_at_last(second):
            [delivery] = settled(hand, timeout=40)
            second.stop()
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)
        assert [one.id for one in endpoint.received] == [delivery["id"]] * 2


def test_a_late_refusal_does_not_undo_what_a_later_attempt_did(hand: ByHand, here: Settings) -> None:
    def late() -> int:
        time.sleep(2.5)
        return 500

    with receiving(late) as endpoint, sending(here, hand.engine, lease=0.5, delays=[60.0] * 5):
        add(hand, endpoint.url)
        end(hand)
        assert settled(hand)[0]["status"] == "delivered"
        time.sleep(3)
        [delivery] = deliveries(hand)
        assert (delivery["status"], delivery["last_status"]) == ("delivered", 204)


def test_it_goes_on_after_the_database_was_away(
    hand: ByHand, here: Settings, endpoint: Receiver, servers: EmbeddedServers
) -> None:
    add(hand, endpoint.url)
    with sending(here, hand.engine):
        end(hand)
        settled(hand)
        servers.postgres.kill()
        servers.postgres.start()
        hand.engine.dispose()
        end(hand)
        assert len(settled(hand, 2)) == 2


def test_stopping_waits_a_moment_and_not_longer(hand: ByHand, here: Settings) -> None:
    release = threading.Event()

    def slowly() -> int:
        release.wait(20)
        return 204

    with receiving(slowly) as endpoint:
        add(hand, endpoint.url)
        with sending(here, hand.engine) as loop:
            end(hand)
            endpoint.wait_for(1)
            began = time.monotonic()
            loop.stop()
            assert time.monotonic() - began < deliverer.STOP_SECONDS + 12
        release.set()
        settled(hand)


def test_no_secret_and_no_address_is_logged(hand: ByHand, here: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    with receiving(500, 410) as endpoint, sending(here, hand.engine):
        add(hand, endpoint.url + "?token=sesame")
        end(hand)
        settled(hand)
    logged = "".join(capfd.readouterr())
    assert "webhook_posted" in logged
    assert SECRET.removeprefix("whsec_") not in logged
    assert "sesame" not in logged + json.dumps(deliveries(hand))
