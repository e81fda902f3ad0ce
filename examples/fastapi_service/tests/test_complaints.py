"""The tests have no server to start and need no key: `pytest`."""

from pathlib import Path

import pytest
from complaints import app
from fastapi.testclient import TestClient

from minions import testing

AGENTS = Path(__file__).parent.parent / "agents.yaml"


@pytest.fixture
def desk(minions):
    minions.apply(AGENTS)
    return minions


@pytest.fixture
def browser():
    with TestClient(app) as client:
        yield client


def test_complaint_is_refunded_after_an_approval(desk, browser, scripted_model):
    scripted_model.script = [
        testing.tool_use(("refund", {"order": 17, "cents": 900})),
        testing.text("We refunded $9.00."),
    ]
    task = browser.post("/complaints/17", params={"text": "The vase is broken."}).json()["task"]
    desk.run_until_idle()
    assert browser.get(f"/complaints/{task}").json() == {"state": "waiting", "answer": None}

    desk.approve(task)
    desk.run_until_idle()
    desk.assert_called(task, "refund", {"order": 17, "cents": 900}, times=1)
    assert browser.get(f"/complaints/{task}").json()["state"] == "succeeded"


def test_complaint_that_is_sent_twice_is_one_task(desk, browser):
    for _ in range(2):
        browser.post("/complaints/17", params={"text": "The vase is broken."})
    desk.assert_submitted("complaint-desk", {"order": 17, "text": "The vase is broken."}, times=1)


def test_overloaded_model_is_called_again(desk, browser, scripted_model):
    scripted_model.script = [
        testing.error(529, "overloaded_error", "Overloaded", headers={"retry-after": "0"}),
        testing.text("We are sorry."),
    ]
    task = browser.post("/complaints/18", params={"text": "It is late."}).json()["task"]
    assert desk.finish(task).state == "succeeded"
    assert len(scripted_model.requests) == 2
