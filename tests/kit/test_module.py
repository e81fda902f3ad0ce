"""One installation for all tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from minions import Task
from pytest_minions.kit import Minions

AGENTS = Path(__file__).parent / "desk.yaml"


@pytest.fixture(scope="module")
def priced(module_minions: Minions) -> Task:
    """A task that has ended: the expensive setup."""
    module_minions.apply(AGENTS)
    return module_minions.finish(module_minions.submit("pricing", {"boats": 2}))


@pytest.mark.parametrize("_", range(2))
def test_setup_is_shared_by_tests_of_the_module(priced: Task, module_minions: Minions, _: int) -> None:
    assert priced.output == {"cents": 500}
    assert [task.id for task in module_minions.client.tasks()] == [priced.id]


def test_emptying_fixture_is_refused_beside_it(priced: Task, request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match="would empty what 'module_minions' keeps"):
        request.getfixturevalue("minions")
