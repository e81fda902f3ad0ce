"""A seeded part of the crash matrix, and tests that its verdict notices broken promises.

`make crash-matrix` plays all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest

from tests.crash_matrix.cells import VICTIMS, Cell, Point, Strike, Victim, share_of
from tests.crash_matrix.lane import Done, Played, Snapshot
from tests.crash_matrix.matrix import all_cells, lanes, play_all
from tests.crash_matrix.verdict import broken, disturbed
from tests.crash_matrix.world import AGENTS, ANSWER, CLAIMS, EFFECTS, IMAGES, REQUESTS

# Another part each day: in a month, most cells have had their turn.
SEED = date.today().toordinal()
SHARE = 0.024
LANES = 3
# The next strike comes while the loss is being reported, before the first one has been noted.
STRUCK_REPORT = "child at lead · mail · effect made, then worker at lead · give back (lost) · before commit"


def test_part_of_the_matrix_keeps_every_promise() -> None:
    with lanes(LANES) as opened:
        cells = all_cells(opened)
        chosen = share_of(cells, SHARE, SEED)
        print(f"seed {SEED}, {len(chosen)} of {len(cells)} cells")
        assert {cell.strikes[-1].victim for cell in chosen} == set(VICTIMS)
        progress = {cell.strikes[-1].point.where for cell in cells}
        assert {cell.strikes[-1].point.where for cell in chosen} == progress
        [struck_report] = [cell for cell in cells if str(cell) == STRUCK_REPORT]
        chosen = list(dict.fromkeys([struck_report, *chosen]))
        results = play_all(opened, chosen, lambda result: print(result.cell, result.broken or "ok", result.again))
        assert [lane.findings() for lane in opened] == [[]] * LANES
    wrong = {str(result.cell): result.broken for result in results if result.broken}
    # On a machine so slow that a living worker misses its lease again and again, a cell proves nothing.
    undecided = [cell for cell, faults in wrong.items() if all(fault.startswith("disturbed") for fault in faults)]
    assert {cell: faults for cell, faults in wrong.items() if cell not in undecided} == {}
    assert STRUCK_REPORT not in undecided
    assert len(undecided) <= 2


MAIL = ("lead", "mail")


def good(victim: Victim = "worker") -> Played:
    """Return a run whose worker was killed after the mail and before its record; all earlier steps were committed."""
    strike = Strike(Point("lead", "mail", "effect made"), victim)
    lost = frozenset({("lead", 1)}) if victim in ("child", "lane", "worker", "frozen") else frozenset()
    finished = {("lead", what) for what in ("model 1", "model 2", "double", "draw", "charge", "order")}
    snapshot = Snapshot(strike, frozenset(finished), frozenset({MAIL}), lost)
    played = Played(Cell((strike,)), snapshots=[snapshot], state="succeeded", output=ANSWER)
    made = [(agent, f"model {number}") for agent, last in REQUESTS.items() for number in range(1, last + 1)]
    made += [(agent, tool) for agent, tools in EFFECTS.items() for tool in tools]
    played.done = [Done(*what, phase=int(what not in {*finished, MAIL}), key="key") for what in made]
    played.questions = len(lost)
    played.files, played.notes = set(IMAGES), ["create"]
    played.tree = Counter((agent, "succeeded") for agent in AGENTS)
    played.claims = {**CLAIMS, "lead": CLAIMS["lead"] + 2 * len(lost)}
    return played


def again(what: tuple[str, str], **changes: str) -> Callable[[Played], object]:
    """Repeat an action after the strike."""
    return lambda played: played.done.append(
        replace(next(done for done in played.done if (done.agent, done.what) == what), phase=1, **changes)
    )


@pytest.mark.parametrize("victim", VICTIMS)
def test_good_run_breaks_no_promise(victim: Victim) -> None:
    assert (broken(good(victim)), disturbed(good(victim))) == ([], None)


@pytest.mark.parametrize(
    ("break_it", "seen"),
    [
        (lambda played: setattr(played, "output", {}), "the task is succeeded with"),
        (lambda played: setattr(played, "state", "running"), "the task is running"),
        (lambda played: played.tree.update([("helper", "succeeded")]), "the tree is"),
        (lambda played: played.steps.append({"name": "peek", "status": "started"}), "not finished: ['peek']"),
        (lambda played: played.files.pop(), "the task has the files ["),
        (lambda played: played.notes.append("create"), "the changes of the memory are ['create', 'create']"),
        (lambda played: setattr(played, "left_open", 1), "look as if they ran"),
        (again(("lead", "model 1")), "model request model 1 of lead: again, though it was finished"),
        (again(("lead", "model 3")), "13 model requests, not 12"),
        (again(("helper", "model 1")), "model request model 1 of helper: 2 times"),
        (again(("lead", "charge")), "idempotent effect charge of lead: again, though it was finished"),
        (again(("lead", "price")), "pure effect price of lead: 2 times without a cause"),
        (again(("lead", "order"), key="other"), "order of lead came with several idempotency keys"),
        (again(MAIL), "unsafe effect mail of lead: 2 times"),
        (lambda played: played.done.pop(), "peek of late: never"),
        (lambda played: setattr(played, "questions", 0), "0 questions were asked, not 1"),
    ],
)
def test_broken_promise_is_noticed(break_it: Callable[[Played], object], seen: str) -> None:
    played = good()
    break_it(played)
    assert any(seen in promise for promise in broken(played)), broken(played)


def test_frozen_process_may_finish_only_the_effect_it_began() -> None:
    """It may repeat the effect that it had begun, and nothing else."""
    played = good("frozen")
    again(("lead", "ship"))(played)
    assert broken(played) == [
        "unsafe effect ship of lead: 2 times without a cause",
        "unsafe effect ship of lead: 2 times",
    ]
    played = good("frozen")
    again(("lead", "order"))(played)
    assert any("again, though it was finished" in promise for promise in broken(played))
    played = good("frozen")
    again(("lead", "price"))(played)
    assert broken(played) == []


def test_disturbed_run_is_recognised() -> None:
    slow = good()
    slow.claims["helper"] += 1
    assert disturbed(slow) == "16 claims, not 15"
    missed = replace(good(), snapshots=[])
    assert disturbed(missed) == "the point was not reached"
