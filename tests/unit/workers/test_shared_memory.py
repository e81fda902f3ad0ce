"""The slots of a worker share the zygote of the sandbox."""

from __future__ import annotations

import os

import pytest

from shared.functions import runner
from shared.sandbox.fork_server import ForkServer
from workers import shared_memory


def test_slots_share_one_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_keepers", [])
    monkeypatch.setattr(shared_memory.gc, "freeze", lambda: None)
    shared_memory.share_memory.__wrapped__()
    pid = os.fork()
    if pid == 0:
        sandbox = runner.get_sandbox()
        fine = sandbox.call("def f(): return 1", "f", {}).ok
        shared = isinstance(sandbox._server, ForkServer) and sandbox._server._process is None
        os._exit(0 if fine and shared else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_slots_share_nothing_where_no_zygote_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_keepers", [])
    monkeypatch.setattr("shared.sandbox.levels.unsupported", lambda: "no confinement is known for darwin")
    runner.share_sandbox()
    assert runner._keepers == []
