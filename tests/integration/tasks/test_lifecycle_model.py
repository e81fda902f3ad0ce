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
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import combinations
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from orchestrator.maintenance.expirer import OVERDUE
from orchestrator.maintenance.lost_workers import ORPHANED
from shared.tasks.states import State
from tests.conftest import Define
from tests.lifecycle_model import calls
from tests.lifecycle_model.calls import LATER, Call
from tests.lifecycle_model.model import SCOPES, Answer, Mismatch, Model, Step, Task
from tests.lifecycle_model.observed import BROKEN_PROMISES, FORGET_CHANGES, LOG_CHANGES, observe
from tests.support.definitions import NOOP, agent_definition

Draw = Callable[[st.SearchStrategy[Any]], Any]
Act = Callable[["Lifecycle", Draw], None]

MOST_ATTEMPTS = {"A": 3, "B": 1}
MOST_TASKS = 12  # in one run: enough for trees, few enough for the same task to be met again
AGENTS = st.sampled_from(sorted(MOST_ATTEMPTS))
NAMES = {"agent": ["A", "B", "*"], "capability": ["work", "*"], "key": ["t1", "t2", "*"]}
SIGNALS = st.sampled_from(["go", "stop"])
WAITS = st.one_of(
    st.builds(Step, st.just("wait"), st.just("started"), SIGNALS, due=st.sampled_from([None, False])),
    st.just(Step("wait", "started", "timer", due=False)),
)

CLEAN = """
    DELETE FROM tasks; DELETE FROM workers; DELETE FROM pauses; DELETE FROM limits; DELETE FROM rate_holds;
    DELETE FROM state_changes
"""
NEW_WORKER = text(
    "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, idle_since, last_seen) "
    "VALUES (:id, 'model', '{work}', 1000, 'prefork', 'here', 1, '0', now() - interval '1 h', now() + interval '1 h')"
)
BLOCKED = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")


class World:
    """The database of all runs: two connections that act, and one that looks on."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self.first, self.second = (stack.enter_context(engine.connect()) for _ in range(2))
        self.observer = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
        self.thread = stack.enter_context(ThreadPoolExecutor(1))
        self.found: list[Exception] = []

    def sql(self, statement: str, **values: Any) -> None:
        """Does what is no part of what is tested."""
        self.observer.execute(text(statement), values)

    def overlap(self, first: Call, second: Call, *, commit: bool) -> tuple[Answer, Answer]:
        """Makes the second call while the transaction of the first is open, then commits or rolls back the first."""
        with self.first.begin() as transaction:
            seen = first.answer(self.first)
            pid = self.second.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            other: Future[Answer] = self.thread.submit(in_transaction, self.second, second)
            while not other.done() and not self.observer.scalar(BLOCKED, {"pid": pid}):
                wait([other], timeout=0.001)
            if not commit:
                transaction.rollback()
        return seen, other.result(30)


def in_transaction(connection: Connection, call: Call, *, commit: bool = True) -> Answer:
    """Makes a call and commits it, or rolls it back."""
    with connection.begin() as transaction:
        seen = call.answer(connection)
        if not commit:
            transaction.rollback()
    return seen


# ---------------------------------------------------------------------------------------------------- what is done

ACTS: dict[str, tuple[int, Callable[[Lifecycle], Any]]] = {}


def act(weight: int, when: Callable[[Lifecycle], Any] = lambda run: True) -> Callable[[Act], Act]:
    """Something that can be done in a run, how often, and where there is any use in it."""

    def register(function: Act) -> Act:
        ACTS[function.__name__] = weight, when
        return function

    return register


class Lifecycle(RuleBasedStateMachine):
    """One run on empty tables.

    It has a single rule, and chooses what to do among what is of use where it stands: were each act a rule, most steps
    of most runs would come to nothing.
    """

    def __init__(self, world: World, acts: Collection[str] = ()) -> None:
        """With `acts`, nothing else is done."""
        super().__init__()
        self.world = world
        self.acts = {name: ACTS[name] for name in acts or ACTS}
        self.model = Model(MOST_ATTEMPTS)
        self.messages: list[tuple[UUID, int]] = []
        self.claims: list[tuple[UUID, int]] = []
        self.running: dict[tuple[str, str], int] = {}
        self.minions: list[UUID] = []
        self.left_out: set[str] = set()
        world.sql(CLEAN)
        world.found.clear()

    @initialize(
        left_out=st.sets(st.sampled_from(["faults", "limits", "pauses", "people", "clock", "workers", "holds"]))
    )
    def begin(self, left_out: set[str]) -> None:
        """Two minions. What is left out in this run gives room to the rest."""
        self.left_out = left_out
        self.minions = [self.new_minion(), self.new_minion()]

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Make one random call."""
        # The heaviest comes first, because Hypothesis prefers the first.
        acts = sorted(self.acts.items(), key=lambda entry: -entry[1][0])
        useful = [name for name, (weight, when) in acts if when(self) for _ in range(weight)]
        if not useful:
            return
        name = data.draw(st.sampled_from(useful), label="act")
        with self.suspicion():
            getattr(self, name)(data.draw)
            self.check_promises()

    @contextmanager
    def suspicion(self) -> Iterator[None]:
        """After a first mismatch there is no use in going on to the end."""
        try:
            yield
        except (Mismatch, DBAPIError) as error:
            self.world.found.append(error)
            raise

    def has(self, feature: str) -> bool:
        """Return whether this run has the feature."""
        return feature not in self.left_out

    # --------------------------------------------------------------------------------------------- performing

    def perform(self, call: Call, fault: str = "none") -> None:
        """Make a call as a caller with this fault."""
        seen = self.once(call, commit=fault != "before")
        if fault == "none":
            self.learn(call, seen)
        elif fault == "after":
            self.once(call)

    def once(self, call: Call, *, commit: bool = True) -> Answer:
        """One transaction, which must do what the model does."""
        seen = in_transaction(self.world.first, call, commit=commit)
        expect(call, seen, self.model if commit else copy.deepcopy(self.model))
        self.check(self.model)
        return seen

    def together(self, first: Call, second: Call, *, commit: bool) -> None:
        """Two overlapping calls, which must do what the model does in one order or the other."""
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
                    for call, answer in order:
                        self.learn(call, answer)
                    return
        raise Mismatch(f"no order explains {first.name} -> {seen[0]!r}, {second.name} -> {seen[1]!r}: {reasons}")

    def explained(self, order: list[tuple[Call, Answer]], skipped: frozenset[UUID]) -> Model:
        """The model after these calls, if it agrees with what was seen."""
        model = copy.deepcopy(self.model)
        for call, seen in order:
            expect(call, seen, model, skipped)
        self.check(model)
        return model

    def skippable(self, first: Call, second: Call) -> list[frozenset[UUID]]:
        """Return the tasks that a call may have skipped because the other one locked them: any due task."""
        held = [first.concerns, second.concerns]
        due = [
            task.id
            for task in self.model.tasks.values()
            if (task.due or any(step.due for step in task.open_steps.values()))
            and any(tasks is None or task.id in tasks for tasks in held)
        ]
        most = len(due) if first.skipping or second.skipping else 0
        return [frozenset(some) for n in range(most + 1) for some in combinations(due, n)]

    def learn(self, call: Call, seen: Answer) -> None:
        """Return the caller's memory."""
        if call.name in ("dispatch", "republish"):
            self.messages += [message for message in seen if message not in self.messages]
        elif call.name == "claim" and seen and seen[0] == "claimed":
            [task] = call.concerns or ()
            self.claims.append((task, seen[1]))

    # ----------------------------------------------------------------------------------------------- checking

    def check(self, model: Model) -> None:
        """The tables hold what the model holds."""
        expected, actual = model.view(), observe(self.world.observer)
        pairs = {task: (actual.get(task), expected.get(task)) for task in {*actual, *expected}}
        different = {str(task): pair for task, pair in pairs.items() if pair[0] != pair[1]}
        if different:
            raise Mismatch(f"task: (database, model): {different}")
        self.check_limits(model)

    def check_promises(self) -> None:
        """Nothing happened on the way here that must not happen."""
        broken = [tuple(row) for row in self.world.observer.execute(BROKEN_PROMISES)]
        if broken:
            raise Mismatch(str(broken))

    def check_limits(self, model: Model) -> None:
        """No more run than a limit permits, but for those that ran before it was set."""
        running = model.flight(State.RUNNING)
        for task in model.tasks.values():
            for limit, most in model.rules_of(task).items():
                if running.get(limit, 0) > max(most, self.running.get(limit, 0)):
                    raise Mismatch(f"{running[limit]} run, {most} permitted: {limit}")
        self.running = running

    # ----------------------------------------------------------------------------------------------- choosing

    def fault(self, draw: Draw) -> str:
        """Choose the caller's fate: nothing; death before the commit; death after it, and another call."""
        return draw(st.sampled_from(["none"] * 6 + ["before", "after"])) if self.has("faults") else "none"

    def tasks(self, *states: State) -> list[Task]:
        """Those in one of these states; live ones by default."""
        return [task for task in self.model.tasks.values() if (task.state in states if states else task.live)]

    @property
    def current(self) -> list[tuple[UUID, int]]:
        """The claims that hold."""
        return [claim for claim in self.claims if self.model.holds_claim(*claim)]

    def held(self, draw: Draw) -> tuple[UUID, int]:
        """A claim that holds, or any that a minion ever had."""
        return draw(st.sampled_from(self.current or self.claims))

    @property
    def fresh(self) -> list[tuple[UUID, int]]:
        """The messages whose tasks are queued."""
        return [m for m in self.messages if self.model.awaits_claim(*m)]

    def message(self, draw: Draw) -> tuple[UUID, int]:
        """A message whose task is queued, or any that was ever sent."""
        return draw(st.sampled_from(self.fresh or self.messages))

    def any_task(self, draw: Draw) -> UUID:
        """Mostly a live one."""
        live = self.tasks()
        tasks = self.model.tasks.values() if not live or draw(st.integers(0, 5)) == 0 else live
        return draw(st.sampled_from([task.id for task in tasks]))

    # --------------------------------------------------------------------------------------------- the minions

    def new_minion(self) -> UUID:
        """Registers a worker that serves all."""
        worker = uuid4()
        self.world.observer.execute(NEW_WORKER, {"id": worker})
        self.model.workers[worker] = True
        return worker

    @act(4, lambda run: run.fresh)
    def claim(self, draw: Draw) -> None:
        """A message arrives, once more perhaps."""
        self.perform(calls.claim(*self.message(draw), draw(st.sampled_from(self.minions))), self.fault(draw))

    @act(8, lambda run: any(map(run.model.free, run.tasks())))
    def everybody_works(self, draw: Draw) -> None:
        """All that can run, runs: the way to deep trees."""
        self.start_all()

    def start_all(self) -> None:
        """Dispatches and claims."""
        self.perform(calls.dispatch())
        for number, (task, claim) in enumerate(self.messages):
            if self.model.awaits_claim(task, claim):
                self.perform(calls.claim(task, claim, self.minions[number % len(self.minions)]))

    @act(1, lambda run: run.fresh and run.has("holds"))
    def hold(self, draw: Draw) -> None:
        """A rate is used up."""
        (task, claim), scope = self.message(draw), draw(st.sampled_from(SCOPES))
        self.perform(calls.hold(task, claim, scope, self.model.tasks[task].names(scope)), self.fault(draw))

    @act(1, lambda run: run.model.holds)
    def holds_end(self, draw: Draw) -> None:
        """Tokens have come."""
        self.model.holds.clear()
        self.world.sql("UPDATE rate_holds SET until_at = now() - interval '1 s'")

    @act(2, lambda run: run.current)
    def write(self, draw: Draw) -> None:
        """A minion continues: the next step, or one that was written before."""
        task, claim = self.held(draw)
        row = self.model.tasks[task]
        number = draw(st.sampled_from([row.next_step, *(n for n, s in row.steps.items() if s.kind == "tool_call")]))
        status = draw(st.sampled_from(["started", "finished", "failed"]))
        self.perform(calls.write(task, claim, number, Step("tool_call", status, output=claim)), self.fault(draw))

    @act(4, lambda run: run.current)
    def finish(self, draw: Draw) -> None:
        """A minion is done."""
        state = draw(st.sampled_from([State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.CANCELLED]))
        self.perform(calls.finish(self.model, *self.held(draw), state), self.fault(draw))

    @act(2, lambda run: run.current)
    def give_back(self, draw: Draw) -> None:
        """A minion gives up for now."""
        self.perform(self.released(draw), self.fault(draw))

    def released(self, draw: Draw) -> Call:
        """A retry, a hand-back, a lost child."""
        how, charged = draw(st.sampled_from([("retried", True), ("handed_back", False), ("lost", False)]))
        delay = draw(st.sampled_from([0.0, LATER]))
        return calls.release(self.model, *self.held(draw), how, charged=charged, delay=delay)

    @act(1, lambda run: run.current)
    def snooze(self, draw: Draw) -> None:
        """A minion lets go."""
        self.perform(calls.snooze(self.model, *self.held(draw)), self.fault(draw))

    @act(8, lambda run: run.current)
    def suspend(self, draw: Draw) -> None:
        """A minion waits without waiting."""
        self.perform(self.suspended(draw), self.fault(draw))

    def suspended(self, draw: Draw) -> Call:
        """For sub-tasks, signals and timers."""
        task, claim = self.held(draw)
        room = 0 if self.model.tasks[task].depth >= 3 else max(0, min(3, MOST_TASKS - len(self.model.tasks)))
        children = draw(st.lists(AGENTS, max_size=room))
        return calls.suspend(self.model, task, claim, children, draw(st.lists(WAITS, max_size=2)))

    @act(2, lambda run: len(run.claims) > len(run.current))
    def come_back(self, draw: Draw) -> None:
        """A frozen minion continues with a claim that it lost long ago."""
        task, claim = draw(st.sampled_from([claim for claim in self.claims if claim not in self.current]))
        number = self.model.tasks[task].next_step
        late = [
            calls.write(task, claim, number, Step("tool_call", "finished", output="late")),
            calls.finish(self.model, task, claim),
            calls.finish(self.model, task, claim, State.FAILED),
            calls.release(self.model, task, claim, "handed_back"),
            calls.release(self.model, task, claim, "retried", charged=True, delay=LATER),
            calls.snooze(self.model, task, claim),
            calls.suspend(self.model, task, claim, ["A"], [Step("wait", "started", "go")]),
        ]
        self.perform(draw(st.sampled_from(late)))

    @act(1, lambda run: len(run.messages) > len(run.fresh))
    def deliver_again(self, draw: Draw) -> None:
        """A message arrives once more."""
        message = draw(st.sampled_from([message for message in self.messages if message not in self.fresh]))
        self.perform(calls.claim(*message, draw(st.sampled_from(self.minions))))

    @act(5, lambda run: run.outdated)
    def deliver_late(self, draw: Draw) -> None:
        """A message arrives when its task is queued again: only the claim number distinguishes it from the new one."""
        self.perform(calls.claim(*draw(st.sampled_from(self.outdated)), draw(st.sampled_from(self.minions))))

    @property
    def outdated(self) -> list[tuple[UUID, int]]:
        """Old messages of tasks that are queued again."""
        queued = {task.id for task in self.tasks(State.QUEUED)}
        return [message for message in self.messages if message[0] in queued and message not in self.fresh]

    # ------------------------------------------------------------------------------------------------- people

    @act(2, lambda run: len(run.tasks()) < 5 and len(run.model.tasks) < MOST_TASKS)
    def submit(self, draw: Draw) -> None:
        """A task is submitted: plain, under a unique key, or by a caller that retries."""
        fields = draw(
            st.one_of(
                st.fixed_dictionaries({"key": st.sampled_from([None, "t1", "t2"]), "priority": st.integers(-2, 2)}),
                st.fixed_dictionaries(
                    {"conversation_id": st.just("c"), "run_at": st.sampled_from([None, None, "2100-01-01T00:00:00Z"])}
                ),
                st.fixed_dictionaries({"run_at": st.just("2100-01-01T00:00:00Z")}),
                st.fixed_dictionaries(
                    {"unique_key": st.sampled_from("uv"), "unique_while": st.sampled_from(["pending", "running"])}
                ),
                st.fixed_dictionaries(
                    {"idempotency_key": st.sampled_from("ij"), "unique_key": st.sampled_from(["u", None])}
                ),
            )
        )
        self.perform(calls.submit(draw(AGENTS), **fields), self.fault(draw))

    @act(1, lambda run: run.model.tasks and run.has("people"))
    def signal(self, draw: Draw) -> None:
        """A signal arrives, early or late."""
        self.perform(calls.signal(self.any_task(draw), draw(SIGNALS), len(self.claims)), self.fault(draw))

    @act(2, lambda run: run.waiting_for_a_signal)
    def answer(self, draw: Draw) -> None:
        """The awaited signal arrives."""
        task = draw(st.sampled_from(self.waiting_for_a_signal))
        self.perform(calls.signal(task, draw(SIGNALS), len(self.claims)), self.fault(draw))

    @property
    def waiting_for_a_signal(self) -> list[UUID]:
        """Tasks with a wait that only a signal, or its time-out, can end."""
        return [task.id for task in self.tasks() if any(s.name in ("go", "stop") for s in task.open_steps.values())]

    @act(1, lambda run: run.model.tasks and run.has("people"))
    def cancel(self, draw: Draw) -> None:
        """A caller cancels a task."""
        self.perform(calls.cancel(self.model, self.any_task(draw)), self.fault(draw))

    @act(2, lambda run: run.current and run.has("people"))
    def cancel_what_runs(self, draw: Draw) -> None:
        """A minion is asked to stop, whatever it does next."""
        task, _ = draw(st.sampled_from(self.current))
        self.perform(calls.cancel(self.model, task), self.fault(draw))

    @act(4, lambda run: run.current and run.has("people"))
    def signal_what_runs(self, draw: Draw) -> None:
        """A signal arrives before its wait."""
        task, _ = draw(st.sampled_from(self.current))
        self.perform(calls.signal(task, draw(SIGNALS), len(self.claims)), self.fault(draw))

    @act(1, lambda run: run.has("pauses") and not run.model.pauses)
    def pause(self, draw: Draw) -> None:
        """An agent, a capability, a key."""
        scope = draw(st.sampled_from(SCOPES))
        name = draw(st.sampled_from(NAMES[scope][:-1]))
        self.model.pauses.add((scope, name))
        self.world.sql("INSERT INTO pauses (scope, name) VALUES (:scope, :name)", scope=scope, name=name)

    @act(4, lambda run: run.model.pauses)
    def resume(self, draw: Draw) -> None:
        """All of it."""
        self.model.pauses.clear()
        self.world.sql("DELETE FROM pauses")

    @act(1, lambda run: run.has("limits") and len(run.model.limits) < 2)
    def set_limit(self, draw: Draw) -> None:
        """On an agent, a capability, a key."""
        scope = draw(st.sampled_from(SCOPES))
        self.limit(scope, draw(st.sampled_from(NAMES[scope])), draw(st.sampled_from([0, 1, 1, 2])))

    @act(2, lambda run: run.model.limits)
    def lift_limit(self, draw: Draw) -> None:
        """One of them."""
        self.limit(*draw(st.sampled_from(sorted(self.model.limits))), None)

    def limit(self, scope: str, name: str, most: int | None) -> None:
        """Sets a limit; None takes it away."""
        self.model.limits.pop((scope, name), None)
        self.world.sql("DELETE FROM limits WHERE scope = :scope AND name = :name", scope=scope, name=name)
        if most is not None:
            self.model.limits[scope, name] = most
            insert = "INSERT INTO limits (scope, name, max_running) VALUES (:scope, :name, :most)"
            self.world.sql(insert, scope=scope, name=name, most=most)

    # ----------------------------------------------------------------------------------------------- the clock

    @act(3, lambda run: run.tasks(State.SCHEDULED, State.WAITING) and run.has("clock"))
    def time_passes(self, draw: Draw) -> None:
        """For one task."""
        self.let_time_pass(draw(st.sampled_from(self.tasks(State.SCHEDULED, State.WAITING))))

    def let_time_pass(self, task: Task) -> None:
        """Make everything due that the task waits for by the clock."""
        past = "SET due_at = now() - interval '1 s' WHERE task_id = :task AND due_at IS NOT NULL"
        self.model.time_passes(task.id)
        self.world.sql(f"UPDATE steps {past} AND kind = 'wait' AND status = 'started'", task=task.id)
        self.world.sql(f"UPDATE task_status {past}", task=task.id)

    @act(1, lambda run: run.tasks() and run.has("clock"))
    def deadline_passes(self, draw: Draw) -> None:
        """The loss is not detected yet."""
        task = draw(st.sampled_from(self.tasks()))
        task.overdue = True
        self.world.sql("UPDATE task_status SET deadline = now() - interval '1 s' WHERE task_id = :task", task=task.id)

    # ---------------------------------------------------------------------------------------- the orchestrator

    @act(2, lambda run: run.tasks(State.PENDING))
    def dispatch(self, draw: Draw) -> None:
        """Messages go out; those of an orchestrator that dies are never sent."""
        self.perform(calls.dispatch(), self.fault(draw))

    @act(2, lambda run: run.tasks(State.SCHEDULED, State.WAITING))
    def wake_due(self, draw: Draw) -> None:
        """Timers, back-offs, schedules."""
        self.perform(calls.wake_due(), self.fault(draw))

    @act(1, lambda run: run.tasks(State.QUEUED))
    def republish(self, draw: Draw) -> None:
        """Messages are sent again."""
        self.perform(calls.republish(), self.fault(draw))

    @act(1, lambda run: run.tasks(State.WAITING))
    def heal_waits(self, draw: Draw) -> None:
        """Finds nothing."""
        self.perform(calls.heal_waits())

    @act(2, lambda run: any(task.overdue for task in run.tasks()))
    def expire_overdue(self, draw: Draw) -> None:
        """As the expirer does it."""
        for task in list(self.world.observer.scalars(OVERDUE)):
            self.perform(calls.expire(self.model, task), self.fault(draw))

    @act(1, lambda run: run.has("workers") and all(run.model.workers.values()))
    def lose_a_worker(self, draw: Draw) -> None:
        """A worker does not beat any more."""
        self.turn(draw(st.sampled_from(self.minions)), online=False)

    @act(4, lambda run: not all(run.model.workers.values()))
    def find_the_worker(self, draw: Draw) -> None:
        """It beats again."""
        self.turn(next(worker for worker, online in self.model.workers.items() if not online), online=True)

    def turn(self, worker: UUID, *, online: bool) -> None:
        """Sets a worker's status."""
        self.model.workers[worker] = online
        status = "online" if online else "lost"
        self.world.sql("UPDATE workers SET status = :status WHERE id = :id", id=worker, status=status)

    @act(2, lambda run: any(not run.model.workers[task.worker] for task in run.tasks(State.RUNNING)))
    def rescue(self, draw: Draw) -> None:
        """As the loop for lost workers does it."""
        for orphan in self.world.observer.execute(ORPHANED, {"lease": 10.0, "most": 1000}).all():
            self.perform(calls.release(self.model, orphan.task_id, orphan.claim, "lost"), self.fault(draw))

    # --------------------------------------------------------------------------------------------- two at once

    @act(2, lambda run: run.model.tasks)
    def two_at_once(self, draw: Draw) -> None:
        """Any two of the calls that lock rows."""
        kinds: dict[str, Callable[[], Call]] = {
            "submit once": lambda: calls.submit("A", unique_key="u"),
            "submit again": lambda: calls.submit("A", idempotency_key="i"),
            "submit to a conversation": lambda: calls.submit("A", conversation_id="c"),
            "dispatch": calls.dispatch,
            "wake_due": calls.wake_due,
            "cancel": lambda: calls.cancel(self.model, self.any_task(draw)),
            "signal": lambda: calls.signal(self.any_task(draw), draw(SIGNALS), len(self.claims)),
        }
        if self.messages:
            kinds["claim"] = lambda: calls.claim(*self.message(draw), draw(st.sampled_from(self.minions)))
        if self.claims:
            kinds["finish"] = lambda: calls.finish(self.model, *self.held(draw))
            kinds["release"] = lambda: self.released(draw)
            kinds["suspend"] = lambda: self.suspended(draw)
        first, second = (kinds[draw(st.sampled_from(sorted(kinds)))]() for _ in range(2))
        self.together(first, second, commit=not self.has("faults") or draw(st.integers(0, 3)) > 0)

    @act(5, lambda run: len(run.siblings()) > 1)
    def two_children_at_once(self, draw: Draw) -> None:
        """Both count down the same parent."""
        one, other = draw(st.permutations(self.siblings()))[:2]
        first, second = (calls.finish(self.model, task.id, task.claim) for task in (one, other))
        self.together(first, second, commit=not self.has("faults") or draw(st.integers(0, 3)) > 0)

    def siblings(self) -> list[Task]:
        """The running sub-tasks of that parent which has most of them."""
        running = [task for task in self.tasks(State.RUNNING) if task.parent]
        families = [[task for task in running if task.parent is one.parent] for one in running]
        return max(families, key=len, default=[])

    @act(8, lambda run: len(run.tasks(State.QUEUED)) > 1 and run.has("limits"))
    def two_claims_at_once(self, draw: Draw) -> None:
        """Both count what runs, and a limit that was lowered a moment ago has room for one of them."""
        self.limit("capability", "work", len(self.tasks(State.RUNNING)) + 1)
        one, other = draw(st.permutations(self.tasks(State.QUEUED)))[:2]
        first, second = (calls.claim(task.id, task.claim, self.minions[0]) for task in (one, other))
        self.together(first, second, commit=True)

    # ------------------------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        """Healthy minions and an orchestrator take over: what was accepted comes to its end, in bounded time."""
        if self.world.found:
            return
        with self.suspicion():
            self.calm_down()
            # Each round ends every leaf of a tree, and a tree is four deep.
            for _ in range(8):
                if self.tasks():
                    self.end_what_can_end()
            self.check_promises()
        stuck = {str(task.id): str(task.state) for task in self.tasks()}
        assert not stuck, f"still not at their end: {stuck}"

    def calm_down(self) -> None:
        """No pauses and limits any more; the minions of before are lost, with all that they hold."""
        self.model.pauses.clear()
        self.model.limits.clear()
        self.model.holds.clear()
        self.model.workers = dict.fromkeys(self.minions, False)
        self.world.sql(
            "DELETE FROM pauses; DELETE FROM limits; DELETE FROM rate_holds; UPDATE workers SET status = 'lost'"
        )
        for orphan in self.world.observer.execute(ORPHANED, {"lease": 10.0, "most": 1000}).all():
            self.perform(calls.release(self.model, orphan.task_id, orphan.claim, "lost"))
        self.minions = [self.new_minion(), self.new_minion()]

    def end_what_can_end(self) -> None:
        """Time passes, signals come, and what runs is done."""
        for task in list(self.world.observer.scalars(OVERDUE)):
            self.perform(calls.expire(self.model, task))
        for task in self.tasks(State.SCHEDULED, State.WAITING):
            self.let_time_pass(task)
            for step in [step for step in task.open_steps.values() if step.kind == "wait" and step.due is None]:
                self.perform(calls.signal(task.id, step.name, "at last"))
        self.perform(calls.wake_due())
        self.perform(calls.republish())
        self.start_all()
        for task in self.tasks(State.RUNNING):
            self.perform(calls.finish(self.model, task.id, task.claim))


def expect(call: Call, seen: Answer, model: Model, skipped: frozenset[UUID] | None = None) -> None:
    """Makes the call to the model; raises Mismatch where it answers something else."""
    if skipped is not None and call.skipping is not None:
        expected = call.skipping(model, seen, skipped)
    else:
        expected = call.expect(model, seen)
    if seen != expected:
        raise Mismatch(f"{call.name} answered {seen!r}, not {expected!r}")


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture
def world(database: Engine, define: Define) -> Iterator[World]:
    define(NOOP, *(agent_definition(name, config={"max_attempts": most}) for name, most in MOST_ATTEMPTS.items()))
    with database.begin() as connection:
        connection.exec_driver_sql(LOG_CHANGES)
    try:
        with ExitStack() as stack:
            yield World(database, stack)
    finally:
        with database.begin() as connection:
            connection.exec_driver_sql(FORGET_CHANGES)


def explore(world: World, *, runs: int, steps: int, acts: Collection[str] = (), **options: Any) -> None:
    """Settings for a number of runs and steps; by default the same ones each time."""
    usual = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    options = {**usual, "max_examples": runs, "stateful_step_count": steps, **options}
    run_state_machine_as_test(partial(Lifecycle, world, acts), settings=settings(**options))


@pytest.mark.timeout(900)  # where it fails, Hypothesis looks for a shorter way there
def test_database_agrees_with_the_model(world: World) -> None:
    explore(world, runs=60, steps=40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_database_agrees_with_the_model_over_long_runs(world: World) -> None:
    explore(world, runs=600, steps=80, derandomize=False)


# ------------------------------------------------------------------------------------ what the machine catches

# Possible mistakes: a function, its text, and its text with the mistake.
MISTAKES = {
    "a write without a fence": [
        ("minion_fence", "task_id = t AND claim = c AND state = 'running'", "task_id = t"),
    ],
    "woken twice, and before its time": [
        ("minion_count_down", "CASE WHEN open_waits <= over THEN 'pending' ELSE state END", "'pending'"),
        ("minion_count_down", "CASE WHEN open_waits > over THEN minion_waits_for(t) END", "NULL"),
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
        ("minion_settle", "(parent.id, 1)", "(parent.id, (final <> 'cancelled')::integer)"),
    ],
    "a claim that keeps its number": [("minion_claim", "claim = claim + 1", "claim = GREATEST(claim, 1)")],
    "an old message that is taken": [("minion_claim", "claim = expected", "claim >= expected")],
    "a release that forgets the cancel": [("minion_release", "IF now_at.cancel_requested", "IF false")],
    "a time-out that ends the wait for children too": [("minion_wake_due", " AND open_waits = 0\n", "\n")],
    "a signal that is not taken": [("minion_suspend", "AND minion_take_signal", "AND false AND minion_take_signal")],
    "claims that count at the same time": [("minion_obstacle", "FOR NO KEY UPDATE", "")],
    "a task that breaks into a conversation": [
        ("minion_predecessor", "(e.claim = 0, e.task_id) < (true, t)", "e.task_id < t")
    ],
    "a unique key that outlives its task": [("minion_settle", "DELETE FROM unique_tasks WHERE task_id = t;", "")],
}
# Rare states are found soon among the acts that lead there.
TOWARDS = {
    "an old message that is taken": ["submit", "everybody_works", "dispatch", "give_back", "deliver_late"],
    "a release that forgets the cancel": ["submit", "everybody_works", "cancel_what_runs", "give_back"],
    "a signal that is not taken": ["submit", "everybody_works", "signal_what_runs", "suspend"],
    "claims that count at the same time": ["submit", "dispatch", "two_claims_at_once", "finish", "lift_limit"],
    "a task that breaks into a conversation": ["submit", "everybody_works", "time_passes", "wake_due", "finish"],
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
def test_mistake_in_the_database_is_found(world: World, database: Engine, mistake: str) -> None:
    acts = TOWARDS.get(mistake, ())
    with mistaken(database, MISTAKES[mistake]), pytest.raises((AssertionError, IntegrityError)):
        explore(world, runs=400, steps=40, acts=acts, phases=[Phase.generate], report_multiple_bugs=False)
