"""A task is named by its id, or by a prefix that no other task has."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from shared.tasks import queries
from shared.tasks.queries import MAX_CANDIDATES
from tests.integration.api.test_plans import rows_read

pytestmark = pytest.mark.usefixtures("agents")
A, B, C = (
    UUID("01a20424-7654-711f-9557-1afafc8484f7"),
    UUID("01a20424-7654-7aaa-8000-000000000000"),
    UUID("01b20424-0000-7000-8000-000000000000"),
)


@pytest.fixture
def known(database: Engine, agents: None) -> None:
    """The tasks A and B, of one moment, and C."""
    add(database, *(str(task) for task in (A, B, C)))


def add(database: Engine, *ids: str) -> None:
    with database.begin() as connection:
        for id in ids:
            connection.execute(
                text(
                    "INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, labels) "
                    "SELECT CAST(:id AS uuid), v.name, v.id, '{}', CAST(:id AS uuid), CAST(:id AS uuid), '{}' "
                    "FROM agent_versions v WHERE v.name = 'Echo'"
                ),
                {"id": id},
            )
            connection.execute(
                text("INSERT INTO task_status (task_id, state, capability) VALUES (:id, 'pending', 'echo')"), {"id": id}
            )


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("written", "task"),
    [
        (str(A), A),
        (A.hex, A),
        (str(A).upper(), A),
        (str(A)[:16], A),
        ("01a204247654711", A),
        ("01A20424-7654-7A", B),
        ("01b20424", C),
        ("01b20424-", C),
    ],
)
def test_an_unambiguous_start_names_a_task(client: Client, written: str, task: UUID) -> None:
    assert client.get(written).id == str(task)


@pytest.mark.usefixtures("known")
def test_every_operation_accepts_a_prefix(http: httpx2.Client, client: Client) -> None:
    start = "01b20424"
    for part in ("", "?wait=0.01", "/steps", "/executions", "/tree", "/why"):
        assert http.get(f"/v1/tasks/{start}{part}").status_code == 200, part
    assert http.head(f"/v1/tasks/{start}/events").status_code == 200
    assert [task.id for task in client.tasks(root_id=start)] == [str(C)]
    assert client.counts(root_id=start)["by_state"] == {"pending": 1}
    assert client.diff(start, start).equal
    assert client.signal(start, "s").id == str(C)
    assert client.cancel(start).id == str(C)
    assert client.replay(start).replay_of == str(C)
    assert [task.replay_of for task in client.tasks(replay_of=start)] == [str(C)]
    assert list(client.tasks(parent_id=start)) == []
    for part, sent in (("decisions", {"verdict": "approve", "step": 1}), ("budget", {"stop": True})):
        assert http.post(f"/v1/tasks/{start}/{part}", json=sent).status_code == 409


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("written", ["01a20424", "01a20424-7654", "01a20424-7654-7"])
def test_an_ambiguous_start_is_refused_with_the_candidates(client: Client, written: str) -> None:
    for call in (client.get, client.cancel, lambda id: list(client.tasks(root_id=id))):
        with pytest.raises(errors.AmbiguousId, match="Give more characters") as refused:
            call(written)
        assert refused.value.detail["candidates"] == [str(B), str(A)]
        assert f"{A} (Echo, pending)" in refused.value.message


def test_not_all_candidates_are_listed(client: Client, database: Engine) -> None:
    add(database, *(f"01a20424-0000-7000-8000-{number:012x}" for number in range(MAX_CANDIDATES + 3)))
    with pytest.raises(errors.AmbiguousId, match=r"pending\) and more\.") as refused:
        client.get("01a20424")
    assert len(refused.value.detail["candidates"]) == MAX_CANDIDATES


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("written", "refused"),
    [
        ("01b2042", errors.InvalidInput),
        ("no-id", errors.InvalidInput),
        ("@last", errors.InvalidInput),
        ("01b20424x", errors.InvalidInput),
        (f"{C}0", errors.InvalidInput),
        ("01c20424", errors.NotFound),
    ],
)
def test_prefix_of_no_task_is_refused(client: Client, written: str, refused: Any) -> None:
    with pytest.raises(refused, match=r"is not the id of a task: it must be a whole id|no task whose id begins with"):
        client.get(written)


def test_a_start_needs_the_key(http_api: Any, http: httpx2.Client) -> None:
    with httpx2.Client(base_url=http_api.url, trust_env=False) as stranger:
        assert stranger.get("/v1/tasks/01b20424").status_code == 401


def test_looking_for_a_start_reads_its_candidates(database: Engine) -> None:
    add(database, *(f"01a2{number:04x}-0000-7000-8000-000000000000" for number in range(3000)))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE tasks, task_status"))
    with database.connect() as connection:
        assert rows_read(connection, lambda: queries.find_task(connection, "01a20bb7")) < 100
