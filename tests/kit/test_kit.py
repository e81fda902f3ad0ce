from pathlib import Path

import pytest

from minions import Client, testing

AGENTS = Path(__file__).parent / "desk.yaml"


@pytest.fixture
def desk(minions):
    minions.apply(AGENTS)
    return minions


def test_task_runs_when_the_test_says_so(desk):
    task = Client().submit("pricing", {"boats": 2})
    assert desk.client.get(task).state != "succeeded"
    desk.run_until_idle()
    assert task.result(timeout=0) == {"cents": 500}
