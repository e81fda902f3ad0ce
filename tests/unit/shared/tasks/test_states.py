"""The transition table and the diagram drawn from it."""

from __future__ import annotations

import pytest

from shared.tasks.states import FINAL, INITIAL, LIVE, TRANSITIONS, State, allowed, diagram


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_states_have_no_successor(state: State) -> None:
    assert state.final
    assert not any(allowed(state, after) for after in State)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_live_state_can_be_cancelled_and_expires(state: State) -> None:
    assert not state.final
    assert allowed(state, State.CANCELLED)
    assert allowed(state, State.EXPIRED)


def test_every_state_is_reachable() -> None:
    reached = set(INITIAL)
    for _ in State:
        reached |= {after for before, after in TRANSITIONS if before in reached}
    assert reached == set(State)


def test_tasks_run_from_queued_and_succeed_from_running() -> None:
    assert {before for before, after in TRANSITIONS if after == State.RUNNING} == {State.QUEUED}
    assert {before for before, after in TRANSITIONS if after == State.SUCCEEDED} == {State.RUNNING}


def test_no_state_follows_itself() -> None:
    assert not any(before == after for before, after in TRANSITIONS)


def test_diagram_matches_the_transition_table() -> None:
    lines = [line.split(maxsplit=3) for line in diagram().splitlines()]
    drawn = {(line[0], line[2]) for line in lines}
    assert drawn == TRANSITIONS.keys() | {("(new)", state) for state in INITIAL}
    assert len(lines) == len(drawn)
