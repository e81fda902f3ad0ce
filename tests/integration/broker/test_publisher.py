"""Messages of a batch leave together, and a broker that goes away in the middle raises what its callers expect."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from celery import Celery

from orchestrator.local.embedded import EmbeddedServers
from shared.broker import BROKER_AWAY, make_app, publish
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched
from workers.run_messages import read

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    with make_app(settings) as app:
        yield app


def batch(number: int) -> list[Dispatched]:
    return [Dispatched(uuid4(), claim, "nobody", "Act", 300, 330, 0) for claim in range(number)]


def test_a_batch_is_one_pipeline(app: Celery) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        assert producer.supports_batch_publish


def test_all_of_a_batch_arrive_in_order(app: Celery) -> None:
    tasks = batch(700)
    publish(app, tasks)
    with make_redis() as broker:
        sent = [read(item) for item in reversed(broker.lrange("nobody", 0, -1))]
    assert [message.task_id for message in sent] == [task.task_id for task in tasks]


def test_unreachable_broker_raises_expected_error(app: Celery, servers: EmbeddedServers) -> None:
    publish(app, batch(1))
    servers.valkey.kill()
    with pytest.raises(BROKER_AWAY):
        publish(app, batch(2))
    servers.valkey.start()
    publish(app, batch(3))
    with make_redis() as broker:
        assert broker.llen("nobody") >= 3


def test_recovered_broker_is_used_without_error(app: Celery, servers: EmbeddedServers) -> None:
    publish(app, batch(1))
    servers.valkey.kill()
    servers.valkey.start()
    publish(app, batch(1))
