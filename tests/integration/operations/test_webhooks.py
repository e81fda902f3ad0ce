"""Webhooks: each delivery arrives at least once, signed, at allowed addresses only; no endpoint delays another."""

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
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.notification_flood import all_read, flood
from tests.support.processes import killed_on_exit, start_orchestrator, wait_listening, wait_until
from tests.support.webhook_receiver import SECRET, Receiver, receiving

SOON = (0.05, 0.05, 0.05)


@pytest.fixture
def loopback_settings(settings: Settings) -> Settings:
    """The settings of an operator whose endpoints are on this machine."""
    return settings.model_copy(update={"allow_private_addresses": ["127.0.0.0/8"]})


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def add(driver: LifecycleDriver, url: str, name: str = "hook", **fields: Any) -> UUID:
    """Adds a webhook."""
    values = {"name": name, "url": url, "secret": SECRET, **fields}
    names, places = ", ".join(values), ", ".join(f":{column}" for column in values)
    webhook: UUID = driver.sql(f"INSERT INTO webhooks ({names}) VALUES ({places}) RETURNING id", **values)
    return webhook


def end(driver: LifecycleDriver, agent: str = "A", state: State = State.SUCCEEDED, **fields: Any) -> UUID:
    """A task that has ended."""
    result = {"output": fields.pop("output", {"n": 1})} if state == State.SUCCEEDED else {}
    task = driver.run(agent, **fields)
    driver.finish(task, state=state, **result)
    return task


def deliveries(driver: LifecycleDriver) -> list[dict[str, Any]]:
    """Return the recorded deliveries, oldest first."""
    listed = driver.sql("SELECT COALESCE(jsonb_agg(to_jsonb(d) ORDER BY d.id), '[]') FROM webhook_deliveries d")
    return list(listed)


def settled(driver: LifecycleDriver, number: int = 1, timeout: float = 20.0) -> list[dict[str, Any]]:
    """Wait until this many deliveries have been delivered or have failed; return all."""

    def are_settled() -> bool:
        return sum(one["status"] != "pending" for one in deliveries(driver)) >= number

    wait_until(are_settled, f"{number} deliveries settled", timeout)
    return deliveries(driver)


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
def loop(loopback_settings: Settings, database: Engine) -> Iterator[Webhooks]:
    with sending(loopback_settings, database) as running:
        yield running


# ------------------------------------------------------------------------------------------------- the message


def test_signed_message_reports_the_outcome(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    add(driver, endpoint.url)
    task = end(
        driver, input={"secret": "input"}, output={"n": [1, "é"]}, key="t", labels={"a": "b"}, conversation_id="c"
    )
    [request] = endpoint.wait_for(1)
    [delivery] = settled(driver)
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 204)
    assert request.id == delivery["id"]
    assert request.headers["Content-Type"] == "application/json"
    message = request.verified()
    row = driver.row(task)
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


def test_a_failure_has_its_error(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    add(driver, endpoint.url)
    end(driver, state=State.FAILED)
    message = endpoint.wait_for(1)[0].verified()
    assert message["type"] == "task.failed"
    assert message["data"]["error"] == {"type": "test", "message": "It failed."}


def test_a_large_output_is_left_out(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    add(driver, endpoint.url)
    end(driver, output="x" * 60_000)
    end(driver, output="x" * 70_000)
    small, large = sorted((one.verified()["data"] for one in endpoint.wait_for(2)), key=lambda d: d["output_omitted"])
    assert (len(small["output"]), small["output_omitted"]) == (60_000, False)
    assert (large["output"], large["output_omitted"], large["path"]) == (None, True, f"/v1/tasks/{large['id']}")


def test_after_a_rotation_both_secrets_fit_for_a_day(
    driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks
) -> None:
    old, new = "whsec_" + "b2xk" * 10, "whsec_" + "bmV3" * 10
    add(driver, endpoint.url, secret=new, previous_secret=old, rotated_at=datetime.now().astimezone())
    end(driver)
    [request] = endpoint.wait_for(1)
    assert request.verified(old) == request.verified(new)
    driver.sql("UPDATE webhooks SET rotated_at = now() - interval '25 hours'")
    end(driver)
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
def test_webhook_filters_select_tasks(
    driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks, fields: dict[str, Any], told: list[str]
) -> None:
    add(driver, endpoint.url, **fields)
    end(driver)
    end(driver, state=State.FAILED)
    driver.call(lifecycle.cancel, driver.submit(), reason="Enough.")
    end(driver, "B")
    settled(driver, len(told))
    messages = [one.verified()["data"] for one in endpoint.wait_for(len(told))]
    assert sorted(f"{data['agent']} {data['state']}" for data in messages) == sorted(told)
    assert len(deliveries(driver)) == len(told)


def test_labels_must_all_be_there(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    webhook = add(driver, endpoint.url)
    driver.sql('UPDATE webhooks SET labels = \'{"a": "b", "c": "d"}\' WHERE id = :id', id=webhook)
    for labels in ({}, {"a": "b"}, {"a": "b", "c": "x"}):
        end(driver, labels=labels)
    task = end(driver, labels={"a": "b", "c": "d", "e": "f"})
    settled(driver)
    assert [one["task_id"] for one in deliveries(driver)] == [str(task)]


@pytest.mark.parametrize(("roots_only", "told"), [(True, 1), (False, 2)])
def test_sub_tasks_are_reported_on_request(
    driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks, roots_only: bool, told: int
) -> None:
    add(driver, endpoint.url, roots_only=roots_only)
    parent = driver.run("B")
    [child] = driver.suspend(parent, children=["A"])
    driver.again(child)
    driver.finish(child)
    driver.finish(parent, driver.again(parent))
    settled(driver, told)
    messages = [one.verified()["data"] for one in endpoint.wait_for(told)]
    assert {data["id"] for data in messages} == ({str(parent)} if roots_only else {str(parent), str(child)})
    assert {data["root_id"] for data in messages} == {str(parent)}


def test_rolled_back_end_creates_no_delivery(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    add(driver, endpoint.url)
    task = driver.run()
    with driver.engine.connect() as connection:
        lifecycle.finish(connection, task, 1, State.SUCCEEDED, {"output": 1})
        connection.rollback()
    assert deliveries(driver) == []
    driver.finish(task, output=2)
    [request] = endpoint.wait_for(1)
    assert request.verified()["data"]["output"] == 2
    assert len(settled(driver)) == 1


def test_removing_a_webhook_does_not_disturb_the_end_of_a_task(driver: LifecycleDriver, endpoint: Receiver) -> None:
    add(driver, endpoint.url)
    task = driver.run()
    with ThreadPoolExecutor(1) as threads:
        with driver.engine.begin() as removing:
            removing.exec_driver_sql("DELETE FROM webhooks")
            finishing = threads.submit(driver.finish, task, output=1)
            time.sleep(0.5)
            assert not finishing.done()
        assert finishing.result(10) == State.SUCCEEDED
    assert deliveries(driver) == []


def test_a_new_message_does_not_wait_for_the_next_look(
    driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks
) -> None:
    add(driver, endpoint.url)
    times = []
    for number in range(1, 6):
        time.sleep(0.4)
        end(driver)
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
def test_refused_message_is_retried_with_the_same_id(
    driver: LifecycleDriver, loopback_settings: Settings, status: int, words: str
) -> None:
    with receiving() as elsewhere, receiving((status, {"Location": elsewhere.url})) as endpoint:
        add(driver, endpoint.url)
        end(driver)
        with sending(loopback_settings, driver.engine, delays=(0.3,)):
            endpoint.wait_for(1)
            failed = wait_until(lambda: [one for one in deliveries(driver) if one["last_error"]], "an error")[0]
            assert (failed["status"], failed["last_status"]) == ("pending", status)
            assert words in failed["last_error"]
            [delivery] = settled(driver)
        first, second = endpoint.received
        assert first.id == second.id == delivery["id"]
        assert first.body == second.body
        assert second.verified()["type"] == "task.succeeded"
        assert (delivery["status"], delivery["attempts"], delivery["last_error"]) == ("delivered", 2, None)
        assert elsewhere.received == []


def test_delivery_fails_finally_with_reason(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    with receiving(*[503] * 10) as endpoint, sending(loopback_settings, driver.engine):
        add(driver, endpoint.url)
        end(driver)
        [delivery] = settled(driver)
        assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("failed", len(SOON) + 1, 503)
        assert len(endpoint.received) == len(SOON) + 1
        assert delivery["finished_at"]


def test_an_unreadable_wish_to_be_left_alone_is_no_fault(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    wish = {"Retry-After": "Mon, 1 Jan 99999999999999999999 00:00:00 GMT"}
    with receiving((503, wish)) as endpoint, sending(loopback_settings, driver.engine):
        add(driver, endpoint.url)
        end(driver)
        [delivery] = settled(driver)
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)


def test_internal_error_ends_after_the_same_attempts(
    driver: LifecycleDriver, loopback_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(*_: Any) -> None:
        raise LookupError("never seen before")

    monkeypatch.setattr(deliverer.messages, "post", post)
    with sending(loopback_settings, driver.engine):
        add(driver, "http://127.0.0.1:1/")
        end(driver)
        [delivery] = settled(driver)
        assert (delivery["status"], delivery["attempts"]) == ("failed", len(SOON) + 1)
        assert "a bug in Minions" in delivery["last_error"]


def test_delivery_continues_when_threads_are_available(
    driver: LifecycleDriver, loopback_settings: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    add(driver, endpoint.url)
    end(driver)
    loop = Webhooks(loopback_settings, driver.engine, lease=0)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", start)
        for _ in range(AT_ONCE):
            with pytest.raises(RuntimeError, match="new thread"):
                loop.run_once()
    loop.run_once()
    endpoint.wait_for(1)
    loop.close()


def test_delivery_succeeds_when_endpoint_appears(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        add(driver, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        end(driver)
        with sending(loopback_settings, driver.engine, delays=[0.1] * 50):
            wait_until(lambda: [one for one in deliveries(driver) if one["last_error"]], "an error")
            assert "cannot be reached" in deliveries(driver)[0]["last_error"]
            with receiving() as endpoint:
                driver.sql("UPDATE webhooks SET url = :url", url=endpoint.url)
                assert settled(driver)[0]["status"] == "delivered"


def next_delay(driver: LifecycleDriver, loopback_settings: Settings, answer: Any, attempts: int = 0) -> float:
    """Seconds from a refusal to the next attempt."""
    with receiving(answer) as endpoint:
        add(driver, endpoint.url)
        end(driver)
        driver.sql("UPDATE webhook_deliveries SET attempts = :attempts", attempts=attempts)
        with sending(loopback_settings, driver.engine, delays=deliverer.DELAYS):
            wait_until(lambda: [one for one in deliveries(driver) if one["last_error"]], "an error")
    return float(driver.sql("SELECT extract(epoch FROM next_at - now()) FROM webhook_deliveries"))


@pytest.mark.parametrize(("attempts", "least"), [(0, 5), (1, 300), (2, 1800), (3, 7200), (4, 18_000), (8, 36_000)])
def test_the_pauses_grow(driver: LifecycleDriver, loopback_settings: Settings, attempts: int, least: float) -> None:
    assert least - 3 < next_delay(driver, loopback_settings, 500, attempts) < least * 1.2 + 1


@pytest.mark.parametrize(
    ("asked", "least"),
    [("120", 120), ("1", 5), ("999999999999", 36_000), ("Fri, 31 Dec 2100 23:59:59 GMT", 36_000), ("soon", 5)],
)
def test_an_endpoint_may_ask_for_a_longer_pause(
    driver: LifecycleDriver, loopback_settings: Settings, asked: str, least: float
) -> None:
    assert least - 3 < next_delay(driver, loopback_settings, (503, {"Retry-After": asked})) < least * 1.2 + 1


def test_endpoint_answering_gone_is_disabled(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    with receiving(410) as endpoint, sending(loopback_settings, driver.engine):
        add(driver, endpoint.url)
        end(driver)
        [delivery] = settled(driver)
        assert (delivery["status"], delivery["attempts"]) == ("failed", 1)
        assert "410 Gone" in driver.sql("SELECT disabled_reason FROM webhooks WHERE NOT enabled")
        end(driver)
        assert len(deliveries(driver)) == 1


def test_enabling_webhook_sends_pending_deliveries(driver: LifecycleDriver, endpoint: Receiver, loop: Webhooks) -> None:
    webhook = add(driver, endpoint.url)
    driver.sql("UPDATE webhooks SET enabled = false")
    end(driver)
    assert deliveries(driver) == []
    owed = driver.sql(
        "INSERT INTO webhook_deliveries (webhook_id, task_id, state) SELECT :webhook, id, 'succeeded' FROM tasks "
        "RETURNING id",
        webhook=webhook,
    )
    time.sleep(1.5)
    assert endpoint.received == []
    driver.sql("UPDATE webhooks SET enabled = true")
    assert endpoint.wait_for(1)[0].id == str(owed)


def test_deleted_task_has_no_deliveries(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    with receiving(500) as endpoint, sending(loopback_settings, driver.engine, delays=[0.5] * 5):
        add(driver, endpoint.url)
        end(driver)
        endpoint.wait_for(1)
        driver.sql("DELETE FROM tasks")
        end(driver)
        assert settled(driver)[0]["status"] == "delivered"
        assert len(endpoint.received) == 2


# -------------------------------------------------------------------------------------------- addresses


def test_a_private_address_is_refused(driver: LifecycleDriver, settings: Settings, endpoint: Receiver) -> None:
    add(driver, endpoint.url)
    add(driver, endpoint.url.replace("127.0.0.1", "localhost"), name="by-name")
    end(driver)
    with sending(settings, driver.engine, delays=()):
        found = settled(driver, 2)
    assert {one["status"] for one in found} == {"failed"}
    assert all("is not a public address" in one["last_error"] for one in found)
    assert endpoint.received == []


# ------------------------------------------------------------------------------------------- several at once


def test_a_slow_endpoint_does_not_delay_another(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    release = threading.Event()

    def slowly() -> int:
        release.wait(20)
        return 204

    with receiving(*[slowly] * 50) as slow, receiving() as quick, sending(loopback_settings, driver.engine):
        add(driver, slow.url, name="slow")
        for _ in range(12):
            end(driver)
        slow.wait_for(AT_ONCE_PER_WEBHOOK)
        add(driver, quick.url, name="quick", agents=["B"])
        began = time.monotonic()
        for _ in range(5):
            end(driver, "B")
        quick.wait_for(5)
        assert time.monotonic() - began < 15
        assert len(slow.received) == AT_ONCE_PER_WEBHOOK
        release.set()
        slow.wait_for(17)
        assert {one["status"] for one in settled(driver, 22)} == {"delivered"}
        assert len(slow.ids()) == 17


def test_notifications_are_read_while_a_message_is_under_way(
    driver: LifecycleDriver, loopback_settings: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of notifications that fills up would end every commit that notifies."""
    begun, release = threading.Event(), threading.Event()
    post = webhook_messages.post

    def slowly(*arguments: Any) -> Any:
        begun.set()
        release.wait(60)
        return post(*arguments)

    monkeypatch.setattr(webhook_messages, "post", slowly)
    add(driver, endpoint.url)
    with sending(loopback_settings, driver.engine):
        end(driver)
        assert begun.wait(20)
        flood(driver.engine, "minion_webhooks")
        wait_until(lambda: all_read(driver.engine, "minion_webhooks"), "the notifications are read")
        release.set()
        settled(driver)


def test_several_orchestrators_share_the_work(
    driver: LifecycleDriver, loopback_settings: Settings, endpoint: Receiver
) -> None:
    add(driver, endpoint.url)
    for _ in range(30):
        end(driver)
    with sending(loopback_settings, driver.engine), sending(loopback_settings, driver.engine):
        settled(driver, 30)
    assert len(endpoint.received) == len(endpoint.ids()) == 30


def test_late_answer_counts_as_no_answer(
    driver: LifecycleDriver, loopback_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.webhooks.messages.TIMEOUT_SECONDS", 0.5)

    def late() -> int:
        time.sleep(1.5)
        return 204

    with receiving(late) as endpoint, sending(loopback_settings, driver.engine, delays=(0.05,)):
        add(driver, endpoint.url)
        end(driver)
        wait_until(lambda: [one for one in deliveries(driver) if one["last_error"]], "an error")
        assert settled(driver)[0]["status"] == "delivered"
        assert len(endpoint.received) == 2
        assert len(endpoint.ids()) == 1


# ------------------------------------------------------------------------------------------------------ faults


def test_unsettled_message_is_posted_again(
    driver: LifecycleDriver, loopback_settings: Settings, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Webhooks._settle
    broken = [True]

    def lose_the_first(self: Webhooks, *args: Any) -> None:
        if broken:
            broken.clear()
            raise OperationalError("UPDATE", {}, Exception("the database went away"))
        settle(self, *args)

    monkeypatch.setattr(Webhooks, "_settle", lose_the_first)
    add(driver, endpoint.url)
    end(driver)
    with sending(loopback_settings, driver.engine, lease=1.0):
        [delivery] = settled(driver)
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)
    assert [one.id for one in endpoint.received] == [delivery["id"]] * 2


def test_killed_orchestrator_delivers_again(driver: LifecycleDriver, tmp_path: Path, settings: Settings) -> None:
    env = {"MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.1"}
    first = start_orchestrator(tmp_path, env=env)

    def dies() -> int:
        first.kill()
        return 204

    with killed_on_exit(first), receiving(dies) as endpoint:
        wait_listening(first)
        add(driver, endpoint.url)
        end(driver)
        endpoint.wait_for(1)
        wait_until(lambda: not first.running, "the orchestrator's end")
        [taken] = deliveries(driver)
        assert (taken["status"], taken["attempts"]) == ("pending", 1)
        driver.sql("UPDATE webhook_deliveries SET next_at = now()")  # its lease is over
        second = start_orchestrator(tmp_path, env=env)
        with killed_on_exit(second):
            [delivery] = settled(driver, timeout=40)
            second.stop()
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)
        assert [one.id for one in endpoint.received] == [delivery["id"]] * 2


def test_late_refusal_does_not_undo_later_attempt(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    def late() -> int:
        time.sleep(2.5)
        return 500

    with receiving(late) as endpoint, sending(loopback_settings, driver.engine, lease=0.5, delays=[60.0] * 5):
        add(driver, endpoint.url)
        end(driver)
        assert settled(driver)[0]["status"] == "delivered"
        time.sleep(3)
        [delivery] = deliveries(driver)
        assert (delivery["status"], delivery["last_status"]) == ("delivered", 204)


def test_delivery_continues_after_database_outage(
    driver: LifecycleDriver, loopback_settings: Settings, endpoint: Receiver, servers: EmbeddedServers
) -> None:
    add(driver, endpoint.url)
    with sending(loopback_settings, driver.engine):
        end(driver)
        settled(driver)
        servers.postgres.kill()
        servers.postgres.start()
        driver.engine.dispose()
        end(driver)
        assert len(settled(driver, 2)) == 2


def test_stopping_waits_a_moment_and_not_longer(driver: LifecycleDriver, loopback_settings: Settings) -> None:
    release = threading.Event()

    def slowly() -> int:
        release.wait(20)
        return 204

    with receiving(slowly) as endpoint:
        add(driver, endpoint.url)
        with sending(loopback_settings, driver.engine) as loop:
            end(driver)
            endpoint.wait_for(1)
            began = time.monotonic()
            loop.stop()
            assert time.monotonic() - began < deliverer.STOP_SECONDS + 12
        release.set()
        settled(driver)


def test_no_secret_and_no_address_is_logged(
    driver: LifecycleDriver, loopback_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    with receiving(500, 410) as endpoint, sending(loopback_settings, driver.engine):
        add(driver, endpoint.url + "?token=sesame")
        end(driver)
        settled(driver)
    logged = "".join(capfd.readouterr())
    assert "webhook_posted" in logged
    assert SECRET.removeprefix("whsec_") not in logged
    assert "sesame" not in logged + json.dumps(deliveries(driver))
