"""Lists stay cheap on a large table: what the planner does with 50,000 tasks."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text

from orchestrator.api.webhooks import DELIVERIES
from orchestrator.observe import costs, evaluations
from orchestrator.observe.stats import Question, values_of
from orchestrator.webhooks.deliverer import TAKE
from shared.database.connections import get_engine
from shared.errors import NotFound
from shared.settings import Settings
from shared.tasks import queries
from shared.tasks.queries import TaskFilter
from shared.tasks.states import State
from shared.tasks.submission import KEYS_IN_USE

TASKS = 50_000
SOME = UUID("01900000-0000-7000-8000-000000000001")

FILL = [
    "SET LOCAL session_replication_role = replica",  # rows in any state, as if they had got there
    f"""
    WITH made AS (
        INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, labels)
        SELECT i.id, v.name, v.id, '{{}}', i.id, i.id, '{{}}'
            FROM (SELECT n, minion_uuidv7() AS id FROM generate_series(1, {TASKS}) n) i
            JOIN agent_versions v ON v.name = CASE WHEN i.n % 1000 = 0 THEN 'Search' ELSE 'Echo' END
        RETURNING id
    )
    INSERT INTO task_status (task_id, state, capability)
        SELECT id, CASE WHEN right(id::text, 2) = '00' THEN 'failed' ELSE 'succeeded' END, 'echo' FROM made
    """,
]


@pytest.fixture
def large(settings: Settings, request: pytest.FixtureRequest) -> Engine:
    """50,000 tasks, which the tests only read: those of the test before, if there was no other in between."""
    with get_engine().connect() as connection:
        if connection.scalar(text("SELECT count(*) FROM tasks")) == TASKS:
            return get_engine()
    database: Engine = request.getfixturevalue("database")
    request.getfixturevalue("agents")
    with database.begin() as connection:
        for statement in FILL:
            connection.execute(text(statement))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE tasks, task_status"))
    return database


def rows_read(connection: Connection, call: Any) -> int:
    """Return how many rows the plan of the first statement of `call` touches, by EXPLAIN ANALYZE."""
    seen: list[tuple[str, Any]] = []

    def remember(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", remember)
    call()
    event.remove(connection, "before_cursor_execute", remember)
    statement, parameters = seen[0]
    explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar()
    return _read([explained[0]["Plan"]])


def _read(plans: list[dict[str, Any]]) -> int:
    return sum(
        (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
        + _read(plan.get("Plans", []))
        for plan in plans
    )


@pytest.mark.parametrize(
    "chosen",
    [
        TaskFilter(),
        TaskFilter(states=(State.FAILED,)),
        TaskFilter(states=(State.CANCELLED,)),
        TaskFilter(agent="Search"),
        TaskFilter(agent="Nobody"),
        TaskFilter(root_id=SOME),
        TaskFilter(parent_id=SOME),
        TaskFilter(replay_of=SOME),
        TaskFilter(conversation_id="c"),
        TaskFilter(created_after=datetime(2100, 1, 1, tzinfo=UTC)),
        TaskFilter(created_before=datetime(2000, 1, 1, tzinfo=UTC)),
    ],
    ids=str,
)
def test_a_page_reads_about_a_page(large: Engine, chosen: TaskFilter) -> None:
    with large.connect() as connection:
        read = rows_read(connection, lambda: queries.list_tasks(connection, chosen, limit=20))
    assert read < 2000


def test_costs_of_tools_read_only_subtasks(large: Engine) -> None:
    question = Question(since=datetime.now(UTC) - timedelta(days=1), until=datetime.now(UTC))
    ids = {"first": UUID(int=0), "after": UUID(int=2**128 - 1), "most": 10_001}
    with large.connect() as connection:
        connection.execute(costs.SETTINGS)
        read = rows_read(connection, lambda: connection.execute(costs.SUBTASKS, {**values_of(question), **ids}))
    assert read < 100


@pytest.mark.parametrize(
    "chosen",
    [
        TaskFilter(labels={"env": "none"}),
        TaskFilter(key="none"),
        TaskFilter(capability="none"),
        TaskFilter(namespace="none"),
        TaskFilter(states=(State.SUCCEEDED, State.PENDING), key="none"),
        TaskFilter(agent="Echo", states=(State.CANCELLED,)),
        TaskFilter(agent="Echo", labels={"env": "none"}),
    ],
    ids=str,
)
def test_a_search_that_finds_nothing_reads_a_bounded_number(large: Engine, chosen: TaskFilter) -> None:
    with large.connect() as connection, patch.object(queries, "MOST_SEARCHED", 1000):
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # as for the pages
        read = rows_read(connection, lambda: queries.search_tasks(connection, chosen, limit=20))
        found = queries.search_tasks(connection, chosen, limit=20)
    assert read < 10_000
    assert found.items == []
    assert found.is_cut


def test_a_search_of_several_states_reads_only_these(large: Engine) -> None:
    chosen = TaskFilter(states=(State.CANCELLED, State.EXPIRED))
    with large.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        assert rows_read(connection, lambda: queries.search_tasks(connection, chosen, limit=20)) < 100
        assert rows_read(connection, lambda: queries.search_oldest(connection, chosen, limit=20)) < 100
        assert rows_read(connection, lambda: queries.count_searched(connection, chosen)) < 100


def test_searches_of_the_oldest_find_everything_in_bounded_stretches(large: Engine) -> None:
    chosen, seen, after = TaskFilter(agent="Search"), [], None
    with large.connect() as connection, patch.object(queries, "MOST_SEARCHED", 7):
        while (stretch := queries.search_oldest(connection, chosen, limit=5, after=after)).until is not None:
            seen += stretch.found
            after = stretch.until
        whole = queries.list_oldest(connection, chosen, limit=1000)
    with large.connect() as connection:
        by_state, more = queries.count_searched(connection, chosen)
    assert seen == [task["id"] for task in whole.items]
    assert (sum(by_state.values()), more) == (len(seen), False)
    none = TaskFilter(key="none", created_after=datetime(2000, 1, 1, tzinfo=UTC))
    with large.connect() as connection, patch.object(queries, "MOST_SEARCHED", 1000):
        assert rows_read(connection, lambda: queries.search_oldest(connection, none, limit=5)) < 8000


def test_searches_that_continue_find_everything(large: Engine) -> None:
    chosen, seen, cursor = TaskFilter(agent="Search"), [], None
    with large.connect() as connection, patch.object(queries, "MOST_SEARCHED", 7):
        while True:
            found = queries.search_tasks(connection, chosen, limit=5, before=cursor)
            seen += [task["id"] for task in found.items]
            if found.next is None:
                break
            cursor = UUID(found.next)
        whole = queries.list_tasks(connection, chosen, limit=1000)
    assert seen == [task["id"] for task in whole.items]


def test_count_stops_at_its_limit(large: Engine) -> None:
    with large.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        for chosen in (TaskFilter(), TaskFilter(states=(State.SUCCEEDED,))):
            assert rows_read(connection, lambda each=chosen: queries.count_up_to(connection, each, 100)) < 1000
            assert queries.count_up_to(connection, chosen, 100) == 100
        assert queries.count_up_to(connection, TaskFilter(key="none"), 100) is None


def test_a_page_far_down_costs_the_same(large: Engine) -> None:
    with large.connect() as connection:
        middle = connection.scalar(text(f"SELECT id FROM tasks ORDER BY id OFFSET {TASKS // 2} LIMIT 1"))
        read = rows_read(connection, lambda: queries.list_tasks(connection, TaskFilter(), limit=20, before=middle))
    assert read < 2000


def test_a_tree_reads_the_tree(large: Engine) -> None:
    with large.connect() as connection:
        root = connection.scalar(text("SELECT max(id::text)::uuid FROM tasks"))
        assert rows_read(connection, lambda: queries.list_tree(connection, root, limit=20)) < 100
        counting = rows_read(connection, lambda: queries.count_tasks(connection, TaskFilter(root_id=root)))
    assert counting < 100


def test_query_of_ended_tasks_reads_only_those(large: Engine) -> None:
    with large.connect() as connection:
        some = list(connection.scalars(text("SELECT id FROM tasks ORDER BY id LIMIT 50")))
        assert rows_read(connection, lambda: queries.ended(connection, some)) < 1000


def test_query_of_used_keys_reads_only_those(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text(
                "INSERT INTO idempotency_keys (namespace, key, task_id, request) "
                f"SELECT 'default', 'k' || n, gen_random_uuid(), '{{}}' FROM generate_series(1, {TASKS}) n"
            )
        )
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE idempotency_keys"))
    asking = {"namespaces": ["default"] * 50, "keys": [f"k{n}" for n in range(50)]}
    with database.connect() as connection:
        assert rows_read(connection, lambda: connection.execute(KEYS_IN_USE, asking)) < 500


# ---------------------------------------------------------------------------------------------------- webhooks


@pytest.fixture
def owed(database: Engine) -> Engine:
    """Three webhooks with 20,000 deliveries each: of a disabled one all are due, of the others three."""
    fill = [
        "SET LOCAL session_replication_role = replica",
        "INSERT INTO webhooks (name, url, secret, enabled) SELECT n, 'http://x', 's', n <> 'off' "
        "FROM unnest('{a,b,off}'::text[]) n",
        "INSERT INTO webhook_deliveries (webhook_id, task_id, state, status, next_at) SELECT w.id, minion_uuidv7(), "
        "'failed', CASE WHEN n % 2 = 0 AND n > 6 THEN 'delivered' ELSE 'pending' END, "
        "CASE WHEN n <= 3 OR w.name = 'off' THEN now() - interval '1 s' ELSE now() + n * interval '1 hour' END "
        "FROM webhooks w, generate_series(1, 20000) n",
    ]
    with database.begin() as connection:
        for statement in fill:
            connection.execute(text(statement))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE webhooks, webhook_deliveries"))
    return database


def test_claiming_deliveries_reads_only_due_ones(owed: Engine) -> None:
    values = {"busy": [], "counts": [], "per_webhook": 4, "most": 16, "lease": timedelta(seconds=60)}
    with owed.begin() as connection:
        read = rows_read(connection, lambda: connection.execute(TAKE, {**values, "most": 0}))
        assert read < 200
        assert connection.execute(TAKE, values).rowcount == 6


@pytest.mark.parametrize("status", [None, "pending", "delivered"])
def test_a_page_of_deliveries_reads_about_a_page(owed: Engine, status: str | None) -> None:
    with owed.connect() as connection:
        webhook = connection.scalar(text("SELECT id FROM webhooks WHERE name = 'a'"))
        values = {"webhook": webhook, "status": status, "before": None, "most": 21}
        assert rows_read(connection, lambda: connection.execute(DELIVERIES, values)) < 200


def test_a_wait_for_many_tasks_reads_these(large: Engine) -> None:
    with large.connect() as connection:
        newest = "SELECT id FROM tasks WHERE agent_name = 'Echo' ORDER BY id DESC LIMIT 1000"
        tasks = list(connection.scalars(text(newest)))
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        ended = "INSERT INTO task_outcomes (task_id, state) SELECT id, 'succeeded' FROM tasks"
        connection.execute(text(ended))
        connection.execute(text("ANALYZE task_outcomes"))
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # 1,000 of so few are read in a row
        assert rows_read(connection, lambda: queries.states_of(connection, tasks)) < 10_000
        tenants = TaskFilter(tenant="none")
        assert rows_read(connection, lambda: suppressed(queries.states_of, connection, tasks, within=tenants)) < 10_000
        assert rows_read(connection, lambda: queries.load_ended(connection, tasks)) < 30_000
        assert len(queries.load_ended(connection, tasks)) == 1000


def suppressed(query: Any, *arguments: Any, **options: Any) -> None:
    with suppress(NotFound):
        query(*arguments, **options)


def test_reasons_of_missing_scores_are_read_by_index(large: Engine) -> None:
    with large.connect() as connection, connection.begin() as transaction:
        connection.execute(
            text(
                "INSERT INTO evaluations (task_id, evaluator, agent_version_id, state, score) "
                "SELECT id, 'Judge', agent_version_id, CASE WHEN n % 9973 = 0 THEN 'failed' ELSE 'scored' END, "
                "CASE WHEN n % 9973 = 0 THEN NULL ELSE 1 END FROM (SELECT *, row_number() OVER () AS n FROM tasks) t"
            )
        )
        connection.execute(text("ANALYZE evaluations"))
        version = connection.scalar(text("SELECT id FROM agent_versions WHERE name = 'Echo'"))
        assert rows_read(connection, lambda: evaluations.unscored_of(connection, [version])) < 50
        assert evaluations.unscored_of(connection, [version])[version]["Judge"]["failed"] > 0
        transaction.rollback()
