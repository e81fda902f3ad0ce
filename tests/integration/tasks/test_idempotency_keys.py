"""Idempotency keys: a replay has those of the original, down the whole tree, unless new ones are asked for."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine

from orchestrator.replay import replay
from orchestrator.replay_from import replay_from
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks


class Keys:
    """Runs and replays `Outer`: a chain that runs a chain and, for each item, an agent; all call the tool `act`."""

    def __init__(self, engine: Engine, tasks: Tasks, inline_worker: InlineWorker, log: Path) -> None:
        self.engine, self.tasks, self.inline_worker, self.log = engine, tasks, inline_worker, log

    def run(self) -> tuple[UUID, list[str]]:
        """A new task of `Outer`, and the keys that its calls had."""
        return self._keys_of(self.tasks.submit("Outer", {"log": str(self.log)}))

    def replay(self, task: UUID, *, from_step: int | None = None, new_keys: bool = False) -> tuple[UUID, list[str]]:
        """The replay of a task, and the keys that its calls had."""
        if from_step is not None:
            return self._keys_of(replay_from(self.engine, task, from_step, new_keys=new_keys, submitted_by="test"))
        with self.engine.begin() as connection:
            accepted = replay(connection, task, pinned=False, new_keys=new_keys, submitted_by="test").task_id
        return self._keys_of(accepted)

    def _keys_of(self, task: UUID) -> tuple[UUID, list[str]]:
        self.log.write_text("")
        self.inline_worker.run_all()
        assert self.tasks.get(task)["state"] == "succeeded"
        return task, sorted(line.split()[2] for line in self.log.read_text().splitlines())


@pytest.fixture
def keys(database: Engine, define: Define, tasks: Tasks, inline_worker: InlineWorker, tmp_path: Path) -> Keys:
    log = tmp_path / "calls"
    leaf = {"kind": "agent", "name": "Leaf", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}}
    chain = {"kind": "agent", "type": "function", "config": {"capabilities": ["work"], "chain_strategy": "parallel"}}
    define(
        ACT,
        leaf,
        {**chain, "name": "Inner", "relations": [{"agent": "Leaf"}, {"agent": "Leaf"}]},
        {**chain, "name": "Outer", "relations": [{"agent": "Inner"}, {"agent": "Leaf"}]},
    )
    return Keys(database, tasks, inline_worker, log)


def test_replays_of_a_tree_have_the_keys_of_the_original(keys: Keys) -> None:
    first, original = keys.run()
    assert len(set(original)) == 3
    again, repeated = keys.replay(first)
    assert repeated == original
    assert keys.replay(again)[1] == original


def test_another_task_of_the_same_agent_has_other_keys(keys: Keys) -> None:
    assert not set(keys.run()[1]) & set(keys.run()[1])


def test_the_replay_of_a_sub_task_has_its_keys(keys: Keys) -> None:
    first, original = keys.run()
    inner, leaf = keys.tasks.children(first)
    _, inner_again = keys.replay(inner["id"])
    _, leaf_again = keys.replay(leaf["id"])
    assert sorted(inner_again + leaf_again) == original


def test_replay_with_new_keys_has_them_down_the_tree(keys: Keys) -> None:
    first, original = keys.run()
    other, renewed = keys.replay(first, new_keys=True)
    assert not set(renewed) & set(original)
    assert keys.replay(other)[1] == renewed


def test_a_replay_from_a_step_with_new_keys_has_them_too(keys: Keys) -> None:
    first, original = keys.run()
    assert keys.replay(first, from_step=1)[1] == original
    assert not set(keys.replay(first, from_step=1, new_keys=True)[1]) & set(original)


def test_sub_tasks_of_0_2_keep_their_keys(keys: Keys) -> None:
    """They were accepted without an origin of their tree."""
    first, original = keys.run()
    leaf = keys.tasks.children(first)[1]["id"]
    with keys.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET effect_origin = NULL")
    _, as_before = keys.replay(leaf)
    assert not set(as_before) & set(original)
    assert keys.replay(leaf)[1] == as_before
