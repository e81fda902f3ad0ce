"""A Celery task that runs as a durable task: the example of docs/moving-from-celery.md with a real worker process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from minions import celery, errors
from tests.conftest import Define
from tests.integration.api.conftest import Api
from tests.support.processes import ROOT

EXAMPLE = ROOT / "examples" / "moving_from_celery"

pytestmark = pytest.mark.usefixtures("loops", "worker", "database")


@pytest.fixture
def send_receipt(
    tool_package: Path, http_api: Api, define: Define, monkeypatch: pytest.MonkeyPatch
) -> Iterator[celery.DurableTask]:
    monkeypatch.setenv("MINION_API_URL", http_api.url)
    monkeypatch.setenv("MINION_API_KEY", http_api.key)
    module = import_module("shop_tasks")
    for task in (module.send_receipt, module.report):
        monkeypatch.setattr(task, "capability", "work")
        define(*task.definitions())
    celery._client_of.cache_clear()
    with celery._client():
        yield module.send_receipt
    celery._client_of.cache_clear()


def test_call_sites_of_celery_work(send_receipt: celery.DurableTask) -> None:
    result = send_receipt.delay(3, language="de")
    assert result.get(timeout=60) == {"order_id": 3, "language": "de", "retries": 0}
    assert (result.state, result.ready(), result.successful(), result.failed()) == ("SUCCESS", True, True, False)
    assert send_receipt.AsyncResult(result.id).result == result.result
    assert result.task.input == {"order_id": 3, "language": "de"}


def test_retries_are_attempts(send_receipt: celery.DurableTask) -> None:
    result = send_receipt.apply_async((5,), task_id=str(uuid4()))
    assert result.get(timeout=60)["retries"] == 2
    assert result.task.attempts == 2


def test_other_errors_are_not_retried(send_receipt: celery.DurableTask) -> None:
    result = send_receipt.apply_async((-1,))
    with pytest.raises(errors.TaskFailed, match=r"gave up: ValueError: There is no order -1\."):
        result.get(timeout=60)
    assert (result.state, result.task.claim) == ("FAILURE", 1)
    assert isinstance(result.get(propagate=False), errors.TaskFailed)


def test_later_tasks_can_be_revoked(send_receipt: celery.DurableTask) -> None:
    result = send_receipt.apply_async((1,), countdown=3600, expires=7200)
    assert (result.state, result.result, result.task.state) == ("PENDING", None, "scheduled")
    result.revoke()
    assert result.state == "REVOKED"


def test_task_id_is_the_idempotency_key(send_receipt: celery.DurableTask) -> None:
    first, second = (send_receipt.apply_async((3,), task_id="receipt-3") for _ in range(2))
    assert first.id == second.id


def test_chain_takes_the_place_of_a_chord(send_receipt: celery.DurableTask, define: Define) -> None:
    chain = yaml.safe_load((EXAMPLE / "receipts.yaml").read_text())
    define({**chain, "config": {"capabilities": ["work"]}})
    orders = [{"order_id": 3}, {"order_id": 6}]
    assert celery._client().submit("send-receipts", {"orders": orders}).result(timeout=60) == {"sent": 2}


def test_canvas_and_unknown_options_are_refused(send_receipt: celery.DurableTask) -> None:
    with pytest.raises(errors.InvalidInput, match=r"canvas \(\.s\) would not run it in Minions"):
        send_receipt.s(1)
    with pytest.raises(errors.InvalidInput, match="got link, queue, which have no equivalent"):
        send_receipt.apply_async((1,), queue="mail", link=None)
    with pytest.raises(errors.InvalidInput, match="do not fit send_receipt: missing a required argument"):
        send_receipt.delay()
    with pytest.raises(TypeError, match="below Celery's decorator of main"):
        celery.durable_task(celery.main)


def test_definitions_of_the_example_are_current(
    send_receipt: celery.DurableTask, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.undo()
    celery.main(["shop_tasks"])
    printed = capsys.readouterr().out
    assert printed == (EXAMPLE / "shop.yaml").read_text()
    assert next(yaml.safe_load_all(printed)) == send_receipt.definitions()[0]
