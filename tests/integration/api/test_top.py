"""The live view: `minion top`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minions import Client
from orchestrator.api.app import create_app
from shared.settings import Settings, get_settings
from tests.integration.api.conftest import Api, Run, WithKey, serving
from tests.integration.conftest import InlineWorker
from tests.support.terminal import Terminal, at_terminal


@pytest.fixture
def busy(client: Client, act: Any, inline_worker: InlineWorker) -> str:
    """A task that has ended; two others wait."""
    act("Act")
    done = client.submit("Act", {"answer": 1}).id
    inline_worker.run_all()
    client.submit("Act", {}, capability="work")
    client.submit("Act", {}, capability="work")
    return done


def test_once_is_text_or_json(run_cli: Run, busy: str) -> None:
    shown = run_cli("top", "--once").out
    for part in ("1 pending, 1 queued", "capability", "work", "worker", "task", "$0.0000 today (UTC)", busy):
        assert part in shown
    read = json.loads(run_cli("top", "--json").out)
    assert [each["name"] for each in read["capabilities"]] == ["other", "work"]
    assert {"oldest_pending", "pending"} <= set(read["capabilities"][0])
    assert [task["id"] for task in read["tasks"]][-1] == busy
    assert (read["cost_today"], read["alerts"]) == (0.0, [])
    assert run_cli("top", "--sort", "age").code == 2


@pytest.mark.usefixtures("busy")
def test_parts_that_are_not_permitted_say_so(run_cli: Run, with_key: WithKey, monkeypatch: pytest.MonkeyPatch) -> None:
    key = with_key("submitter", namespace="default").headers["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("MINION_API_KEY", key)
    get_settings.cache_clear()
    done = run_cli("top", "--once")
    assert done.code == 0, done.err
    assert "permission" in done.out or "may not" in done.out


def quit_by_key(terminal: Terminal) -> None:
    terminal.type("q")
    assert terminal.ended() == 0


def test_keys_sort_filter_and_quit(http_api: Api, busy: str) -> None:
    with at_terminal("top", "--interval", "3600", env={"MINION_API_URL": http_api.url}) as terminal:
        terminal.see("sort pending, tasks all")
        terminal.see(busy)
        terminal.type("s")
        terminal.see("sort name")
        terminal.type("fnothing")
        terminal.see("filter: nothing_")
        terminal.type("\n")
        terminal.see("filter 'nothing'")
        terminal.type("t")
        terminal.see("tasks running")
        terminal.resize(60, 20)
        terminal.see("minion top")
        quit_by_key(terminal)


def test_interrupt_restores_the_terminal(http_api: Api, busy: str) -> None:
    with at_terminal("top", env={"MINION_API_URL": http_api.url}) as terminal:
        terminal.see(busy)
        terminal.interrupt()
        assert terminal.ended() == 130


def test_refusal_leaves_the_figures_and_says_when_the_next_come(http_api: Api, with_key: WithKey, busy: str) -> None:
    key = with_key("admin", requests_per_minute=6).headers["Authorization"].removeprefix("Bearer ")
    env = {"MINION_API_URL": http_api.url, "MINION_API_KEY": key}
    with at_terminal("top", "--interval", "1", env=env) as terminal:
        terminal.see(busy)
        terminal.see("Old figures; the next in")
        terminal.see("The key 'admin-")
        quit_by_key(terminal)


def test_server_that_goes_away_and_returns(settings: Settings, client: Client, busy: str) -> None:
    with serving(create_app(settings)) as port:
        env = {"MINION_API_URL": f"http://127.0.0.1:{port}"}
        terminal_context = at_terminal("top", "--interval", "1", env=env)
        terminal = terminal_context.__enter__()
        terminal.see(busy)
    try:
        terminal.see("Old figures; the next in", timeout=60)
        made = client.submit("Act", {}).id
        with serving(create_app(settings), port):
            terminal.see(made, timeout=60)
            quit_by_key(terminal)
    finally:
        terminal_context.__exit__(None, None, None)
