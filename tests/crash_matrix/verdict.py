"""The promises that a run must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.crash_matrix.lane import Played
from tests.crash_matrix.world import AGENTS, ANSWER, BATCHED, CLAIMS, EFFECTS, IMAGES, REQUESTS

NEEDED = sum(REQUESTS.values())


def broken(played: Played) -> list[str]:
    """Return the broken promises; empty if there are none."""
    return [*_end(played), *_requests(played), *_effects(played), *_questions(played)]


def disturbed(played: Played) -> str | None:
    """Return why a run proves nothing: its point was not reached, or the machine was so slow that a living worker
    missed its lease of a second.
    """
    if len(played.snapshots) < len(played.cell.strikes):
        return "the point was not reached"
    claims = sum(played.claims.values())
    lost = [agent for snapshot in played.snapshots for agent, _ in snapshot.lost]
    wanted = sum(CLAIMS.values()) + played.questions + len(lost)
    # The next claim waits for the answer to the call again, or finds it.
    spared = sum(agent in BATCHED for agent in lost)
    return None if wanted - spared <= claims <= wanted else f"{claims} claims, not {wanted}"


def requests_made(played: Played) -> int:
    """Return the number of requests to the model."""
    return sum(done.what.startswith("model ") for done in played.done)


def _end(played: Played) -> Iterator[str]:
    if (played.state, played.output) != ("succeeded", ANSWER):
        yield f"the task is {played.state} with {played.output or played.error}"
    if played.tree != Counter((agent, "succeeded") for agent in AGENTS):
        yield f"the tree is {dict(played.tree)}"
    if played.files != IMAGES:
        yield f"the task has the files {sorted(played.files)}"
    if played.notes != ["create"]:
        yield f"the changes of the memory are {played.notes}"
    if played.left_open:
        yield f"{played.left_open} executions look as if they ran"
    if unfinished := [step["name"] for step in played.steps if step["status"] != "finished"]:
        yield f"steps that are not finished: {unfinished}"


def _requests(played: Played) -> Iterator[str]:
    for agent, requests in REQUESTS.items():
        for number in range(1, requests + 1):
            yield from _performed(played, agent, f"model {number}", "model request")
    wanted = NEEDED + sum(len(_in_between(played, phase)) for phase in range(len(played.snapshots)))
    if not wanted <= requests_made(played) <= wanted + _thawed_requests(played):
        yield f"{requests_made(played)} model requests, not {wanted}"


def _in_between(played: Played, phase: int) -> set[tuple[str, str]]:
    """Return the requests whose reply was lost, because the process that waited for it was killed before its commit."""
    snapshot = played.snapshots[phase]
    asked = {
        (done.agent, done.what)
        for done in played.done
        if done.what.startswith("model ") and done.phase <= phase and done.agent not in BATCHED
    }
    return asked - snapshot.finished if snapshot.lost else set()


def _thawed_requests(played: Played) -> int:
    """Count the requests that a frozen process may send when it continues: their step had begun without a request."""
    return sum(
        what.startswith("model ")
        and not any((done.agent, done.what, done.phase) == (agent, what, 0) for done in played.done)
        for snapshot in played.snapshots
        if snapshot.strike.victim == "frozen" and snapshot.lost
        for agent, what in snapshot.begun
    )


def _effects(played: Played) -> Iterator[str]:
    for agent, tools in EFFECTS.items():
        for tool, effect in tools.items():
            yield from _performed(played, agent, tool, f"{effect} effect")
            made = [done for done in played.done if (done.agent, done.what) == (agent, tool)]
            if effect == "unsafe" and len(made) != 1:
                yield f"unsafe effect {tool} of {agent}: {len(made)} times"
            if len({done.key for done in made}) > 1:
                yield f"{tool} of {agent} came with several idempotency keys"


def _performed(played: Played, agent: str, what: str, kind: str) -> Iterator[str]:
    """Check that each happened at least once; again only after a strike that found it unfinished, once for each."""
    times = Counter(done.phase for done in played.done if (done.agent, done.what) == (agent, what))
    if not times:
        yield f"{kind} {what} of {agent}: never"
    for phase in range(len(played.snapshots) + 1):
        done_before = [snapshot for snapshot in played.snapshots[:phase] if (agent, what) in snapshot.finished]
        if done_before and times[phase]:
            yield f"{kind} {what} of {agent}: again, though it was finished"
        if times[phase] > 1 + _may_continue(played, agent, what):
            yield f"{kind} {what} of {agent}: {times[phase]} times without a cause"
    losses = sum(bool(snapshot.lost) for snapshot in played.snapshots)
    if what.startswith("model ") and agent in BATCHED:
        losses = 0
    if sum(times.values()) > 1 + losses:
        yield f"{kind} {what} of {agent}: {sum(times.values())} times"


def _may_continue(played: Played, agent: str, what: str) -> bool:
    """Return whether a frozen process had begun this effect: it may cause that one when it continues, no other."""
    is_pure = EFFECTS[agent].get(what) == "pure"
    return any(
        snapshot.strike.victim == "frozen" and (is_pure or (agent, what) in snapshot.begun)
        for snapshot in played.snapshots
        if snapshot.lost
    )


def _questions(played: Played) -> Iterator[str]:
    """Check that operators are asked about each interrupted unsafe step, and about nothing else."""
    interrupted = {what for snapshot in played.snapshots if snapshot.lost for what in snapshot.interrupted}
    if played.questions != len(interrupted):
        yield f"{played.questions} questions were asked, not {len(interrupted)} ({', '.join(map(str, interrupted))})"
