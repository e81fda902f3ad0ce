"""Tasks whose turns are taken by minions of two releases: their journals agree, and what was sent stays as it was.

The other release is taken from the repository's history; a clone without it skips these tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.agents.conftest import plain
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.earlier_releases import unpack
from workers import minion

RUN = (
    "import sys; from uuid import UUID; from workers import minion; "
    "minion.run(UUID(sys.argv[1]), int(sys.argv[2]), UUID(sys.argv[3]))"
)
TEXT = 'He said "a".\nThen b.'
SAID = [
    {"role": "system", "content": "In French."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Salut"},
    {"role": "system", "content": "In Latin."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def tree_0_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of release 0.2."""
    return unpack("0.2.0", tmp_path_factory.mktemp("release_0_2"))


@pytest.fixture
def task(define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> UUID:
    """A task whose tools return text, and whose first turn ends in a wait for the signal `go`."""
    define(
        {**ACT, "effect": "idempotent", "input_schema": {"type": "object"}},
        {
            "kind": "agent",
            "name": "Agent",
            "model": "claude-opus-5-5",
            "system_prompt": "Be brief.",
            "tools": ["act"],
            "config": {"capabilities": ["work"]},
        },
    )
    messages_api.script = [
        tool_use(("act", {"answer": TEXT}), ("act", {"answer": {"$wait": {"signal": "go"}}})),
        tool_use(("act", {"answer": TEXT})),
        testing.text("Nunc."),
    ]
    return tasks.submit("Agent", messages=SAID)


def take_turns(inline_worker: InlineWorker, tree: Path | None) -> None:
    """Runs what is due, by this release or by that of the tree."""
    for message in inline_worker.dispatch():
        if tree is None:
            minion.run(message.task_id, message.claim, inline_worker.id)
            continue
        path = os.pathsep.join([str(tree), os.environ["PYTHONPATH"]])
        command = [sys.executable, "-c", RUN, str(message.task_id), str(message.claim), str(inline_worker.id)]
        subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=300)


def signal(inline_worker: InlineWorker, task: UUID) -> None:
    with inline_worker.engine.begin() as connection:
        lifecycle.signal(connection, task, "go", "went")


def results(request: dict[str, Any]) -> list[str]:
    """Return the results of the tools in the request."""
    messages = [message["content"] for message in request["messages"] if isinstance(message["content"], list)]
    return [block["content"] for blocks in messages for block in blocks if block["type"] == "tool_result"]


def ended_well(tasks: Tasks, task: UUID) -> bool:
    found = tasks.get(task)
    assert (found["state"], found["error"]) == ("succeeded", None)
    return found["output"] == {"content": "Nunc."}


def test_task_begun_by_0_2_continues_here(
    task: UUID, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, tree_0_2: Path
) -> None:
    """A model's thoughts hold only behind the very words that were before them."""
    take_turns(inline_worker, tree_0_2)
    assert tasks.get(task)["wait_reason"] == "signal"
    signal(inline_worker, task)
    take_turns(inline_worker, None)
    assert ended_well(tasks, task)
    assert len(messages_api.requests) == 3
    for request in messages_api.requests:
        assert request["system"][0]["text"] == "Be brief.\n\nIn French.\n\nIn Latin."
        assert plain(request)[:3] == [message for message in SAID if message["role"] != "system"]
    assert (
        results(messages_api.requests[1])[0] == results(messages_api.requests[2])[2] == '"He said \\"a\\".\\nThen b."'
    )


def test_0_2_continues_task_begun_here(
    task: UUID, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, tree_0_2: Path
) -> None:
    take_turns(inline_worker, None)
    signal(inline_worker, task)
    take_turns(inline_worker, tree_0_2)
    assert ended_well(tasks, task)
    assert len(messages_api.requests) == 3


def test_task_begun_here_continues_unchanged(
    task: UUID, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    take_turns(inline_worker, None)
    signal(inline_worker, task)
    take_turns(inline_worker, None)
    assert ended_well(tasks, task)
    for request in messages_api.requests:
        assert request["system"][0]["text"] == "Be brief.\n\nIn French."
        assert plain(request)[:4] == [SAID[1], SAID[2], SAID[4], SAID[3]]
    assert results(messages_api.requests[1])[0] == results(messages_api.requests[2])[2] == TEXT
    assert "form" in tasks.steps(task)[0]["output"]


ORDERED = {"verdict": 1, "a": [{"score": 2.0, "b": 3}]}


@pytest.mark.parametrize("began_by_0_2", [True, False])
def test_the_order_of_keys_does_not_part_the_releases(
    task: UUID, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, tree_0_2: Path, began_by_0_2: bool
) -> None:
    tasks.cancel(task)
    messages_api.script = [
        tool_use(("act", {"answer": ORDERED}), ("act", {"answer": {"$wait": {"signal": "go"}}})),
        testing.text("Nunc."),
    ]
    task = tasks.submit("Agent", ORDERED)
    take_turns(inline_worker, tree_0_2 if began_by_0_2 else None)
    signal(inline_worker, task)
    take_turns(inline_worker, None if began_by_0_2 else tree_0_2)
    assert ended_well(tasks, task)
    first, second = messages_api.requests
    if began_by_0_2:
        assert plain(second)[: len(plain(first))] == plain(first)
        assert results(second)[0] == '{"a": [{"b": 3, "score": 2}], "verdict": 1}'
    else:
        assert '{"verdict": 1, "a": [{"score": 2.0, "b": 3}]}' in str(plain(first))
