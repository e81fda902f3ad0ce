"""A canary gets its share of new tasks, keeps its callers, and is rolled back by itself when it leaves its bands."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from orchestrator.alerts.watch import AlertWatch
from orchestrator.maintenance.canary_keeper import CanaryKeeper
from orchestrator.observe import canaries as figures
from orchestrator.observe.counting import catch_up
from orchestrator.replay import replay
from orchestrator.schedules import store as schedules
from orchestrator.schedules.scheduler import run_due
from orchestrator.schedules.store import ScheduleDefinition
from shared.audit import log
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.definitions.apply import store_definitions
from shared.errors import Conflict, InvalidDefinition, InvalidInput, MinionError, NotFound
from shared.registry import AgentRegistry
from shared.settings import Settings
from shared.tasks import lifecycle, submission
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.definitions import agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

SAID = [{"role": "user", "content": "Sort a parcel"}]
KEYS = [f"tenant-{n}" for n in range(20)]
ACTS = text("SELECT act, actor, before, after FROM audit_log WHERE act LIKE 'canary.%' ORDER BY id")


@pytest.fixture
def registry(driver: LifecycleDriver, define: Define) -> AgentRegistry:
    """Agent `Sorter` at version 1, with a version 2."""
    define(agent_definition("Sorter", description="Sorts parcels"))
    define(agent_definition("Sorter", description="Sorts parcels better"))
    with Session(driver.engine) as session:
        found = AgentRegistry(session)
    found.roll_back("Sorter", 1)
    return found


def version_of(driver: LifecycleDriver, task: UUID) -> int:
    version: int = driver.sql(
        "SELECT v.number FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id WHERE t.id = :task", task=task
    )
    return version


def drawn(driver: LifecycleDriver, unit: str) -> int:
    """Return the version of the tasks of a conversation, tenant key or tree."""
    is_canary = driver.sql(
        "SELECT minion_drawn(version_id, :unit, share) FROM canaries WHERE ended_at IS NULL", unit=unit
    )
    return 2 if is_canary else 1


def acts(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(ACTS))


# ------------------------------------------------------------------------------------------------------ choice


def by_sql(driver: LifecycleDriver, key: str) -> UUID:
    task: UUID = driver.sql("SELECT minion_submit('Sorter', '{}', key => :key)", key=key)
    return task


def by_capability(driver: LifecycleDriver, key: str) -> UUID:
    return driver.submit(None, capability="sorting", key=key)


def by_schedule(driver: LifecycleDriver, key: str) -> UUID:
    request = {"agent": "Sorter", "input": {}, "key": key}
    definition = ScheduleDefinition.parse({"name": key, "cron": "0 * * * *", "request": request})
    driver.call(schedules.put, "default", definition)
    schedule = driver.sql("UPDATE schedules SET next_at = now() WHERE name = :name RETURNING id", name=key)
    [task] = driver.call(run_due, schedule)
    return task


def by_parent(driver: LifecycleDriver, key: str) -> UUID:
    [child] = driver.suspend(driver.run("A", key=key), children=["Sorter"])
    return child


def by_message(driver: LifecycleDriver, key: str) -> UUID:
    task = driver.submit(None, messages=SAID, key=key)
    driver.dispatch()
    return task


def by_queue(driver: LifecycleDriver, key: str) -> UUID:
    """As the orchestrator stores what other Celery users send, and the API what comes in bulk."""
    with driver.engine.connect() as connection:
        requests = [TaskRequest(agent="Sorter", input={}, key=key), TaskRequest(agent="B", input={})]
        prepared = submission.prepare_each(driver.engine, requests, submitted_by=["celery:other"] * 2)
        assert not any(isinstance(each, MinionError) for each in prepared)
        accepted = submission.accept(connection, prepared)  # type: ignore[arg-type]
        connection.commit()
    return accepted[0].task_id


ENTRY_POINTS = [by_sql, by_capability, by_schedule, by_parent, by_message, by_queue]


def test_version_of_a_tenant_is_the_same_by_every_entry_point(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry
) -> None:
    capabilities = ["work", "sorting"]
    define(agent_definition("Sorter", *capabilities, description="Sorts parcels"))
    define(agent_definition("Sorter", *capabilities, description="Sorts parcels better"))
    registry.roll_back("Sorter", 3)
    registry.start_canary("Sorter", 4, "50%")
    expected = {key: 2 + drawn(driver, key) for key in KEYS}
    assert set(expected.values()) == {3, 4}
    for submit in ENTRY_POINTS:
        assert {key: version_of(driver, submit(driver, key)) for key in KEYS[:8]} == {
            key: expected[key] for key in KEYS[:8]
        }, submit.__name__
    assert {key: version_of(driver, driver.submit("Sorter", key=key)) for key in KEYS} == expected


def test_conversation_keeps_its_version_whatever_the_tenant(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "50%")
    versions = {
        talk: {version_of(driver, driver.submit("Sorter", conversation_id=talk, key=key)) for key in KEYS[:4]}
        for talk in KEYS
    }
    assert versions == {talk: {drawn(driver, talk)} for talk in KEYS}


def test_conversation_has_one_version_at_every_depth(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "50%")
    for talk in KEYS[:6]:
        [child] = driver.suspend(driver.run("A", conversation_id=talk, key=KEYS[7]), children=["B"])
        driver.again(child)
        [grandchild] = driver.suspend(child, children=["Sorter"])
        assert version_of(driver, grandchild) == drawn(driver, talk)


def test_sub_tasks_of_a_tree_get_one_version(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "50%")
    for _ in range(6):
        parent = driver.run("A")
        children = driver.suspend(parent, children=["Sorter"] * 3)
        assert {version_of(driver, child) for child in children} == {drawn(driver, str(parent))}


def test_share_of_tasks_without_a_tenant_is_kept(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "10%")
    requests = [TaskRequest(agent="Sorter", input={}) for _ in range(500)]
    accepted = driver.call(submission.submit_within, requests, submitted_by="test")
    drawn_by_id = driver.sql("SELECT count(*) FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id "
                             "WHERE v.number = 2")  # fmt: skip
    assert len(accepted) == 500
    # Five standard deviations.
    assert 50 - 34 < drawn_by_id < 50 + 34
    assert driver.sql("SELECT count(*) FROM task_status WHERE agent_name = 'Sorter' AND capability IS NULL") == 0


def test_larger_share_keeps_those_of_a_smaller_one(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    units = [str(n) for n in range(300)]
    had: set[str] = set()
    for share in ("0.5%", "10%", "50%", "99.99%"):
        registry.start_canary("Sorter", 2, share)
        has = {unit for unit in units if drawn(driver, unit) == 2}
        assert had <= has
        had = has
    assert [each.act for each in acts(driver.engine)] == ["canary.start", *["canary.change"] * 3]


def test_canary_gets_no_task_that_only_the_active_version_accepts(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry
) -> None:
    strict = {"type": "object", "required": ["x"]}
    define(agent_definition("Sorter", "work", "sorting", description="Sorts parcels", input_schema=strict))
    define(agent_definition("Sorter", "work", "sorting", description="Sorts parcels"))
    registry.roll_back("Sorter", 4)
    registry.start_canary("Sorter", 3, "99.99%")
    key = next(key for key in KEYS if drawn(driver, key) == 2)
    for submit in ENTRY_POINTS:
        task = submit(driver, key)
        driver.dispatch()
        assert version_of(driver, task) == 4, submit.__name__
        assert driver.sql("SELECT capability FROM task_status WHERE task_id = :task AND state <> 'failed'", task=task)
    task = driver.submit("Sorter", input={"x": 1}, key=key)
    assert version_of(driver, task) == 3
    assert driver.sql("SELECT capability FROM task_status WHERE task_id = :task", task=task) == "work"


def test_input_that_no_version_accepts_is_refused(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry
) -> None:
    for field in ("x", "y"):
        schema = {"type": "object", "required": [field]}
        define(agent_definition("Sorter", description=f"Wants {field}", input_schema=schema))
    registry.roll_back("Sorter", 3)
    registry.start_canary("Sorter", 4, "99.99%")
    with pytest.raises(InvalidInput, match="'x'"):
        driver.submit("Sorter", input={})


def test_canary_without_the_capability_gets_no_task_that_names_it(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry
) -> None:
    define(agent_definition("Sorter", "work", "sorting"))
    registry.start_canary("Sorter", 2, "99.99%")
    assert version_of(driver, driver.submit(None, capability="sorting")) == 3
    assert version_of(driver, driver.submit("Sorter", key=next(k for k in KEYS if drawn(driver, k) == 2))) == 2


def test_replays_and_pinned_versions_are_not_drawn(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    task = driver.run("Sorter")
    driver.finish(task, state=State.FAILED)
    registry.start_canary("Sorter", 2, "99.99%")
    for pinned in (True, False):
        again = driver.call(replay, task, pinned=pinned, submitted_by="test")
        assert version_of(driver, again.task_id) == 1


def test_end_of_a_canary_leaves_its_accepted_tasks_alone(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "99.99%")
    key = next(key for key in KEYS if drawn(driver, key) == 2)
    task = driver.run("Sorter", key=key)
    registry.roll_back("Sorter", 1)
    assert version_of(driver, driver.submit("Sorter", key=key)) == 1
    assert driver.finish(task) == State.SUCCEEDED
    assert version_of(driver, task) == 2


# ----------------------------------------------------------------------------------------------- start and end


def test_share_of_all_completes_a_canary(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "10%", "slowly", min_tasks=50)
    registry.start_canary("Sorter", 2, "20.5%")
    done = registry.start_canary("Sorter", 2, "100%")
    assert (done.version, done.status) == (2, "active")
    start, change, complete = acts(driver.engine)
    assert (start.act, start.after["share"], start.after["min_tasks"]) == ("canary.start", "10%", 50)
    assert start.after["reason"] == "slowly"
    assert (change.before, change.after) == ({"share": "10%"}, {"share": "20.5%"})
    assert (complete.act, complete.before["share"]) == ("canary.complete", "20.5%")


@pytest.mark.parametrize("version", [1, 3])
def test_activation_of_another_version_ends_a_canary(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry, version: int
) -> None:
    registry.start_canary("Sorter", 2, "10%")
    if version == 3:
        define(agent_definition("Sorter", description="newest"))
    else:
        registry.roll_back("Sorter", 1, "enough")
    assert [each.act for each in acts(driver.engine)] == ["canary.start", "canary.end"]
    assert registry.get_agent("Sorter").version == version
    assert driver.sql("SELECT count(*) FROM canaries WHERE ended_at IS NULL") == 0


def test_version_that_an_older_release_activates_gets_all_tasks(
    driver: LifecycleDriver, define: Define, registry: AgentRegistry, settings: Settings
) -> None:
    define(agent_definition("Sorter", description="newest"))
    registry.roll_back("Sorter", 1)
    registry.start_canary("Sorter", 2, "99.99%")
    newest = "(SELECT id FROM agent_versions WHERE name = 'Sorter' AND number = 3)"
    driver.sql(f"UPDATE agents SET active_version_id = {newest} WHERE name = 'Sorter'")
    assert {version_of(driver, driver.submit("Sorter")) for _ in range(5)} == {3}
    CanaryKeeper(settings, driver.engine).run_once()
    assert acts(driver.engine)[-1].act == "canary.end"


def test_impossible_canaries_are_refused(define: Define, registry: AgentRegistry) -> None:
    with pytest.raises(InvalidInput, match="is the active one"):
        registry.start_canary("Sorter", 1, "10%")
    with pytest.raises(NotFound, match="has no version 7"):
        registry.start_canary("Sorter", 7, "10%")
    for share in ("0%", "10", "101%", "1.234%", ""):
        with pytest.raises(InvalidInput, match="share must be a percentage"):
            registry.start_canary("Sorter", 2, share)
    with pytest.raises(InvalidInput, match="min_tasks"):
        registry.start_canary("Sorter", 2, "10%", min_tasks=1)
    relation = {"kind": "agent", "name": "Sorter", "type": "function", "relations": [{"agent": "Chain"}]}
    define({"kind": "agent", "name": "Chain", "type": "function", "relations": [{"agent": "B"}]}, relation)
    registry.roll_back("Sorter", 1)
    define({"kind": "agent", "name": "Chain", "type": "function", "relations": [{"agent": "Sorter"}]})
    with pytest.raises(InvalidDefinition, match="circle"):
        registry.start_canary("Sorter", 3, "10%")
    registry.set_status("Sorter", "disabled")
    with pytest.raises(Conflict, match="disabled"):
        registry.start_canary("Sorter", 2, "10%")


def applied(engine: Engine, *definitions: dict[str, Any], **options: Any) -> list[str]:
    with Session(engine) as session:
        changes = store_definitions(session, [parse_definition(each) for each in definitions], **options)
    return [f"{change.action} {change.name} {change.version}" for change in changes]


def test_apply_with_a_share_begins_canaries_of_existing_agents(driver: LifecycleDriver) -> None:
    better, new = agent_definition("A", description="better"), agent_definition("New")
    assert applied(driver.engine, better, new, share="10%") == ["canary A 2", "created New 1"]
    assert applied(driver.engine, better, new, share="10%") == ["unchanged A 2", "unchanged New 1"]
    assert applied(driver.engine, better) == ["unchanged A 2"], "a deployment must not complete a canary"
    assert applied(driver.engine, better, share="50%") == ["canary A 2"]
    assert [each.act for each in acts(driver.engine)] == ["canary.start", "canary.change"]
    assert driver.sql("SELECT v.number FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
                      "WHERE a.name = 'A'") == 1  # fmt: skip
    assert applied(driver.engine, agent_definition("A", description="best")) == ["changed A 3"]
    assert acts(driver.engine)[-1].act == "canary.end"


def test_whole_share_in_any_form_activates(driver: LifecycleDriver) -> None:
    assert applied(driver.engine, agent_definition("A", description="better"), share="100.00%") == ["changed A 2"]


def test_same_share_again_keeps_the_figures(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    registry.start_canary("Sorter", 2, "10%", max_cost=0.2)
    registry.start_canary("Sorter", 2, "10%")
    registry.start_canary("Sorter", 2, "10.00%", max_cost=0.2)
    assert [each.act for each in acts(driver.engine)] == ["canary.start"]
    registry.start_canary("Sorter", 2, "10%", max_cost=0.3)
    assert acts(driver.engine)[-1].act == "canary.change"


def test_inactive_version_gets_no_tasks_until_it_is_activated(driver: LifecycleDriver, registry: AgentRegistry) -> None:
    newer = agent_definition("Sorter", description="newer")
    tool = agent_definition("New")
    assert applied(driver.engine, newer, tool, inactive=True) == ["inactive Sorter 3", "created New 1"]
    assert applied(driver.engine, newer, inactive=True) == ["unchanged Sorter 3"]
    assert version_of(driver, driver.submit("Sorter")) == 1
    row = driver.sql("SELECT after FROM audit_log WHERE act = 'definition.store'")
    assert row["version"] == 3
    # The rollback from version 2 holds.
    assert applied(driver.engine, agent_definition("Sorter", description="Sorts parcels better")) == [
        "unchanged Sorter 2"
    ]
    assert applied(driver.engine, newer) == ["unchanged Sorter 3"]
    registry.start_canary("Sorter", 3, "10%")
    assert registry.roll_back("Sorter", 3).status == "active"
    assert version_of(driver, driver.submit("Sorter")) == 3


def test_inactive_version_is_activated_by_its_text(driver: LifecycleDriver) -> None:
    better = agent_definition("A", description="better")
    assert applied(driver.engine, better, inactive=True) == ["inactive A 2"]
    assert version_of(driver, driver.submit("A")) == 1
    assert applied(driver.engine, better) == ["changed A 2"]
    assert version_of(driver, driver.submit("A")) == 2


def test_agent_with_a_canary_is_active_when_it_is_enabled_again(registry: AgentRegistry) -> None:
    registry.roll_back("Sorter", 2)
    registry.roll_back("Sorter", 1)
    registry.start_canary("Sorter", 2, "10%")
    registry.set_status("Sorter", "disabled")
    assert registry.set_status("Sorter", "active").status == "active"
    assert registry.roll_back("Sorter", 1).status == "rolled_back"


def test_people_and_keeper_decide_one_after_the_other(
    driver: LifecycleDriver, registry: AgentRegistry, settings: Settings
) -> None:
    """Four writers of every kind leave one canary at most, and a status that fits the active version."""
    better = agent_definition("Sorter", description="Sorts parcels better")
    writers = [
        lambda: registry.start_canary("Sorter", 2, "50%"),
        lambda: registry.roll_back("Sorter", 1),
        lambda: applied(driver.engine, better, share="20%"),
        CanaryKeeper(settings, driver.engine).run_once,
    ]

    def keep_on(write: Any) -> None:
        for _ in range(10):
            write()

    concurrently(*[partial(keep_on, write) for write in writers])
    assert driver.sql("SELECT count(*) FROM canaries WHERE ended_at IS NULL") <= 1
    assert registry.get_agent("Sorter").version == 1
    begun = [each.act for each in acts(driver.engine)].count("canary.start")
    ended = [each.act for each in acts(driver.engine)].count("canary.end")
    assert begun - ended == driver.sql("SELECT count(*) FROM canaries WHERE ended_at IS NULL")


# ------------------------------------------------------------------------------------------------------- bands


class Trial:
    """A canary of `Sorter` at half of the tasks, whose tasks the test ends."""

    def __init__(self, driver: LifecycleDriver, registry: AgentRegistry, settings: Settings, **bands: Any) -> None:
        self.driver = driver
        self.keeper = CanaryKeeper(settings, driver.engine)
        registry.start_canary("Sorter", 2, "50%", min_tasks=10, **bands)
        units = [str(n) for n in range(100)]
        self.units = {version: [u for u in units if drawn(driver, u) == version] for version in (1, 2)}

    def end(self, version: int, count: int, *, failed: int = 0, dollars: float = 0.0) -> list[UUID]:
        tasks = [self.driver.submit("Sorter", key=self.units[version][n]) for n in range(count)]
        self.driver.dispatch()
        for n, task in enumerate(tasks):
            self.driver.claim(task)
            state = State.FAILED if n < failed else State.SUCCEEDED
            self.driver.finish(task, state=state, cost_microdollars=round(dollars * 1e6))
        return tasks

    def keep(self) -> Any:
        """Count and compare; return the canary."""
        catch_up(self.driver.engine)
        self.keeper.run_once()
        with self.driver.engine.connect() as connection:
            agent = connection.scalar(text("SELECT id FROM agents WHERE name = 'Sorter'"))
            return figures.latest(connection, [agent])[agent]


@pytest.fixture
def trial(driver: LifecycleDriver, registry: AgentRegistry, settings: Settings) -> Trial:
    return Trial(driver, registry, settings)


def test_canary_that_fails_more_is_rolled_back_once(
    trial: Trial, registry: AgentRegistry, define: Define, settings: Settings, database: Engine
) -> None:
    trial.end(1, 10)
    trial.end(2, 9, failed=9)
    assert trial.keep()["outcome"] is None, "too few tasks"
    running = trial.driver.run("Sorter", key=trial.units[2][50 % len(trial.units[2])])
    trial.end(2, 1)
    catch_up(database)
    concurrently(*[CanaryKeeper(settings, database).run_once] * 4)
    canary = trial.keep()
    assert (canary["outcome"], canary["share"]) == ("rolled_back", "50%")
    assert canary["figures"]["canary"]["failed"] == 9
    assert "version 2 fail 90.0% of the time, those of version 1 0.0%" in canary["reason"]
    _, row = acts(database)
    assert (row.act, row.actor) == ("canary.roll_back", "orchestrator (system)")
    assert row.after["figures"]["baseline"]["tasks"] == 10
    assert trial.driver.finish(running) == State.SUCCEEDED, "accepted tasks keep their version"
    assert version_of(trial.driver, trial.driver.submit("Sorter", key=trial.units[2][0])) == 1
    # The same text does not bring it back; an alert says so until another version is tried.
    change = define(agent_definition("Sorter", description="Sorts parcels better"))[0]
    assert (change.action, registry.get_agent("Sorter").version) == ("unchanged", 1)
    AlertWatch(settings, database).look()
    sentence = trial.driver.sql("SELECT sentence FROM alerts WHERE rule = 'canary_rolled_back'")
    assert sentence.startswith("The canary of Sorter, version 2, was rolled back. Tasks of version 2 fail 90.0%")


def test_canary_of_a_disabled_agent_is_rolled_back_once_it_is_enabled(trial: Trial, registry: AgentRegistry) -> None:
    trial.end(1, 10)
    trial.end(2, 10, failed=10)
    registry.set_status("Sorter", "disabled")
    assert trial.keep()["outcome"] is None
    registry.set_status("Sorter", "active")
    assert trial.keep()["outcome"] == "rolled_back"
    assert registry.get_agent("Sorter").status == "rolled_back"


def test_bad_canary_of_a_deprecated_agent_does_not_come_back(trial: Trial, registry: AgentRegistry) -> None:
    registry.set_status("Sorter", "deprecated")
    trial.end(1, 10)
    trial.end(2, 10, failed=10)
    assert trial.keep()["outcome"] == "rolled_back"
    better = agent_definition("Sorter", description="Sorts parcels better")
    # A version that is only stored does not lift the hold.
    assert applied(trial.driver.engine, agent_definition("Sorter"), inactive=True) == ["inactive Sorter 3"]
    assert applied(trial.driver.engine, better) == ["unchanged Sorter 2"]


def test_canary_that_costs_more_is_rolled_back(trial: Trial) -> None:
    trial.end(1, 10, dollars=0.01)
    trial.end(2, 5, dollars=0.012)
    trial.end(2, 5, dollars=0.03)
    canary = trial.keep()
    assert (canary["outcome"], canary["figures"]["canary"]["dollars_per_task"]) == (None, 0.021)
    trial.end(1, 10, dollars=0.01)
    trial.end(2, 10, dollars=0.03)
    canary = trial.keep()
    assert canary["outcome"] == "rolled_back"
    assert "costs 0.025500 dollars on average, one of version 1 0.010000; at most 50% more" in canary["reason"]


def test_canary_within_its_bands_goes_on(trial: Trial) -> None:
    trial.end(1, 30, failed=2, dollars=0.01)
    trial.end(2, 30, failed=3, dollars=0.014)
    assert trial.keep()["outcome"] is None


def test_only_new_tasks_count(trial: Trial, driver: LifecycleDriver, registry: AgentRegistry) -> None:
    """Not those that were accepted before the share, replays, or cancelled ones."""
    before = driver.submit("Sorter", key=trial.units[1][0])
    registry.start_canary("Sorter", 2, "60%")
    driver.dispatch()
    driver.claim(before)
    driver.finish(before, state=State.FAILED)
    again = driver.call(replay, before, pinned=True, submitted_by="test")
    driver.again(again.task_id)
    driver.finish(again.task_id, state=State.FAILED)
    driver.call(lifecycle.cancel, driver.submit("Sorter", key=trial.units[1][0]), reason="none")
    assert trial.keep()["figures"]["baseline"]["tasks"] == 0


def test_nothing_is_half_done_when_the_leader_dies_between_decision_and_audit(
    trial: Trial, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.end(1, 10)
    trial.end(2, 10, failed=10)
    catch_up(database)

    def die(connection: Connection, *arguments: Any, **options: Any) -> None:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with monkeypatch.context() as patch:
        patch.setattr(log, "record", die)
        with pytest.raises(OperationalError):
            trial.keeper.run_once()
    assert [each.act for each in acts(database)] == ["canary.start"]
    assert trial.driver.sql("SELECT count(*) FROM canaries WHERE ended_at IS NULL") == 1
    for _ in range(2):
        trial.keep()
    assert [each.act for each in acts(database)] == ["canary.start", "canary.roll_back"]
