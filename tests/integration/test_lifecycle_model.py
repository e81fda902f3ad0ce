"""The state machine of a task, explored: Hypothesis calls the real functions in any order, and the model says what each
must answer and what the tables must hold afterwards.

Two or more minions and an orchestrator act in any order. Every message that was ever sent, and every claim that a
minion ever held, may come up again at any time: messages are duplicated and lost, minions freeze and come back. Each
call may be rolled back (a crash before the commit), or committed and made again by a caller who never learned of it (a
crash after the commit). Two calls may overlap: then the outcome must be that of one order or of the other.

At the end of each run healthy minions and an orchestrator take over: everything that was accepted comes to its end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import combinations
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator.rescuer import ORPHANED, OVERDUE
from orchestrator.routing import prepare_pending
from shared import lifecycle
from shared.states import State
from tests.by_hand import NOOP, agent
from tests.conftest import Define
from tests.model import (
    BROKEN_PROMISES,
    FORGET_CHANGES,
    LOG_CHANGES,
    SCOPES,
    Answer,
    Mismatch,
    Model,
    Operation,
    Step,
    Task,
    observe,
    plain_output,
)

MOST_ATTEMPTS = {"A": 3, "B": 1}
LATER = 3600.0  # seconds: nothing is due by itself while a run lasts
ERROR = {"type": "test", "message": "It failed."}
MOST_TASKS = 12  # in one run: enough for trees, few enough for the same task to be met again

CHOICE = st.integers(0, 1000)
AGENTS = st.sampled_from(sorted(MOST_ATTEMPTS))
KEYS = st.sampled_from([None, "t1", "t2"])
SIGNALS = st.sampled_from(["go", "stop"])
# What happens to the caller: nothing; it dies before the commit; it dies after it, and calls again.
FAULTS = st.sampled_from(["none", "none", "none", "none", "before", "after"])
NAMES = {"agent": ["A", "B", "*"], "capability": ["work", "*"], "key": ["t1", "t2", "*"]}
WAITS = st.lists(
    st.one_of(
        st.builds(
            Step, kind=st.just("wait"), status=st.just("started"), name=SIGNALS, due=st.sampled_from([None, False])
        ),
        st.just(Step("wait", "started", "timer", None, False)),
    ),
    max_size=2,
)

# Nothing of it is fenced by time, so that a run depends on its choices alone.
CLEAN = """
    DELETE FROM tasks; DELETE FROM workers; DELETE FROM pauses; DELETE FROM limits; DELETE FROM rate_holds;
    DELETE FROM state_changes
"""
NEW_WORKER = text(
    "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, idle_since, last_seen) "
    "VALUES (:id, 'model', '{work}', 1000, 'prefork', 'here', 1, '0', now() - interval '1 h', now() + interval '1 h')"
)
CHILDREN = text(
    "SELECT child_id FROM steps WHERE task_id = :task AND claim = :claim AND number >= :first AND kind = 'subtask' "
    "ORDER BY number"
)
BLOCKED = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")


class World:
    """The database of all runs: two connections that act, and one that looks on."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self.first, self.second = (stack.enter_context(engine.connect()) for _ in range(2))
        self.observer = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
        self.thread = stack.enter_context(ThreadPoolExecutor(1))

    def sql(self, statement: str, **values: Any) -> None:
        """Runs statements that are no part of what is tested."""
        if values:
            self.observer.execute(text(statement), values)
        else:
            self.observer.exec_driver_sql(statement)

    def overlap(self, first: Operation, second: Operation, *, commit: bool) -> tuple[Answer, Answer]:
        """Makes the second call while the transaction of the first is open, then commits or rolls back the first."""
        one = self.first.begin()
        seen = first.answer(self.first)
        pid = self.second.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        other: Future[Answer] = self.thread.submit(in_transaction, self.second, second)
        while not other.done() and not self.observer.scalar(BLOCKED, {"pid": pid}):
            wait([other], timeout=0.001)
        if commit and one.is_active:
            one.commit()
        else:
            one.rollback()
        return seen, other.result(30)


def in_transaction(connection: Connection, operation: Operation, *, commit: bool = True) -> Answer:
    """Makes a call and commits it, or rolls it back."""
    with connection.begin() as transaction:
        seen = operation.answer(connection)
        if not commit or not transaction.is_active:
            transaction.rollback()
    return seen


class Lifecycle(RuleBasedStateMachine):
    """One run on empty tables. Builders named `call_…` make operations; rules choose and perform them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Model(MOST_ATTEMPTS)
        self.messages: list[tuple[UUID, int]] = []
        self.claims: list[tuple[UUID, int]] = []
        self.running: dict[tuple[str, str], int] = {}
        self.broken = False
        world.sql(CLEAN)

    @initialize()
    def two_minions(self) -> None:
        """A and B."""
        self.minions = [self.new_minion(), self.new_minion()]

    def new_minion(self) -> UUID:
        """Registers a worker that serves all."""
        worker = uuid4()
        self.world.observer.execute(NEW_WORKER, {"id": worker})
        self.model.workers[worker] = True
        return worker

    # ------------------------------------------------------------------------------------------- performing

    def perform(self, operation: Operation | None, fault: str = "none") -> Answer:
        """Makes a call; returns its answer, or None where its caller never learned of it."""
        if operation is None:
            return None
        seen = self.once(operation, commit=fault != "before")
        if fault == "after":
            self.once(operation)
        return seen if fault == "none" else None

    def once(self, operation: Operation, *, commit: bool = True) -> Answer:
        """One transaction, which must do what the model does."""
        with self.suspicion():
            seen = in_transaction(self.world.first, operation, commit=commit)
            model = self.model if commit else copy.deepcopy(self.model)
            expected = operation.expect(model, seen)
            if seen != expected:
                raise Mismatch(f"{operation.name} answered {seen!r}, not {expected!r}")
            self.check()
        return seen

    def together(self, first: Operation, second: Operation, *, commit: bool) -> None:
        """Two overlapping calls, which must do what the model does in one order or the other."""
        with self.suspicion():
            seen = self.world.overlap(first, second, commit=commit)
            one, other = (first, seen[0]), (second, seen[1])
            reasons = []
            for order in [[one, other], [other, one]] if commit else [[other]]:
                for skipped in self.skippable(first, second):
                    try:
                        self.model = self.explained(order, skipped)
                    except Mismatch as mismatch:
                        reasons.append(str(mismatch))
                    else:
                        self.learn(first, seen[0] if commit else None)
                        self.learn(second, seen[1])
                        return
            raise Mismatch(f"no order explains {first.name} -> {seen[0]!r}, {second.name} -> {seen[1]!r}: {reasons}")

    def explained(self, order: list[tuple[Operation, Answer]], skipped: frozenset[UUID]) -> Model:
        """The model after these calls, if it agrees with what was seen."""
        model = copy.deepcopy(self.model)
        for operation, seen in order:
            expected = operation.skipping(model, seen, skipped) if operation.skipping else operation.expect(model, seen)
            if seen != expected:
                raise Mismatch(f"{operation.name} answered {seen!r}, not {expected!r}")
        self.check(model)
        return model

    def skippable(self, first: Operation, second: Operation) -> list[frozenset[UUID]]:
        """What a call may have passed over because the other one held it: any of the tasks that are due."""
        if not (first.skipping or second.skipping):
            return [frozenset()]
        held = [first.concerns, second.concerns]
        due = [
            task.id
            for task in self.model.tasks.values()
            if (task.due or any(step.due for step in task.open_steps.values()))
            and any(tasks is None or task.id in tasks for tasks in held)
        ]
        return [frozenset(some) for n in range(len(due) + 1) for some in combinations(due, n)]

    def learn(self, operation: Operation, seen: Answer) -> None:
        """What the callers remember."""
        if operation.name in ("dispatch", "republish"):
            self.messages += [message for message in seen or [] if message not in self.messages]
        elif operation.name == "claim" and seen and seen[0] == "claimed":
            [task] = operation.concerns or ()
            self.claims.append((task, seen[1]))

    @contextmanager
    def suspicion(self) -> Iterator[None]:
        """After a first mismatch there is no use in going on to the end."""
        try:
            yield
        except (Mismatch, DBAPIError):
            self.broken = True
            raise

    def check(self, model: Model | None = None) -> None:
        """The tables hold what the model holds, and no promise is broken."""
        expected = (model or self.model).view()
        actual = observe(self.world.observer)
        if actual != expected:
            different = {task: (actual.get(task), expected.get(task)) for task in {*actual, *expected}}
            raise Mismatch(f"(database, model): { {t: pair for t, pair in different.items() if pair[0] != pair[1]} }")
        broken = [tuple(row) for row in self.world.observer.execute(BROKEN_PROMISES)]
        if broken:
            raise Mismatch(str(broken))
        self.check_limits(model or self.model)

    def check_limits(self, model: Model) -> None:
        """No more run than a limit permits, but for those that ran before it was set."""
        running = model.flight(State.RUNNING)
        for task in model.tasks.values():
            for limit, most in model.rules_of(task).items():
                if running.get(limit, 0) > max(most, self.running.get(limit, 0)):
                    raise Mismatch(f"{running[limit]} run, {most} permitted: {limit}")
        self.running = running

    # ---------------------------------------------------------------------------------------------- choosing

    def task(self, choice: int, *, live: bool = False) -> Task | None:
        """Some task."""
        tasks = [task for task in self.model.tasks.values() if task.live or not live]
        return tasks[choice % len(tasks)] if tasks else None

    def held(self, choice: int) -> tuple[UUID, int] | None:
        """A claim that some minion holds, or believes to hold: mostly one of the latest."""
        current = [c for c in self.claims if self.model.tasks[c[0]].live and self.model.tasks[c[0]].claim == c[1]]
        claims = current if current and choice % 4 else self.claims
        return claims[choice % len(claims)] if claims else None

    def message(self, choice: int) -> tuple[UUID, int] | None:
        """A message: mostly one whose task is queued."""
        waiting = [m for m in self.messages if self.model.tasks[m[0]].state == State.QUEUED]
        messages = waiting if waiting and choice % 4 else self.messages
        return messages[choice % len(messages)] if messages else None

    def locked_with(self, *tasks: Task) -> frozenset[UUID]:
        """The tasks and all their relatives: whoever changes one of them may hold the rows of the others."""
        return frozenset(member for task in tasks for member in self.model.family(task.id))

    # ---------------------------------------------------------------------------------------------- the calls

    def call_submit(self, agent: str = "A", key: str | None = None, **fields: Any) -> Operation | None:
        """Accepts a task."""
        if len(self.model.tasks) >= MOST_TASKS:
            return None
        request = {"agent": agent, "input": {}, "key": key, **fields}
        request = {name: value for name, value in request.items() if value is not None}

        def ask(connection: Connection) -> Answer:
            return lifecycle.accept(connection, [request])[0]

        return Operation("submit", ask, lambda model, seen: model.accept(request, seen))

    def call_dispatch(self) -> Operation:
        """One round of an orchestrator."""

        def ask(connection: Connection) -> Answer:
            prepare_pending(connection)
            taken = lifecycle.dispatch(connection, lease=10.0, window=1000)
            return sorted((message.task_id, message.claim) for message in taken)

        return Operation(
            "dispatch",
            ask,
            lambda model, seen: model.dispatch(seen),
            lambda model, seen, skipped: model.dispatch(seen, partial=True),
            None,
        )

    def call_wake_due(self) -> Operation:
        """The orchestrator looks at the clock."""
        return Operation(
            "wake_due",
            lifecycle.wake_due,
            lambda model, seen: model.wake_due(),
            lambda model, seen, skipped: model.wake_due(skipped),
            None,
        )

    def call_claim(self, choice: int) -> Operation | None:
        """A message reaches a minion."""
        message = self.message(choice)
        return self.claim_of(message, self.minions[choice % len(self.minions)]) if message else None

    def claim_of(self, message: tuple[UUID, int], worker: UUID) -> Operation:
        """A message reaches this minion."""
        task, expected = message

        def ask(connection: Connection) -> Answer:
            row = lifecycle.claim(connection, task, expected, worker)
            if row is None or "refused" in row:
                return row and ("refused", row["refused"]["kind"])
            steps = {
                step["number"]: (step["kind"], step["status"], plain_output(step["output"])) for step in row["steps"]
            }
            return ("claimed", row["claim"], row["attempts"], steps)

        def expect(model: Model, seen: Answer) -> Answer:
            return model.claim(task, expected, worker)

        return Operation("claim", ask, expect, concerns=frozenset({task}))

    def call_write(self, choice: int) -> Operation | None:
        """A step is journaled: the next one, or one that was written before."""
        held = self.held(choice)
        if held is None:
            return None
        task, claim = held
        number = self.model.tasks[task].next_step
        own = [n for n, step in self.model.tasks[task].steps.items() if step.kind == "tool_call"]
        if own and choice % 3 == 0:
            number = own[choice % len(own)]
        step = Step("tool_call", ("started", "finished")[choice % 2], "noop", choice)
        row = {"number": number, "kind": step.kind, "name": "noop", "status": step.status, "request_hash": "h"}

        def ask(connection: Connection) -> Answer:
            return lifecycle.write_steps(connection, task, claim, [{**row, "output": step.output}])

        def expect(model: Model, seen: Answer) -> Answer:
            return model.write_steps(task, claim, {number: step})

        return Operation("write", ask, expect, concerns=frozenset({task}))

    def call_finish(self, choice: int) -> Operation | None:
        """A minion has the outcome."""
        held = self.held(choice)
        return self.finish_of(*held, State.FAILED if choice % 5 == 0 else State.SUCCEEDED) if held else None

    def finish_of(self, task: UUID, claim: int, state: State = State.SUCCEEDED) -> Operation:
        """A minion has this task's outcome."""
        result = {"error": ERROR} if state == State.FAILED else {"output": claim}
        return Operation(
            "finish",
            lambda connection: lifecycle.finish(connection, task, claim, state, result),
            lambda model, seen: model.finish(task, claim, state),
            concerns=self.locked_with(self.model.tasks[task]),
        )

    def call_release(self, choice: int) -> Operation | None:
        """A retry, a hand-back, a lost child."""
        held = self.held(choice)
        if held is None:
            return None
        how, charged = [("retried", True), ("handed_back", False), ("lost", False)][choice % 3]
        return self.release_of(*held, how, charged, LATER if choice % 2 else 0.0)

    def release_of(self, task: UUID, claim: int, how: str, charged: bool, delay: float) -> Operation:
        """Gives a task back."""
        return Operation(
            "release",
            lambda connection: lifecycle.release(
                connection, task, claim, how=how, charged=charged, delay=delay, result={"error": ERROR}
            ),
            lambda model, seen: model.release(task, claim, how, charged, delay),
            concerns=self.locked_with(self.model.tasks[task]),
        )

    def call_snooze(self, choice: int) -> Operation | None:
        """A task asks to be woken later."""
        held = self.held(choice)
        if held is None:
            return None
        task, claim = held
        return Operation(
            "snooze",
            lambda connection: lifecycle.snooze(connection, task, claim, {}, delay=LATER, reason="snoozed"),
            lambda model, seen: model.snooze(task, claim),
            concerns=self.locked_with(self.model.tasks[task]),
        )

    def call_suspend(self, choice: int, children: list[str], waits: list[Step]) -> Operation | None:
        """A task waits for sub-tasks, signals, timers, or for nothing."""
        held = self.held(choice)
        if held is None:
            return None
        task, claim = held
        row = self.model.tasks[task]
        if row.depth >= 3 or len(self.model.tasks) + len(children) > MOST_TASKS:
            children = []
        first = row.next_step
        wanted = [
            {"step": n, "name": name, "request_hash": "h", "request": {"agent": name, "input": {}}}
            for n, name in enumerate(children, first)
        ]
        timers = [
            {"step": n, "name": w.name, "request_hash": "h", "signal": w.name != "timer"}
            | ({} if w.due is None else {"seconds": LATER})
            for n, w in enumerate(waits, first + len(children))
        ]

        def ask(connection: Connection) -> Answer:
            state = lifecycle.suspend(connection, task, claim, {}, wanted, timers)
            ids = connection.scalars(CHILDREN, {"task": task, "claim": claim, "first": first}) if state else ()
            return state, tuple(ids)

        def expect(model: Model, seen: Answer) -> Answer:
            return model.suspend(task, claim, children, waits, seen[1]), seen[1]

        return Operation("suspend", ask, expect, concerns=self.locked_with(row))

    def call_signal(self, choice: int, name: str = "go") -> Operation | None:
        """Somebody sends a signal, early, in time or late."""
        task = self.task(choice, live=choice % 4 > 0)
        return self.signal_of(task.id, name, choice) if task else None

    def signal_of(self, task: UUID, name: str, payload: Any) -> Operation:
        """Somebody sends this task a signal."""
        return Operation(
            "signal",
            lambda connection: lifecycle.signal(connection, task, name, payload),
            lambda model, seen: model.signal(task, name, payload),
            concerns=frozenset({task}),
        )

    def call_cancel(self, choice: int) -> Operation | None:
        """Somebody has had enough."""
        task = self.task(choice, live=choice % 4 > 0)
        if task is None:
            return None
        return Operation(
            "cancel",
            lambda connection: lifecycle.cancel(connection, task.id, reason="enough"),
            lambda model, seen: model.cancel(task.id),
            concerns=self.locked_with(task),
        )

    def call_expire(self, task: UUID) -> Operation:
        """The rescuer finds a deadline that has passed."""
        return Operation(
            "expire",
            lambda connection: lifecycle.expire(connection, task),
            lambda model, seen: model.expire(task),
            concerns=self.locked_with(self.model.tasks[task]),
        )

    def call_hold(self, choice: int) -> Operation | None:
        """The limiter does not let a task start."""
        message = self.message(choice)
        if message is None:
            return None
        (task, expected), scope = message, SCOPES[choice % len(SCOPES)]
        name = self.model.tasks[task].names(scope)
        return Operation(
            "hold",
            lambda connection: lifecycle.hold(connection, task, expected, scope=scope, name=name, delay=LATER),
            lambda model, seen: model.hold(task, expected, scope),
            concerns=frozenset({task}),
        )

    def call_republish(self) -> Operation:
        """The rescuer presumes all messages lost."""

        def ask(connection: Connection) -> Answer:
            connection.execute(
                text("UPDATE task_status SET published_at = now() - interval '1 day' WHERE state = 'queued'")
            )
            again = lifecycle.republish(connection, lease=10.0, patience=1.0, empty_queues=["work"])
            return sorted((message.task_id, message.claim) for message in again)

        return Operation("republish", ask, lambda model, seen: model.republish())

    def call_heal(self) -> Operation:
        """Belt and braces find nothing, for the belt holds."""

        def ask(connection: Connection) -> Answer:
            connection.execute(
                text("UPDATE task_status SET updated_at = now() - interval '1 h' WHERE state = 'waiting'")
            )
            return lifecycle.heal_waits(connection)

        return Operation("heal_waits", ask, lambda model, seen: 0)

    # ----------------------------------------------------------------------------------------------- the rules

    @rule(agent=AGENTS, key=KEYS, priority=st.integers(-2, 2), later=st.integers(0, 4), fault=FAULTS)
    def submit(self, agent: str, key: str | None, priority: int, later: int, fault: str) -> None:
        """Work comes in."""
        run_at = (datetime.now(UTC) + timedelta(seconds=LATER)).isoformat() if later == 0 else None
        self.perform(self.call_submit(agent, key, priority=priority, run_at=run_at), fault)

    @rule(agent=AGENTS, unique=st.sampled_from("uv"), held=st.sampled_from(["pending", "running"]), fault=FAULTS)
    def submit_unique(self, agent: str, unique: str, held: str, fault: str) -> None:
        """Work comes in that is wanted once."""
        self.perform(self.call_submit(agent, unique_key=unique, unique_while=held), fault)

    @rule(agent=AGENTS, idempotency=st.sampled_from("ij"), unique=st.sampled_from(["u", None]), fault=FAULTS)
    def submit_again(self, agent: str, idempotency: str, unique: str | None, fault: str) -> None:
        """Work comes in from somebody who tries again."""
        self.perform(self.call_submit(agent, idempotency_key=idempotency, unique_key=unique), fault)

    @rule(fault=FAULTS)
    def dispatch(self, fault: str) -> None:
        """Messages go out; those of an orchestrator that dies are never sent."""
        self.learn(operation := self.call_dispatch(), self.perform(operation, fault))

    @precondition(lambda self: self.messages)
    @rule(choice=CHOICE, fault=FAULTS)
    def claim(self, choice: int, fault: str) -> None:
        """A message arrives, once more perhaps."""
        operation = self.call_claim(choice)
        if operation is not None:
            self.learn(operation, self.perform(operation, fault))

    @rule()
    def everybody_works(self) -> None:
        """All that can run, runs: the way to deep trees."""
        self.learn(operation := self.call_dispatch(), self.perform(operation))
        for number, message in enumerate(self.messages):
            if self.model.tasks[message[0]].state == State.QUEUED:
                claim = self.claim_of(message, self.minions[number % len(self.minions)])
                self.learn(claim, self.perform(claim))

    @precondition(lambda self: self.claims)
    @rule(choice=CHOICE, fault=FAULTS)
    def write(self, choice: int, fault: str) -> None:
        """A minion goes on."""
        self.perform(self.call_write(choice), fault)

    @precondition(lambda self: self.claims)
    @rule(choice=CHOICE, fault=FAULTS)
    def finish(self, choice: int, fault: str) -> None:
        """A minion is done."""
        self.perform(self.call_finish(choice), fault)

    @precondition(lambda self: self.claims)
    @rule(choice=CHOICE, fault=FAULTS)
    def give_back(self, choice: int, fault: str) -> None:
        """A minion gives up for now."""
        self.perform(self.call_release(choice), fault)

    @precondition(lambda self: self.claims)
    @rule(choice=CHOICE, fault=FAULTS)
    def snooze(self, choice: int, fault: str) -> None:
        """A minion lets go."""
        self.perform(self.call_snooze(choice), fault)

    @precondition(lambda self: self.claims)
    @rule(choice=CHOICE, children=st.lists(AGENTS, max_size=3), waits=WAITS, fault=FAULTS)
    def suspend(self, choice: int, children: list[str], waits: list[Step], fault: str) -> None:
        """A minion waits without waiting."""
        self.perform(self.call_suspend(choice, children, waits), fault)

    @rule(choice=CHOICE, name=SIGNALS, fault=FAULTS)
    def signal(self, choice: int, name: str, fault: str) -> None:
        """A person answers."""
        self.perform(self.call_signal(choice, name), fault)

    @rule(choice=CHOICE, fault=FAULTS)
    def cancel(self, choice: int, fault: str) -> None:
        """A person changes their mind."""
        self.perform(self.call_cancel(choice), fault)

    @rule(choice=CHOICE)
    def deadline_passes(self, choice: int) -> None:
        """Nobody has noticed yet."""
        task = self.task(choice, live=True)
        if task is not None:
            task.overdue = True
            self.world.sql(
                "UPDATE task_status SET deadline = now() - interval '1 s' WHERE task_id = :task", task=task.id
            )

    @rule(fault=FAULTS)
    def expire_overdue(self, fault: str) -> None:
        """As the rescuer does it."""
        for task in list(self.world.observer.scalars(OVERDUE)):
            self.perform(self.call_expire(task), fault)

    @rule(choice=CHOICE)
    def time_passes(self, choice: int) -> None:
        """For one task."""
        task = self.task(choice, live=True)
        if task is not None:
            self.let_time_pass(task)

    def let_time_pass(self, task: Task) -> None:
        """Whatever the task waits for by the clock is due."""
        self.model.time_passes(task.id)
        self.world.sql(
            "UPDATE steps SET due_at = now() - interval '1 s' WHERE task_id = :task AND kind = 'wait' "
            "AND status = 'started' AND due_at IS NOT NULL",
            task=task.id,
        )
        self.world.sql(
            "UPDATE task_status SET due_at = now() - interval '1 s' WHERE task_id = :task AND due_at IS NOT NULL",
            task=task.id,
        )

    @rule(fault=FAULTS)
    def wake_due(self, fault: str) -> None:
        """Timers, back-offs, schedules."""
        self.perform(self.call_wake_due(), fault)

    @rule()
    def heal(self) -> None:
        """Finds nothing."""
        self.perform(self.call_heal())

    @rule(fault=FAULTS)
    def republish(self, fault: str) -> None:
        """Messages are sent again."""
        self.learn(operation := self.call_republish(), self.perform(operation, fault))

    @rule(which=st.integers(0, 1))
    def lose_or_find_a_worker(self, which: int) -> None:
        """A worker does not beat any more, or beats again."""
        worker = self.minions[which]
        online = self.model.workers[worker] = not self.model.workers[worker]
        self.world.sql(
            "UPDATE workers SET status = :status WHERE id = :id", id=worker, status="online" if online else "lost"
        )

    @rule(fault=FAULTS)
    def rescue(self, fault: str) -> None:
        """As the rescuer does it."""
        for orphan in self.world.observer.execute(ORPHANED, {"lease": 10.0}).all():
            self.perform(self.release_of(orphan.task_id, orphan.claim, "lost", False, 0.0), fault)

    @rule(scope=st.sampled_from(SCOPES), choice=CHOICE)
    def pause_or_resume(self, scope: str, choice: int) -> None:
        """Of an agent, a capability, a key."""
        name = NAMES[scope][choice % (len(NAMES[scope]) - 1)]
        if (scope, name) in self.model.pauses:
            self.model.pauses.remove((scope, name))
            self.world.sql("DELETE FROM pauses WHERE scope = :scope AND name = :name", scope=scope, name=name)
        else:
            self.model.pauses.add((scope, name))
            self.world.sql("INSERT INTO pauses (scope, name) VALUES (:scope, :name)", scope=scope, name=name)

    @rule(scope=st.sampled_from(SCOPES), choice=CHOICE, most=st.sampled_from([None, None, 0, 1, 1, 2]))
    def set_limit(self, scope: str, choice: int, most: int | None) -> None:
        """A limit is set, changed or taken away."""
        name = NAMES[scope][choice % len(NAMES[scope])]
        self.model.limits.pop((scope, name), None)
        self.world.sql("DELETE FROM limits WHERE scope = :scope AND name = :name", scope=scope, name=name)
        if most is not None:
            self.model.limits[scope, name] = most
            self.world.sql(
                "INSERT INTO limits (scope, name, max_running) VALUES (:scope, :name, :most)",
                scope=scope,
                name=name,
                most=most,
            )

    @precondition(lambda self: self.messages)
    @rule(choice=CHOICE, fault=FAULTS)
    def hold(self, choice: int, fault: str) -> None:
        """A rate is used up."""
        self.perform(self.call_hold(choice), fault)

    @rule()
    def holds_end(self) -> None:
        """Tokens have come."""
        self.model.holds.clear()
        self.world.sql("UPDATE rate_holds SET until_at = now() - interval '1 s'")

    @rule(one=CHOICE, other=CHOICE, first=CHOICE, second=CHOICE, commit=st.booleans())
    def two_at_once(self, one: int, other: int, first: int, second: int, commit: bool) -> None:
        """Any two of the calls that lock rows."""
        kinds: list[Callable[[int], Operation | None]] = [
            self.call_finish,
            self.call_claim,
            self.call_release,
            self.call_signal,
            self.call_cancel,
            self.call_write,
            lambda choice: self.call_suspend(choice, ["A"], [Step("wait", "started", "go", None, False)]),
            lambda choice: self.call_submit(unique_key="u"),
            lambda choice: self.call_submit(idempotency_key="i"),
            lambda choice: self.call_dispatch(),
            lambda choice: self.call_wake_due(),
        ]
        calls = kinds[one % len(kinds)](first), kinds[other % len(kinds)](second)
        if calls[0] is not None and calls[1] is not None:
            self.together(calls[0], calls[1], commit=commit)

    @precondition(lambda self: len(self.siblings()) > 1)
    @rule(choice=CHOICE, commit=st.sampled_from([True, True, False]))
    def two_children_at_once(self, choice: int, commit: bool) -> None:
        """Both count down the same parent."""
        siblings = self.siblings()
        one, other = siblings[choice % len(siblings)], siblings[(choice + 1) % len(siblings)]
        if one.parent is other.parent:
            self.together(self.finish_of(one.id, one.claim), self.finish_of(other.id, other.claim), commit=commit)

    def siblings(self) -> list[Task]:
        """Running sub-tasks, those of one parent side by side."""
        children = [task for task in self.model.tasks.values() if task.parent and task.state == State.RUNNING]
        return sorted(children, key=lambda task: (str(task.parent.id) if task.parent else "", str(task.id)))

    # ------------------------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        """Healthy minions and an orchestrator take over: what was accepted comes to its end, in bounded time."""
        if self.broken:
            return
        self.model.pauses.clear()
        self.model.limits.clear()
        self.model.holds.clear()
        self.world.sql("DELETE FROM pauses; DELETE FROM limits; DELETE FROM rate_holds")
        for worker in self.minions:
            self.model.workers[worker] = False
            self.world.sql("UPDATE workers SET status = 'lost' WHERE id = :id", id=worker)
        self.rescue("none")
        self.minions = [self.new_minion(), self.new_minion()]
        # Each round ends every leaf of a tree; a tree is at most four deep, and a task is woken twice at most.
        for _ in range(12):
            if not any(task.live for task in self.model.tasks.values()):
                break
            self.expire_overdue("none")
            for task in [task for task in self.model.tasks.values() if task.live]:
                self.let_time_pass(task)
                for step in list(task.open_steps.values()):
                    if step.kind == "wait" and step.name != "timer":
                        self.perform(self.signal_of(task.id, step.name, 0))
            self.perform(self.call_wake_due())
            self.everybody_works()
            for task in [task for task in self.model.tasks.values() if task.state == State.RUNNING]:
                self.perform(self.finish_of(task.id, task.claim))
        stuck = {task.id: str(task.state) for task in self.model.tasks.values() if task.live}
        assert not stuck, f"still not at their end: {stuck}"


@pytest.fixture
def world(database: Engine, define: Define) -> Iterator[World]:
    define(NOOP, *(agent(name, config={"max_attempts": most}) for name, most in MOST_ATTEMPTS.items()))
    with database.begin() as connection:
        connection.exec_driver_sql(LOG_CHANGES)
    try:
        with ExitStack() as stack:
            yield World(database, stack)
    finally:
        with database.begin() as connection:
            connection.exec_driver_sql(FORGET_CHANGES)


def explore(world: World, *, runs: int, steps: int, **options: Any) -> None:
    """So many runs of so many steps; the same ones each time, unless told otherwise."""
    run_state_machine_as_test(
        partial(Lifecycle, world),
        settings=settings(
            **{
                "max_examples": runs,
                "stateful_step_count": steps,
                "deadline": None,
                "derandomize": True,
                "database": None,
                "suppress_health_check": list(HealthCheck),
                **options,
            }
        ),
    )


def test_the_database_does_what_the_model_does(world: World) -> None:
    explore(world, runs=60, steps=40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_database_does_what_the_model_does_for_long(world: World) -> None:
    explore(world, runs=3000, steps=80, derandomize=False)


# ------------------------------------------------------------------------------------ what the machine catches

# Each a mistake that somebody could make: a function, what it says, and what it says with the mistake in it.
MISTAKES = {
    "a write without a fence": [
        ("minion_fence", "task_id = t AND claim = c AND state = 'running'", "task_id = t"),
    ],
    "woken twice, and before its time": [
        ("minion_count_down", "CASE WHEN open_waits <= over THEN 'pending' ELSE state END", "'pending'"),
        ("minion_count_down", "CASE WHEN open_waits > over THEN wait_reason END", "NULL"),
        ("minion_count_down", "GREATEST(0, open_waits - over)", "0"),
        ("minion_count_down", "state = 'waiting' AND open_waits > 0", "state IN ('waiting', 'queued', 'running')"),
    ],
    "a lost decrement: two children read the same count": [
        ("minion_lock_parent", "FOR NO KEY UPDATE", ""),
        (
            "minion_count_down",
            "BEGIN\n",
            "DECLARE\n    seen integer;\nBEGIN\n    SELECT open_waits INTO seen FROM task_status WHERE task_id = t;\n",
        ),
        ("minion_count_down", "GREATEST(0, open_waits - over)", "GREATEST(0, seen - over)"),
        ("minion_count_down", "CASE WHEN open_waits <= over", "CASE WHEN seen <= over"),
        ("minion_count_down", "CASE WHEN open_waits > over", "CASE WHEN seen > over"),
    ],
    "a child that is cancelled is not counted": [
        ("minion_settle", "PERFORM minion_count_down", "PERFORM CASE WHEN final <> 'cancelled' THEN minion_count_down"),
        ("minion_settle", "(parent.id, 1)", "(parent.id, 1) END"),
    ],
    "a claim that keeps its number": [("minion_claim", "claim = claim + 1", "claim = GREATEST(claim, 1)")],
    "a message that is taken twice": [("minion_claim", "state = 'queued' AND", "state IN ('queued', 'running') AND")],
    "a release that forgets the cancel": [("minion_release", "IF now_at.cancel_requested", "IF false")],
    "a time-out that ends the wait for children too": [("minion_wake_due", " AND open_waits = 0)\n", ")\n")],
    "a signal that is not taken": [("minion_suspend", "AND minion_take_signal", "AND false AND minion_take_signal")],
    "claims that count at the same time": [("minion_obstacle", "FOR NO KEY UPDATE", "")],
    "a unique key that outlives its task": [("minion_settle", "DELETE FROM unique_tasks WHERE task_id = t;", "")],
}
FUNCTIONS = text("SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = :name")


@contextmanager
def mistaken(engine: Engine, changes: list[tuple[str, str, str]]) -> Iterator[None]:
    """Functions of the database with mistakes in them, for a while."""
    with engine.begin() as connection:
        names = {name for name, _, _ in changes}
        originals = [(name, d) for name in names for d in connection.scalars(FUNCTIONS, {"name": name})]
        for name, before, after in changes:
            definitions = list(connection.scalars(FUNCTIONS, {"name": name}))
            assert any(before in definition for definition in definitions), f"{name} does not say {before!r} any more"
            for definition in definitions:
                connection.exec_driver_sql(definition.replace(before, after).replace("%", "%%"))
    try:
        yield
    finally:
        with engine.begin() as connection:
            for _, definition in originals:
                connection.exec_driver_sql(definition.replace("%", "%%"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_database_is_found(world: World, database: Engine, mistake: str) -> None:
    with mistaken(database, MISTAKES[mistake]), pytest.raises((AssertionError, DBAPIError)):
        explore(world, runs=200, steps=40, phases=[Phase.generate], report_multiple_bugs=False)
