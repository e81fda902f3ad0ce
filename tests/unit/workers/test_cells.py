"""Cells: the memory that a slot shares with the main process."""

from __future__ import annotations

from workers.cells import CELLS, LENGTH, LENGTH_AT, SIZE, Cell, _memory

END = '{"task":"é"}'


def cell(owner: int, number: int = CELLS - 1) -> Cell:
    return Cell(number, owner)


def test_progress_is_read_by_the_main_process() -> None:
    main, slot = cell(1), cell(1)
    main.open()
    assert main.read(2).last is None
    slot.begin(0, 2.5)
    assert (main.read(2).running, main.read(2).since) == (0, 2.5)
    assert slot.keep(END)
    slot.end(0)
    assert (main.read(2).last, main.read(2).running, main.unsaved()) == (0, None, [{"task": "é"}])
    slot.saved()
    assert main.unsaved() == []


def test_end_that_does_not_fit_is_refused() -> None:
    slot = cell(2)
    slot.open()
    assert not slot.keep(f'"{"x" * SIZE}"')
    assert not slot.keep('"\ud800"')
    assert slot.unsaved() == []


def test_ends_that_are_being_replaced_are_left_out() -> None:
    main, slot = cell(5), cell(5)
    main.open()
    for _ in range(3):
        assert slot.keep('{"result":{"output":"old"}}')
    # The main process has read the length before this, and the ends after it.
    slot._length = 0
    assert slot.keep(END)
    main_length = 3 * len('{"result":{"output":"old"}}\n')
    LENGTH.pack_into(_memory, (CELLS - 1) * SIZE + LENGTH_AT, main_length)
    assert main.unsaved() == [{"task": "é"}, *[{"result": {"output": "old"}}] * 2]


def test_slot_of_a_forgotten_pack_stops_and_leaves_the_next_pack_alone() -> None:
    forgotten, following = cell(3), cell(4)
    forgotten.open()
    assert not forgotten.stopped
    following.open()
    following.begin(0, 1.0)
    assert following.keep(END)
    assert forgotten.read(3).last is None
    before = following.read(3), following.unsaved()
    forgotten.begin(2, 9.0)
    forgotten.end(0)
    assert not forgotten.keep(END)
    forgotten.saved()
    assert forgotten.stopped
    assert not following.stopped
    assert (following.read(3), following.unsaved()) == before
