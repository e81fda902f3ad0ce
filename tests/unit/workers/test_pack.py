"""A pack in its slot, without a database."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from workers.cells import CELLS, Cell
from workers.pack import Pack
from workers.run_messages import Entry
from workers.task import ClaimedTask


def test_slot_and_main_process_agree_on_the_last_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot notes a task before it looks for the request to stop, so none is given back that it runs."""
    main = Cell(CELLS - 1, 1)
    main.open()
    pack = Pack([Entry(UUID(int=n), 0, 60, 30, "A") for n in range(4)], uuid4(), Cell(CELLS - 1, 1))
    handled: list[int] = []

    def handle(index: int, task: ClaimedTask | None) -> None:
        handled.append(index)
        assert main.read(4).running == index
        if index == 1:
            main.stop()

    monkeypatch.setattr(pack, "_claim", dict)
    monkeypatch.setattr(pack, "_handle", handle)
    assert pack.run() == []
    assert handled == [0, 1]
    assert main.read(4).last == 2
