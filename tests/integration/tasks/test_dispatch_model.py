"""What a round of dispatch takes, compared with a model of docs/operations.md ("Who runs first") on random queues."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from shared.tasks import lifecycle
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver

NAMESPACES, KEYS, AGENTS = ("default", "other"), ("", "a", "b", "c"), ("A", "B", "C")
PARKED = 9_000_000_000_000_000_000
INSERT = text(
    """
    WITH made AS (
        INSERT INTO tasks (id, namespace, agent_name, agent_version_id, input, root_id, origin_id, key)
        SELECT i.id, :namespace, :agent, v.id, '{}', i.id, i.id, NULLIF(:key, '')
            FROM (SELECT minion_uuidv7() AS id) i JOIN agent_versions v ON v.name = 'A'
        RETURNING id
    )
    INSERT INTO task_status (task_id, namespace, state, capability, agent_name, key, rank, worker_id, queued_at,
                             published, published_at)
        SELECT id, :namespace, :state, 'work', :agent, :key, :rank,
               (SELECT w.id FROM workers w WHERE :state = 'running'), now(), 1, now() FROM made
    """
)
PENDING = text(
    "SELECT task_id, namespace, key, agent_name, rank FROM task_status WHERE state = 'pending' ORDER BY rank, task_id"
)
IN_FLIGHT = text("SELECT namespace, key, agent_name, state FROM task_status WHERE state IN ('queued', 'running')")
TAKE = text("SELECT task_id FROM minion_take('work', :window, :limited)")
RUN_ALL = text(
    "UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = (SELECT id FROM workers) "
    "WHERE state = 'queued'"
)
END_ALL = text("UPDATE task_status SET state = 'succeeded', worker_id = NULL WHERE state = 'running'")


class Waiting(NamedTuple):
    """A pending task, in the order of positions."""

    task: UUID
    namespace: str
    key: str
    agent: str
    rank: int

    def is_in(self, scope: str, namespace: str, name: str) -> bool:
        names = {"capability": "work", "agent": self.agent, "key": self.key}
        return self.namespace == namespace and names[scope] == name


@dataclass
class Site:
    """Random queues, and what keeps some of them back."""

    closed: set[tuple[str, str, str]] = field(default_factory=set)
    limits: dict[tuple[str, str, str], int] = field(default_factory=dict)
    bursts: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def is_open(self, task: Waiting) -> bool:
        return task.rank < PARKED and not any(task.is_in(*scope) for scope in self.closed)


def build(connection: Connection, dice: random.Random, *, limited: bool) -> Site:
    """Fill the queues: some are long, some are empty, some tasks run or are queued already."""
    site = Site()
    connection.execute(text("SET LOCAL session_replication_role = replica"))  # without triggers: it is faster
    lines = [(n, k, a) for n in NAMESPACES for k in KEYS for a in AGENTS]
    for namespace, key, agent in dice.sample(lines, dice.randint(1, len(lines))):
        line = {"namespace": namespace, "key": key, "agent": agent}
        states = ["pending"] * dice.choice([1, 2, 20]) + ["queued", "running"] * dice.choice([0, 0, 1, 3])
        for state in states:
            rank = PARKED if state == "pending" and dice.random() < 0.1 else dice.randint(1, 50)
            connection.execute(INSERT, {**line, "state": state, "rank": rank})
    scopes = [(s, n, x) for n in NAMESPACES for s, names in (("agent", AGENTS), ("key", KEYS[1:])) for x in names]
    scopes += [("capability", namespace, "work") for namespace in NAMESPACES]
    for scope, namespace, name in dice.sample(scopes, dice.choice([0, 0, 1, 3])):
        site.closed.add((scope, namespace, name))
        if dice.random() < 0.5:
            statement = "INSERT INTO pauses (namespace, scope, name) VALUES (:namespace, :scope, :name)"
        else:
            statement = "INSERT INTO rate_holds VALUES (:namespace, :scope, :name, now() + interval '1 h')"
        connection.execute(text(statement), {"namespace": namespace, "scope": scope, "name": name})
    for scope, namespace, name in dice.sample(scopes, dice.randint(1, 5)) if limited else []:
        rated = dice.random() < 0.4
        values = {"namespace": namespace, "scope": scope, "name": name, "most": dice.randint(0, 6), "rate": None}
        if rated:
            values.update(most=None, rate=dice.choice([1, 30]))
        connection.execute(
            text(
                "INSERT INTO limits (namespace, scope, name, max_running, rate, period_seconds) "
                "VALUES (:namespace, :scope, :name, :most, :rate, CASE WHEN :rate > 0 THEN 60 END)"
            ),
            values,
        )
        target = site.bursts if rated else site.limits
        target[scope, namespace, name] = max(1, values["rate"] // 10) if rated else values["most"]
    return site


def pending(connection: Connection) -> list[Waiting]:
    return [Waiting(*row) for row in connection.execute(PENDING)]


def room_of(window: int, queued: int) -> int:
    """The window is filled again when half of it is free."""
    free = window - queued
    return max(0, free) if free >= window // 2 else 0


def fair(site: Site, waiting: list[Waiting], in_flight: Counter[tuple[str, str]], room: int) -> list[Waiting]:
    """The next tasks, one by one: the tenant with the fewest tasks in flight comes first, and gives its first task."""
    lines: dict[tuple[str, str], list[Waiting]] = {}
    for task in waiting:
        if site.is_open(task):
            lines.setdefault((task.namespace, task.key), []).append(task)
    busy, taken = Counter(in_flight), []
    while lines and len(taken) < room:
        tenant = min(lines, key=lambda one: (busy[one], lines[one][0].rank, lines[one][0].task))
        taken.append(lines[tenant].pop(0))
        busy[tenant] += 1
        lines = {one: tasks for one, tasks in lines.items() if tasks}
    return taken


@pytest.fixture
def driver(database: Any, define: Define) -> LifecycleDriver:
    define(NOOP, agent_definition("A"))
    return LifecycleDriver(database)


@pytest.fixture
def connection(driver: LifecycleDriver) -> Iterator[Connection]:
    """A connection whose transaction leaves nothing."""
    with driver.engine.connect() as opened:
        yield opened


@pytest.mark.parametrize("seed", range(20))
def test_a_round_takes_what_is_next_in_fair_turns(connection: Connection, seed: int) -> None:
    dice = random.Random(seed)
    site = build(connection, dice, limited=False)
    waiting = pending(connection)
    flight = connection.execute(IN_FLIGHT).all()
    queued = sum(row.state == "queued" for row in flight)
    in_flight = Counter((row.namespace, row.key) for row in flight)
    for window in range(1, 51, dice.randint(1, 5)):
        room = room_of(window, queued)
        expected = fair(site, waiting, in_flight, room)
        nested = connection.begin_nested()
        taken = set(connection.scalars(TAKE, {"window": window, "limited": False}))
        nested.rollback()
        # A queue gives at most four times its share of a round; the rest of the room is left to the next one.
        queues = {(task.namespace, task.key, task.agent) for task in waiting if site.is_open(task)}
        most = 4 * room / min(room, len(queues)) if room and queues else 0
        given = Counter((task.namespace, task.key, task.agent) for task in expected)
        if all(number <= most for number in given.values()):
            assert taken == {task.task for task in expected}, window
        else:
            assert len(taken) >= min(room, len(expected)) / 4, window


@pytest.mark.parametrize("seed", range(20))
def test_rounds_keep_all_limits_and_order_and_leave_no_task_that_may_run(connection: Connection, seed: int) -> None:
    dice = random.Random(seed)
    site = build(connection, dice, limited=True)
    idle = 0
    while idle < 2:
        before = pending(connection)
        queued = sum(row.state == "queued" for row in connection.execute(IN_FLIGHT))
        window = dice.randint(1, 50)
        taken = set(connection.scalars(TAKE, {"window": window, "limited": True}))
        chosen = [task for task in before if task.task in taken]
        assert len(taken) == len(chosen) <= room_of(window, queued)
        assert all(site.is_open(task) for task in chosen)
        assert_order(before, taken)
        assert_limits(connection, site, chosen)
        idle = 0 if taken else idle + 1
        connection.execute(RUN_ALL)
        if dice.random() < 0.5 or not taken:
            connection.execute(END_ALL)
    blocked = {scope for scope, most in site.limits.items() if most == 0}
    left = [task for task in pending(connection) if site.is_open(task)]
    assert all(any(task.is_in(*scope) for scope in blocked) for task in left)


def assert_order(before: list[Waiting], taken: set[UUID]) -> None:
    """A queue gives its first tasks."""
    gaps = set()
    for task in before:
        line = task.namespace, task.key, task.agent
        if task.task not in taken:
            gaps.add(line)
        else:
            assert line not in gaps


def assert_limits(connection: Connection, site: Site, chosen: list[Waiting]) -> None:
    """A limit that was exceeded before admits nothing more."""
    flight = [
        (row.state, Waiting(UUID(int=0), row.namespace, row.key, row.agent_name, 0))
        for row in connection.execute(IN_FLIGHT)
    ]
    for scopes, states in ((site.limits, ("queued", "running")), (site.bursts, ("queued",))):
        for scope, most in scopes.items():
            if any(task.is_in(*scope) for task in chosen):
                assert sum(task.is_in(*scope) for state, task in flight if state in states) <= most, scope


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_dispatchers_take_each_task_once_within_its_limits(driver: LifecycleDriver, seed: int) -> None:
    with driver.engine.begin() as connection:
        site = build(connection, random.Random(seed), limited=True)
        connection.execute(END_ALL)
        before = pending(connection)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            rounds = [threads.submit(driver.call, lifecycle.dispatch, lease=3600.0, window=20) for _ in range(2)]
            taken = [message.task_id for one in rounds for message in one.result()]
            assert len(taken) == len(set(taken))
            with driver.engine.begin() as connection:
                assert_limits(connection, site, [task for task in before if task.task in set(taken)])
                connection.execute(RUN_ALL)
                connection.execute(END_ALL)
