"""Bounds of Celery submitters: MINION_CELERY_NAMESPACE, MINION_CELERY_AGENTS and MINION_CELERY_TENANT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from sqlalchemy import Engine

from orchestrator.ingress import Ingress
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.records import NewTask
from tests.integration.api.test_approval_policies import waits_for_a_lock
from tests.integration.broker.test_ingress import find
from tests.integration.conftest import Tasks
from tests.integration.tasks.test_sql_submitters import store
from tests.support.definitions import NOOP, agent_definition
from tests.support.processes import wait_until

Send = Callable[..., dict[str, Any]]
NAMES = {"idempotency_key": "k", "unique_key": "u", "conversation_id": "c"}


@pytest.fixture
def send(settings: Settings, database: Engine, tasks: Tasks) -> Iterator[Send]:
    """Sends a message to an ingress with these settings: `send({"celery_tenant": "acme"}, agent="Open")`."""
    for namespace in ("default", "team"):
        store(database, namespace, NOOP, agent_definition("Open"), agent_definition("Other"))
    with Celery("sender", broker=settings.require_broker_url(), set_as_current=False) as sender:

        def submit(bounds: dict[str, Any], task_id: str | None = None, **fields: Any) -> dict[str, Any]:
            celery_id = task_id or str(uuid4())
            kwargs = {"input": {}, **fields}
            sender.send_task("minion.submit", kwargs=kwargs, queue="minion.submit", task_id=celery_id)
            with closing(Ingress(settings.model_copy(update=bounds), database)) as ingress:
                ingress.run_once()
                ingress.run_once()
            [task] = find(database, celery_id)
            return tasks.get(task)

        yield submit


def test_without_settings_nothing_is_bound(send: Send) -> None:
    task = send({}, agent="Other", namespace="team", key="x", conversation_id="c")
    assert (task["state"], task["agent"], task["namespace"], task["key"]) == ("pending", "Other", "team", "x")
    assert task["conversation_id"] == "c"


def test_bounds_are_implied(send: Send) -> None:
    bounds = {"celery_namespace": "team", "celery_agents": ["Open"], "celery_tenant": "acme"}
    task = send(bounds, **NAMES)
    assert (task["state"], task["agent"], task["namespace"], task["key"]) == ("pending", "Open", "team", "acme")
    assert task["conversation_id"] == "acme\x1fc"


@pytest.mark.parametrize(
    ("bounds", "fields", "reason"),
    [
        ({"celery_namespace": "team"}, {"namespace": "default"}, "is bound to the namespace 'team'"),
        ({"celery_agents": ["Open"]}, {"agent": "Other"}, "is bound to 'Open': `agent` must name one of them"),
        ({"celery_agents": ["Open", "Other"]}, {"agent": None, "capability": "work"}, "`agent` must name one of"),
        ({"celery_tenant": "acme"}, {"key": "other"}, "`key` must be 'acme'"),
        ({"celery_tenant": "acme:*"}, {"key": "acme"}, "`key` must begin with 'acme:'"),
        ({"celery_tenant": "acme"}, {"unique_key": "other\x1fu"}, "must not contain the character U+001F"),
    ],
)
def test_refusal_is_recorded(send: Send, bounds: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    task = send(bounds, **{"agent": "Open", **fields})
    assert task["state"] == "failed"
    assert reason in task["error"]["message"]
    if "character" not in reason:
        assert task["error"]["type"] == "forbidden"
        assert "MINION_CELERY_NAMESPACE" in task["error"]["message"]


def test_refusal_is_recorded_where_the_submitter_is_bound(send: Send) -> None:
    task = send({"celery_namespace": "team", "celery_tenant": "acme"}, agent="Open", namespace="default")
    assert (task["namespace"], task["key"]) == ("team", "acme")


def test_refusal_takes_no_name_of_another_tenant(send: Send) -> None:
    refused = send({"celery_tenant": "acme"}, "other\x1fk", agent="Open", key="other")
    assert refused["state"] == "failed"
    assert send({"celery_tenant": "other"}, agent="Open", idempotency_key="k")["state"] == "pending"


@pytest.mark.parametrize("tenant", ["acme", "acme:*"])
def test_refusal_takes_no_name_that_tenants_share(send: Send, tenant: str) -> None:
    refused = send({"celery_tenant": tenant}, "order-17", agent="Open", key="other")
    assert (refused["state"], refused["labels"]) == ("failed", {"celery_id": "order-17"})
    accepted = send({}, agent="Open", idempotency_key="order-17")
    assert accepted["state"] == "pending"


@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_other_agents_are_not_joined(send: Send, name: str) -> None:
    theirs = send({}, agent="Other", **{name: NAMES[name]})
    task = send({"celery_agents": ["Open"]}, agent="Open", **{name: NAMES[name]})
    assert (task["state"], task["error"]["type"]) == ("failed", "conflict")
    assert str(theirs["id"]) not in str(task["error"])


def test_unique_key_that_is_taken_during_the_submission_is_not_joined(send: Send, database: Engine) -> None:
    theirs: NewTask = {"agent": "Other", "input": {}, "unique_key": "u"}
    with ThreadPoolExecutor() as threads, database.connect() as other:
        lifecycle.accept(other, [theirs])
        ours = threads.submit(send, {"celery_agents": ["Open"]}, agent="Open", unique_key="u")
        wait_until(lambda: waits_for_a_lock(database), "the submission waits for the other one")
        other.commit()
        task = ours.result()
    assert (task["state"], task["error"]["type"]) == ("failed", "conflict")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_CELERY_NAMESPACE", "team")
    monkeypatch.setenv("MINION_CELERY_AGENTS", "Open, Other")
    monkeypatch.setenv("MINION_CELERY_TENANT", "acme:*")
    found = Settings()
    assert (found.celery_namespace, found.celery_agents, found.celery_tenant) == ("team", ["Open", "Other"], "acme:*")
