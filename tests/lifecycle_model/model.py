"""A second specification, in plain Python, of how the database's functions change tasks.

`Model` has one method for each function of `shared.tasks.lifecycle`: it changes the model and returns the expected
answer. It has no locks, no counters and no transactions: where the database keeps a count, it counts; where the
database rolls back, the model is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.tasks.lifecycle import Accepted
from shared.tasks.states import FINAL, State

Answer = Any
SCOPES = ("agent", "capability", "key")  # in the order in which the database checks them


class Mismatch(AssertionError):
    """The database did something that the model does not permit."""


@dataclass
class Step:
    """A journaled step. `due`: its time-out has passed; None: it has none. `output` as `plain_output` returns it."""

    kind: str
    status: str
    name: str = ""
    output: Any = None
    due: bool | None = None


@dataclass
class Task:
    """A task with its steps and other state."""

    id: UUID
    agent: str
    key: str
    most_attempts: int
    parent: Task | None = None
    parent_step: int | None = None
    state: State = State.PENDING
    claim: int = 0
    attempts: int = 0
    losses: int = 0
    cancel: bool = False
    due: bool = False  # the time of a scheduled task, a back-off or a snooze has come
    overdue: bool = False
    steps: dict[int, Step] = field(default_factory=dict)
    executions: dict[int, str] = field(default_factory=dict)
    worker: UUID | None = None
    signals: list[tuple[str, Any]] = field(default_factory=list)
    unique_key: str | None = None
    held_while: str = "running"
    conversation: str | None = None

    @property
    def live(self) -> bool:
        return self.state not in FINAL

    @property
    def open_steps(self) -> dict[int, Step]:
        """Return the sub-tasks and waits that are not over."""
        return {n: s for n, s in self.steps.items() if s.kind in ("subtask", "wait") and s.status == "started"}

    @property
    def next_step(self) -> int:
        return max(self.steps, default=0) + 1

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0

    @property
    def root(self) -> Task:
        return self.parent.root if self.parent else self

    def names(self, scope: str) -> str:
        """Return the name of the task for a pause or a limit of this scope."""
        return {"agent": self.agent, "capability": "work", "key": self.key}[scope]

    def view(self) -> dict[str, Any]:
        """Return the values that must be the same in the database."""
        return {
            "state": str(self.state),
            "claim": self.claim,
            "attempts": self.attempts,
            "losses": self.losses,
            "cancel": self.cancel,
            "worker": self.worker,
            "open_waits": len(self.open_steps) if self.state == State.WAITING else 0,
            "steps": {n: (s.kind, s.status, s.output) for n, s in sorted(self.steps.items())},
            "executions": dict(sorted(self.executions.items())),
            "outcome": str(self.state) if not self.live else None,
            "unique_key": self.unique_key,
            "untaken": len(self.signals),
        }


class Model:
    """All tasks, the workers, and the pauses, rate holds and limits in force."""

    def __init__(self, most_attempts: dict[str, int]) -> None:
        self.most_attempts = most_attempts
        self.tasks: dict[UUID, Task] = {}
        self.idempotent: dict[str, tuple[UUID, tuple[str, str | None]]] = {}
        self.workers: dict[UUID, bool] = {}
        self.pauses: set[tuple[str, str]] = set()
        self.holds: set[tuple[str, str]] = set()
        self.limits: dict[tuple[str, str], int] = {}

    def view(self) -> dict[UUID, dict[str, Any]]:
        """Return the values that must be the same in the database."""
        return {task.id: task.view() for task in self.tasks.values()}

    def family(self, task: UUID) -> frozenset[UUID]:
        """Return all tasks with the same root: a call that changes one of them may hold the rows of the others."""
        root = self.tasks[task].root
        return frozenset(other.id for other in self.tasks.values() if other.root is root)

    # ---------------------------------------------------------------------------------------------- operators

    def accept(self, request: dict[str, Any], seen: Answer) -> Answer:
        """Accept a task; its id is taken from the actual answer."""
        agent, key = request["agent"], request.get("key")
        idempotency, unique = request.get("idempotency_key"), request.get("unique_key")
        if idempotency in self.idempotent:
            task, asked = self.idempotent[idempotency]
            return Accepted(task, False) if asked == (agent, key) else "IdempotencyConflict"
        holder = next((t.id for t in self.tasks.values() if unique and t.unique_key == unique), None)
        if not isinstance(seen, Accepted) or (holder is None and seen.task_id in self.tasks):
            raise Mismatch(f"a new task was expected, not {seen}")
        if idempotency is not None:
            self.idempotent[idempotency] = (holder or seen.task_id, (agent, key))
        if holder is not None:
            return Accepted(holder, False)
        task = self._add(seen.task_id, agent, key)
        task.state = State.SCHEDULED if "run_at" in request else State.PENDING
        task.unique_key, task.held_while = unique, request.get("unique_while", "running")
        task.conversation = request.get("conversation_id")
        return Accepted(task.id, True)

    def predecessor(self, task: Task) -> Task | None:
        """Return the previous task of its conversation: it has begun, or was accepted earlier."""
        others = [other for other in self.tasks.values() if other.conversation and other is not task and other.live]
        return next(
            (
                other
                for other in others
                if other.conversation == task.conversation
                and other.state != State.SCHEDULED
                and (other.claim > 0 or other.id < task.id)
            ),
            None,
        )

    def _add(self, number: UUID, agent: str, key: str | None, parent: Task | None = None, step: int = 0) -> Task:
        task = Task(number, agent, key or "", self.most_attempts[agent], parent, step or None)
        self.tasks[number] = task
        return task

    def cancel(self, number: UUID) -> Answer:
        """Cancel tasks that do not run, and ask running ones to stop."""
        return self._end_tree(number, State.CANCELLED)

    def expire(self, number: UUID) -> Answer:
        """End the task, running or not, and cancel the tasks below it."""
        return self._end_tree(number, State.EXPIRED)

    def _end_tree(self, number: UUID, final: State) -> Answer:
        for member in self._below(self.tasks[number]):
            ended = final if member.id == number else State.CANCELLED
            if not member.live:
                continue
            if member.state == State.RUNNING and ended == State.CANCELLED:
                member.cancel = True
            else:
                self._close(member, str(ended))
                self._settle(member, ended)
        return self.tasks[number].state

    def _below(self, task: Task) -> Iterator[Task]:
        yield task
        for child in [other for other in self.tasks.values() if other.parent is task]:
            yield from self._below(child)

    def signal(self, number: UUID, name: str, payload: Any) -> Answer:
        """Deliver a signal to the first open wait of its name, or keep it."""
        task = self.tasks[number]
        if not task.live:
            return "Conflict"
        task.signals.append((name, payload))
        if task.state == State.WAITING:
            waits = [n for n, s in sorted(task.open_steps.items()) if s.kind == "wait" and s.name == name]
            if waits and self._take_signal(task, waits[0]):
                self._wake_if_free(task)
        return task.state

    def _take_signal(self, task: Task, number: int) -> bool:
        step = task.steps[number]
        for index, (name, payload) in enumerate(task.signals):
            if name == step.name:
                del task.signals[index]
                step.status, step.output = "finished", payload
                return True
        return False

    # --------------------------------------------------------------------------------------- the orchestrator

    def free(self, task: Task) -> bool:
        """Return whether nothing blocks a pending task."""
        flight = self.flight()
        return (
            task.state == State.PENDING
            and any(self.workers.values())
            and not any((scope, task.names(scope)) in self.pauses | self.holds for scope in SCOPES)
            and all(flight.get(rule, 0) < most for rule, most in self.rules_of(task).items())
        )

    def in_turn(self, task: Task) -> bool:
        """Return whether no earlier task of the conversation is first. A task that has begun stays first."""
        return task.claim > 0 or self.predecessor(task) is None

    def rules_of(self, task: Task) -> dict[tuple[str, str], int]:
        """Return the limits that apply to a task, each under its narrow name."""
        rules = {}
        for scope in SCOPES:
            name = task.names(scope)
            most = self.limits.get((scope, name), self.limits.get((scope, "*")))
            if most is not None and name:
                rules[scope, name] = most
        return rules

    def flight(self, *states: State) -> dict[tuple[str, str], int]:
        """Count the tasks in these states (queued or running by default), by scope and name."""
        counts: dict[tuple[str, str], int] = {}
        for task in self.tasks.values():
            if task.state in (states or (State.QUEUED, State.RUNNING)):
                for scope in SCOPES:
                    counts[scope, task.names(scope)] = counts.get((scope, task.names(scope)), 0) + 1
        return counts

    def dispatch(self, seen: list[tuple[UUID, int]], *, partial: bool = False) -> Answer:
        """Dispatch the tasks that the database chose, if each is permitted. The model does not check their order.

        Args:
            partial: some rows may have been skipped, because another call held them.
        """
        free = {task.id for task in self.tasks.values() if self.free(task)}
        taken = {task for task, _ in seen}
        before = self.flight()
        # A task that was accepted while another one overtook it may come too early: its claim reports that.
        if not taken <= free:
            raise Mismatch(f"dispatched although not free: {taken - free}")
        free = {number for number in free if self.in_turn(self.tasks[number])}
        for number in taken:
            self.tasks[number].state = State.QUEUED
        after = self.flight()
        for task in self.tasks.values():
            for rule, most in self.rules_of(task).items():
                if after.get(rule, 0) > max(most, before.get(rule, 0)):
                    raise Mismatch(f"{after[rule]} in flight, {most} permitted: {rule}")
        if not partial and ((free and not taken) or (not self.limits and not free <= taken)):
            raise Mismatch(f"left in line: {free - taken}")
        return sorted((number, self.tasks[number].claim) for number in taken)

    def wake_due(self, skip: frozenset[UUID] = frozenset()) -> Answer:
        """Wake the tasks that are due, except those whose rows another call holds."""
        woken = 0
        for task in [task for task in self.tasks.values() if task.id not in skip]:
            waits = task.open_steps
            if task.state == State.SCHEDULED or (task.state == State.WAITING and not waits):
                if task.due:
                    self._wake(task)
                    woken += 1
            elif task.state == State.WAITING and any(step.due for step in waits.values()):
                for step in waits.values():
                    if step.due:
                        step.status, step.output = "finished", "timed out"
                woken += self._wake_if_free(task)
        return woken

    def time_passes(self, number: UUID) -> None:
        """Make every wait of the task that depends on the clock due."""
        task = self.tasks[number]
        task.due = task.state in (State.SCHEDULED, State.WAITING)
        for step in task.open_steps.values():
            step.due = None if step.due is None else True

    def republish(self) -> Answer:
        """Republish every queued task: in the model all messages are late and all workers idle."""
        if not any(self.workers.values()):
            return []
        return sorted((task.id, task.claim) for task in self.tasks.values() if task.state == State.QUEUED)

    def hold(self, number: UUID, expected: int, scope: str) -> Answer:
        """Return the task to pending, and begin a rate hold in this scope."""
        task = self.tasks[number]
        if self.awaits_claim(number, expected):
            task.state = State.PENDING
            self.holds.add((scope, task.names(scope)))

    # --------------------------------------------------------------------------------------------- the minion

    def claim(self, number: UUID, expected: int, worker: UUID) -> Answer:
        """Return None, `("refused", kind)`, or the claim with its steps."""
        task = self.tasks[number]
        if not self.awaits_claim(number, expected) or task.overdue or not self.workers[worker]:
            return None
        obstacle = self._obstacle(task)
        if obstacle is not None:
            task.state = State.PENDING
            return ("refused", obstacle)
        task.state, task.worker = State.RUNNING, worker
        task.claim += 1
        task.executions[task.claim] = "running"
        if task.held_while == "pending":
            task.unique_key = None
        steps = {n: (s.kind, s.status, s.output) for n, s in sorted(task.steps.items())} if task.claim > 1 else {}
        return ("claimed", task.claim, task.attempts, steps)

    def _obstacle(self, task: Task) -> str | None:
        if not self.in_turn(task):
            return "turn"
        if any((scope, task.names(scope)) in self.pauses for scope in SCOPES):
            return "paused"
        running = self.flight(State.RUNNING)
        full = any(running.get(rule, 0) >= most for rule, most in self.rules_of(task).items())
        return "max_running" if full else None

    def holds_claim(self, number: UUID, claim: int) -> bool:
        """Return whether a minion may still write under this claim."""
        task = self.tasks[number]
        return (task.state, task.claim) == (State.RUNNING, claim)

    def awaits_claim(self, number: UUID, expected: int) -> bool:
        """Return whether this message can still be claimed."""
        task = self.tasks[number]
        return (task.state, task.claim) == (State.QUEUED, expected)

    def _fenced(self, number: UUID, claim: int) -> Task | None:
        return self.tasks[number] if self.holds_claim(number, claim) else None

    def write_steps(self, number: UUID, claim: int, steps: dict[int, Step]) -> Answer:
        """Write steps; finished steps stay unchanged."""
        task = self._fenced(number, claim)
        if task is None:
            return None
        self._put(task, steps)
        return {"cancel": task.cancel}

    def _put(self, task: Task, steps: dict[int, Step]) -> None:
        for n, step in steps.items():
            if n not in task.steps or task.steps[n].status in ("started", "failed"):
                task.steps[n] = Step(step.kind, step.status, step.name, step.output)

    def finish(self, number: UUID, claim: int, state: State) -> Answer:
        """Finish the task; an earlier cancel takes precedence."""
        task = self._fenced(number, claim)
        if task is None:
            return None
        final = State.CANCELLED if task.cancel else state
        self._close(task, str(final))
        self._settle(task, final)
        return final

    def release(self, number: UUID, claim: int, how: str, charged: bool, delay: float) -> Answer:
        """Return the task to pending, or fail it if its attempts or lost workers are used up."""
        task = self._fenced(number, claim)
        if task is None:
            return None
        task.attempts += charged
        task.losses += how == "lost"
        lost_too_often = how == "lost" and task.losses >= max(task.most_attempts, 3)
        if task.cancel:
            self._close(task, "cancelled")
            self._settle(task, State.CANCELLED)
        elif (charged and task.attempts >= task.most_attempts) or lost_too_often:
            self._close(task, "lost" if how == "lost" else "failed")
            self._settle(task, State.FAILED)
        else:
            self._close(task, how)
            self._leave(task, State.WAITING if delay else State.PENDING)
        return task.state

    def suspend(self, number: UUID, claim: int, children: list[str], waits: list[Step], seen: list[UUID]) -> Answer:
        """Suspend the task; the sub-tasks' ids are taken from the actual answer."""
        task = self._fenced(number, claim)
        if task is None:
            return None
        if task.cancel:
            self._close(task, "cancelled")
            self._settle(task, State.CANCELLED)
            return task.state
        if len(seen) != len(children):
            raise Mismatch(f"{len(children)} sub-tasks were expected, not {len(seen)}")
        for agent, child in zip(children, seen, strict=True):
            self._add(child, agent, task.key, task, task.next_step)
            task.steps[task.next_step] = Step("subtask", "started", agent)
        for wait in waits:
            step = task.next_step
            task.steps[step] = Step("wait", "started", wait.name, None, wait.due)
            self._take_signal(task, step)
        self._close(task, "suspended")
        self._leave(task, State.WAITING if task.open_steps else State.PENDING)
        return task.state

    def snooze(self, number: UUID, claim: int) -> Answer:
        """Suspend the task for a while without charging an attempt."""
        task = self._fenced(number, claim)
        if task is None:
            return None
        if task.cancel:
            self._close(task, "cancelled")
            self._settle(task, State.CANCELLED)
        else:
            self._close(task, "suspended")
            self._leave(task, State.WAITING)
        return task.state

    # ------------------------------------------------------------------------------------------------ changes

    def _close(self, task: Task, how: str) -> None:
        if task.state == State.RUNNING:
            task.executions[task.claim] = how

    def _leave(self, task: Task, state: State) -> None:
        task.state, task.worker, task.due = state, None, False

    def _wake(self, task: Task) -> None:
        self._leave(task, State.PENDING)

    def _wake_if_free(self, task: Task) -> bool:
        if task.state != State.WAITING or task.open_steps:
            return False
        self._wake(task)
        return True

    def _settle(self, task: Task, final: State) -> None:
        self._leave(task, final)
        task.unique_key = None
        if task.parent is not None and task.parent_step is not None:
            step = task.parent.steps[task.parent_step]
            step.status = "finished" if final == State.SUCCEEDED else "failed"
            self._wake_if_free(task.parent)
