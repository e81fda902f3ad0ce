"""The fixtures. None is used automatically, and importing this module loads nothing but pytest.

minions         agents in the test's process: the worker's code runs when the test says so
live_minions    the same with an orchestrator and workers as processes, like in production
module_minions  `minions` for all tests of a module together, with one expensive setup
scripted_model  the model of both: a local server with a script of replies
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from minions.testing import MessagesApi
    from pytest_minions.installation import Installation
    from pytest_minions.kit import Minions
    from pytest_minions.servers import Servers


@pytest.fixture(scope="session")
def minions_servers() -> Iterator[Servers]:
    """PostgreSQL, Valkey and the model, private to this process. They end with it, even if it is killed."""
    from pytest_minions.servers import serving

    with serving() as servers:
        yield servers


@pytest.fixture(scope="session")
def _inline_installation(minions_servers: Servers) -> Iterator[Installation]:
    from pytest_minions.inline import inline

    with inline(minions_servers) as installation:
        yield installation


@pytest.fixture(scope="session")
def _live_installation(minions_servers: Servers) -> Iterator[Installation]:
    from pytest_minions.processes import live

    with live(minions_servers) as installation:
        yield installation


@pytest.fixture
def scripted_model(minions_servers: Servers) -> MessagesApi:
    """The model of all agents: set its `script`, read its `requests`. See `minions.testing.MessagesApi`."""
    minions_servers.model.reset()
    return minions_servers.model


@pytest.fixture
def minions(
    _inline_installation: Installation, scripted_model: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Minions]:
    """An empty installation, whose tasks run in the test's process when the test calls `run_until_idle`."""
    with _inline_installation.emptied(monkeypatch) as kit:
        yield kit


@pytest.fixture(scope="module")
def module_minions(_inline_installation: Installation, minions_servers: Servers) -> Iterator[Minions]:
    """`minions` for a whole module: empty at its first test, and shared by all of them."""
    minions_servers.model.reset()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        _inline_installation.emptied(monkeypatch) as kit,
        _inline_installation.kept_for("module_minions"),
    ):
        yield kit


@pytest.fixture
def live_minions(
    _live_installation: Installation, scripted_model: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Minions]:
    """An empty installation with an orchestrator and workers as child processes, which start once per session."""
    with _live_installation.emptied(monkeypatch) as kit:
        yield kit
