"""API keys: created, used, rotated, revoked; and refused in every other case."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from sqlalchemy import Engine, event, text

from minions import Client, errors
from orchestrator.api.app import create_app
from orchestrator.local.embedded import EmbeddedServers
from shared.access import key_text
from shared.access.roles import Role
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.api.conftest import Api, Run, serving
from tests.integration.conftest import Tasks, everything_written
from tests.support.processes import wait_until

Open = Callable[[str], httpx2.Client]


@pytest.fixture
def with_key(http_api: Api, database: Engine) -> Iterator[Open]:
    """HTTP with another key than the administrator's."""
    with ExitStack() as stack:

        def make(key: str) -> httpx2.Client:
            return stack.enter_context(replace(http_api, key=key).http())

        yield make


def refusal(response: httpx2.Response) -> str:
    """The text of a 401."""
    assert response.status_code == 401, response.text
    assert response.headers["www-authenticate"].startswith("Bearer")
    return str(response.json()["detail"])


def change(database: Engine, assignment: str) -> None:
    """Change all keys behind the API's back."""
    with database.begin() as connection:
        connection.execute(text(f"UPDATE api_keys SET {assignment}"))


# ------------------------------------------------------------------------------------------------------ life of a key


def test_key_is_shown_once_and_stored_as_a_hash(
    client: Client, with_key: Open, database: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    created = client.create_api_key("ci", "submitter")
    key = created["key"]
    assert key_text.is_well_formed(key)
    assert created["prefix"] == key[:9]
    assert with_key(key).get("/v1/tasks").status_code == 200
    listed = [
        *client.api_keys(),
        client.api_key("ci"),
        client.api_key(created["prefix"]),
        client.api_key(created["id"]),
    ]
    assert {each["id"] for each in listed} == {created["id"]}
    assert all("key" not in each and "hash" not in each for each in listed)
    assert key[9:] not in everything_written(database, capsys)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": "", "role": "viewer"}, "name"),
        ({"name": "mk_abcdef", "role": "viewer"}, "name"),
        ({"name": "a b", "role": "viewer"}, "name"),
        ({"name": "a\n", "role": "viewer"}, "name"),
        ({"name": "a" * 101, "role": "viewer"}, "name"),
        ({"name": "01a1c9a4-6d3e-7c52-9b1f-2f8d5e0c7a41", "role": "viewer"}, "name"),
        ({"name": "a", "role": "root"}, "role"),
        ({"name": "a"}, "role"),
        ({"name": "a", "role": "viewer", "expires_in": 0}, "expires_in"),
        ({"name": "a", "role": "viewer", "expires_in": 1e12}, "expires_in"),
        ({"name": "a", "role": "viewer", "payloads": "yes"}, "payloads"),
        ({"name": "a", "role": "viewer", "tenant": ""}, "tenant"),
        ({"name": "a", "role": "viewer", "agents": [""]}, "agents"),
        ({"name": "a", "role": "viewer", "scopes": []}, "scopes"),
    ],
)
def test_wrong_field_is_named(http: httpx2.Client, fields: dict[str, Any], wrong: str) -> None:
    refused = http.post("/v1/keys", json=fields)
    assert refused.status_code == 422
    assert wrong in refused.json()["detail"]


def test_name_is_free_again_after_a_revocation(client: Client) -> None:
    first = client.create_api_key("ci", "viewer")
    with pytest.raises(errors.Conflict, match="minion keys rotate ci"):
        client.create_api_key("ci", "viewer")
    client.revoke_api_key("ci")
    assert client.create_api_key("ci", "viewer")["id"] != first["id"]
    assert [key["status"] for key in client.api_keys(revoked=True)] == ["revoked", "active"]
    assert [key["status"] for key in client.api_keys()] == ["active"]


def test_names_of_namespaces_are_apart(client: Client) -> None:
    client.create_api_key("ci", "viewer", namespace="a")
    client.create_api_key("ci", "viewer", namespace="b")
    with pytest.raises(errors.AmbiguousId) as ambiguous:
        client.revoke_api_key("ci")
    assert len(ambiguous.value.detail["candidates"]) == 2
    client.revoke_api_key(ambiguous.value.detail["candidates"][0])
    assert client.revoke_api_key("ci")["status"] == "revoked"


def test_leaked_text_can_be_revoked_and_is_not_repeated(client: Client, http: httpx2.Client) -> None:
    first = client.create_api_key("ci", "viewer")["key"]
    second = client.rotate_api_key("ci")["key"]
    for leaked in (first, second):
        assert http.get(f"/v1/keys/{leaked}").json()["name"] == "ci"
    unknown = key_text.generate()
    refused = http.delete(f"/v1/keys/{unknown}")
    assert refused.status_code == 404
    assert unknown[9:] not in refused.text
    with patch.object(client._transport, "delete", wraps=client._transport.delete) as sent:
        assert client.revoke_api_key(first)["status"] == "revoked"
    sent.assert_called_once_with(f"/v1/keys/{first[:9]}")


def test_rotation_overlaps_once(client: Client, with_key: Open, database: Engine, http_api: Api) -> None:
    first = client.create_api_key("ci", "viewer")["key"]
    second = client.rotate_api_key("ci", overlap=timedelta(hours=1))["key"]
    assert with_key(first).get("/v1/tasks").status_code == with_key(second).get("/v1/tasks").status_code == 200
    shown = client.api_key("ci")
    assert (shown["prefix"], shown["previous_prefix"]) == (second[:9], first[:9])
    assert shown["previous_used_at"]
    assert shown["last_used_at"]
    change(database, "previous_until = now() - interval '1 s'")
    http_api.app.state.keys.forget()
    assert "was replaced by a rotation" in refusal(with_key(first).get("/v1/tasks"))
    third = client.rotate_api_key("ci", overlap=timedelta(hours=1))["key"]
    assert "wrong one" in refusal(with_key(first).get("/v1/tasks"))
    assert with_key(second).get("/v1/tasks").status_code == with_key(third).get("/v1/tasks").status_code == 200


def test_expired_key_can_be_rotated_but_its_text_stays_expired(
    client: Client, with_key: Open, database: Engine
) -> None:
    first = client.create_api_key("ci", "viewer", expires_in=3600)["key"]
    change(database, "expires_at = now() - interval '1 s'")
    with pytest.raises(errors.Conflict, match="expires_in"):
        client.rotate_api_key("ci")
    second = client.rotate_api_key("ci", expires_in=3600)["key"]
    assert with_key(second).get("/v1/tasks").status_code == 200
    assert "was replaced" in refusal(with_key(first).get("/v1/tasks"))


def test_revoked_key_cannot_be_rotated(client: Client) -> None:
    client.create_api_key("ci", "viewer")
    assert client.revoke_api_key("ci")["revoked_by"].startswith("api:")
    assert client.revoke_api_key("ci")["status"] == "revoked"
    with pytest.raises(errors.Conflict, match="was revoked"):
        client.rotate_api_key("ci")
    with pytest.raises(errors.NotFound, match="There is no key 'other'"):
        client.revoke_api_key("other")


def test_use_is_written_once_a_minute(client: Client, with_key: Open, database: Engine, http_api: Api) -> None:
    key = client.create_api_key("ci", "viewer")["key"]
    assert client.api_key("ci")["last_used_at"] is None
    used = []
    for earlier in (None, "30 s", "61 s"):
        if earlier:
            change(database, f"last_used_at = last_used_at - interval '{earlier}'")
        before = client.api_key("ci")["last_used_at"]
        http_api.app.state.keys.forget()
        with_key(key).get("/v1/tasks")
        used.append(client.api_key("ci")["last_used_at"] != before)
    assert used == [True, False, True]


def test_busy_key_costs_no_statement(client: Client, with_key: Open, http_api: Api) -> None:
    """Within a second of its first use, a key is known."""
    http = with_key(client.create_api_key("ci", "viewer")["key"])
    seen: list[str] = []

    def remember(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append(statement)

    engine = http_api.app.state.engine
    event.listen(engine, "before_cursor_execute", remember)
    try:
        with patch("orchestrator.api.key_cache.SECONDS", 3600.0):
            for _ in range(5):
                assert http.get("/v1/limits").status_code == 200
    finally:
        event.remove(engine, "before_cursor_execute", remember)
        http_api.app.state.keys.forget()
    assert len([statement for statement in seen if "api_keys" in statement]) == 1
    assert len([statement for statement in seen if "FROM limits" in statement]) == 5


# ------------------------------------------------------------------------------------------------------- revocation


@pytest.fixture
def other_process(settings: Settings, database: Engine) -> Iterator[str]:
    """Another orchestrator's API; the value is its address."""
    with serving(create_app(settings)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("notified", [True, False])
def test_revocation_holds_in_every_process(client: Client, other_process: str, notified: bool) -> None:
    key = client.create_api_key("ci", "viewer")["key"]
    with httpx2.Client(base_url=other_process, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        assert http.get("/v1/tasks").status_code == 200
        with ExitStack() as stack:
            if not notified:
                stack.enter_context(patch("orchestrator.api.keys.publish_keys_changed"))
            client.revoke_api_key("ci")
        wait_until(lambda: http.get("/v1/tasks").status_code == 401, "the other process refuses the key", 10)
        assert "'ci' was revoked at" in refusal(http.get("/v1/tasks"))


def test_revocation_holds_in_every_process_while_redis_is_down(
    client: Client, other_process: str, servers: EmbeddedServers
) -> None:
    keys = {name: client.create_api_key(name, "viewer")["key"] for name in ("good", "leaked")}
    used = {
        name: httpx2.Client(base_url=other_process, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        for name, key in keys.items()
    }
    with used["good"] as good, used["leaked"] as leaked:
        assert good.get("/v1/tasks").status_code == leaked.get("/v1/tasks").status_code == 200
        servers.valkey.kill()
        try:
            assert client.revoke_api_key("leaked")["status"] == "revoked"
            wait_until(lambda: leaked.get("/v1/tasks").status_code == 401, "the other process refuses the key", 10)
            assert good.get("/v1/tasks").status_code == 200
        finally:
            servers.valkey.start()


def test_notification_makes_another_process_forget(client: Client, other_process: str) -> None:
    key = client.create_api_key("ci", "viewer")["key"]
    with (
        patch("orchestrator.api.key_cache.SECONDS", 3600.0),
        httpx2.Client(base_url=other_process, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http,
    ):
        assert http.get("/v1/tasks").status_code == 200
        client.revoke_api_key("ci")
        wait_until(lambda: http.get("/v1/tasks").status_code == 401, "the other process is notified", 10)


@pytest.mark.usefixtures("agents")
def test_revocation_ends_a_wait_and_a_stream(client: Client, with_key: Open, http_api: Api) -> None:
    task = client.submit("Echo", {}).id
    http = with_key(client.create_api_key("ci", "viewer")["key"])
    waited: list[httpx2.Response] = []
    waiting = threading.Thread(target=lambda: waited.append(http.get(f"/v1/tasks/{task}", params={"wait": 30})))
    waiting.start()
    with http.stream("GET", f"/v1/tasks/{task}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 1000"
        wait_until(lambda: http_api.app.state.finish_watch._expected, "it waits")
        client.revoke_api_key("ci")
        for _ in lines:
            pass
    waiting.join(20)
    refusal(waited[0])


# ----------------------------------------------------------------------------------------------------------- bad keys


def test_refused_keys_are_distinguished_where_that_reveals_nothing(
    client: Client, with_key: Open, database: Engine
) -> None:
    texts = {}
    for name in ("expired", "revoked"):
        texts[name] = client.create_api_key(name, "viewer")["key"]
    with database.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 h' WHERE name = 'expired'"))
    client.revoke_api_key("revoked")
    assert "The API key 'expired' expired at" in refusal(with_key(texts["expired"]).get("/v1/tasks"))
    assert "The API key 'revoked' was revoked at" in refusal(with_key(texts["revoked"]).get("/v1/tasks"))
    assert "mistyped or not complete" in refusal(with_key(texts["revoked"][:-1]).get("/v1/tasks"))
    foreign = refusal(with_key(key_text.generate()).get("/v1/tasks"))
    assert (
        foreign
        == refusal(with_key("another-key").get("/v1/tasks"))
        == "No API key, or a wrong one: send " + ("`Authorization: Bearer KEY`.")
    )


def test_challenge_is_that_of_oauth(http: httpx2.Client, client: Client, with_key: Open) -> None:
    challenges = {
        shown: http.get("/v1/tasks", headers={"Authorization": shown}).headers["www-authenticate"]
        for shown in ("", "Bearer wrong", "Basic wrong")
    }
    invalid = 'Bearer error="invalid_token"'
    assert challenges == {"": "Bearer", "Bearer wrong": invalid, "Basic wrong": invalid}
    viewer = with_key(client.create_api_key("v", "viewer")["key"])
    refused = viewer.post("/v1/tasks", json={})
    assert refused.status_code == 403
    assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="tasks:submit"'
    problem = refused.json()
    assert (problem["code"], problem["permission"]) == ("forbidden", "tasks:submit")
    assert problem["roles"] == ["submitter", "author", "admin"]
    assert "(role viewer) lacks the permission tasks:submit" in problem["detail"]


@pytest.mark.parametrize("size", [60_000, 1 << 20, 20 << 20])
def test_huge_header_is_refused(http_api: Api, database: Engine, size: int) -> None:
    with httpx2.Client(base_url=http_api.url, trust_env=False, timeout=60) as http:
        for key in ("mk_" + "A" * size, "x" * size):
            response = http.get("/v1/tasks", headers={"Authorization": f"Bearer {key}"})
            expected = (401, "unauthorized") if size < 1 << 16 else (431, "headers_too_large")
            assert (response.status_code, response.json()["code"]) == expected
        assert http.get("/healthz").status_code == 200


@pytest.fixture(params=[-1, 1])
def wrong_clock(request: pytest.FixtureRequest) -> Iterator[None]:
    """This process, without PostgreSQL, is an hour behind or ahead."""
    wrong = timedelta(hours=request.param)
    now = time.time

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + wrong

    with ExitStack() as stack:
        stack.enter_context(patch("time.time", lambda: now() + wrong.total_seconds()))
        for name, module in list(sys.modules.items()):
            if name.startswith(("shared.", "orchestrator.")) and vars(module).get("datetime") is datetime:
                stack.enter_context(patch.object(module, "datetime", Wrong))
        yield


def test_clock_of_the_process_does_not_matter(
    client: Client, with_key: Open, database: Engine, wrong_clock: None
) -> None:
    good = with_key(client.create_api_key("good", "viewer", expires_in=1800)["key"])
    over = client.create_api_key("over", "viewer", expires_in=1800)["key"]
    with database.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'over'"))
    assert good.get("/v1/tasks").status_code == 200
    assert "expired at" in refusal(with_key(over).get("/v1/tasks"))


def test_key_ends_at_its_expiry_though_it_is_remembered(client: Client, with_key: Open) -> None:
    created = client.create_api_key("short", "viewer", expires_in=2)
    http = with_key(created["key"])
    with patch("orchestrator.api.key_cache.SECONDS", 3600.0):
        wait_until(lambda: http.get("/v1/tasks").status_code == 401, "the key expires", 20)
    assert datetime.now(UTC) >= datetime.fromisoformat(created["expires_at"])


def test_key_that_cannot_be_looked_up_is_not_refused(
    client: Client, with_key: Open, servers: EmbeddedServers, http_api: Api
) -> None:
    http = with_key(client.create_api_key("ci", "viewer")["key"])
    servers.postgres.kill()
    try:
        http_api.app.state.keys.forget()
        response = http.get("/v1/tasks")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["code"] == "unavailable"
    finally:
        servers.postgres.start()
    assert http.get("/v1/tasks").status_code == 200


def test_flood_of_wrong_keys_takes_little_memory(with_key: Open, http_api: Api) -> None:
    with patch("orchestrator.api.key_cache.MOST", 50), patch("orchestrator.api.quotas.FAILURES", 10_000):
        http = with_key("none")
        for _ in range(200):
            refusal(http.get("/v1/tasks", headers={"Authorization": f"Bearer {key_text.generate()}"}))
    assert len(http_api.app.state.keys._found) <= 50
    assert not http_api.app.state.keys._looking


# ---------------------------------------------------------------------------------------------------- administrators


def test_bound_administrator_stays_within_its_bounds(client: Client, http_api: Api) -> None:
    client.create_api_key("theirs", "viewer", namespace="theirs")
    client.create_api_key("whole", "viewer")
    with Client(http_api.url, client.create_api_key("boss", "admin", namespace="ours")["key"], retries=0) as boss:
        assert [key["name"] for key in boss.api_keys()] == ["boss"]
        mine = boss.create_api_key("mine", "admin")
        assert mine["namespace"] == "ours"
        assert mine["created_by"].startswith("boss mk_")
        with pytest.raises(errors.Forbidden, match="bound to the namespace 'ours'"):
            boss.create_api_key("more", "viewer", namespace="theirs")
        for act in (boss.api_key, boss.rotate_api_key, boss.revoke_api_key):
            for foreign in ("theirs", "whole"):
                with pytest.raises(errors.NotFound) as foreign_error:
                    act(foreign)
                with pytest.raises(errors.NotFound) as unknown:
                    act("nothing")
                assert foreign_error.value.message == unknown.value.message.replace("nothing", foreign)


def test_administrator_cannot_grant_what_it_lacks(client: Client, http_api: Api) -> None:
    client.create_api_key("seeing", "viewer", payloads=True)
    with Client(http_api.url, client.create_api_key("blind", "admin", payloads=False)["key"], retries=0) as blind:
        for act in (
            lambda: blind.create_api_key("more", "viewer", payloads=True),
            lambda: blind.rotate_api_key("seeing"),
        ):
            with pytest.raises(errors.Forbidden, match="payloads:read"):
                act()
        blind.create_api_key("less", "viewer")
        assert blind.revoke_api_key("seeing")["status"] == "revoked"


def test_acts_of_a_named_key_are_recorded_as_proven_and_claimed(
    client: Client, http_api: Api, agents: None, tasks: Tasks, define: Define
) -> None:
    created = client.create_api_key("ops", "admin")
    with Client(http_api.url, created["key"], actor="Ann") as ops:
        task = ops.submit("Echo", {})
        assert task.submitted_by == f"ops {created['prefix']}"
        paused = ops.pause("agent", "Echo")
        assert paused["created_by"] == f"ops {created['prefix']} (claims to be Ann)"
        ops.cancel(task)
        assert ops.replay(task).submitted_by == f"ops {created['prefix']} (claims to be Ann)"


# ----------------------------------------------------------------------------------------------------- command line


def test_keys_on_the_command_line(run_cli: Run, with_key: Open) -> None:
    assert "No keys but the administrator's" in run_cli("keys").err
    created = run_cli("keys", "create", "ci", "--role", "submitter", "--namespace", "team", "--tenant", "acme:*")
    key = created.out.strip()
    assert key_text.is_well_formed(key)
    assert "bound to namespace team, tenant acme:*" in created.err
    listed = run_cli("keys", "list").out
    assert "ci" in listed
    assert key[:9] in listed
    assert key not in listed
    second = run_cli("keys", "rotate", "ci", "--overlap", "0s").out.strip()
    assert key_text.is_well_formed(second)
    refusal(with_key(key).get("/v1/tasks"))
    assert run_cli("keys", "revoke", "ci").out == f"ci ({second[:9]}…) is revoked.\n"
    assert run_cli("keys", "revoke", "other").code == 66
    assert json.loads(run_cli("keys", "list", "--all", "--json").out)[0]["status"] == "revoked"
    assert run_cli("keys", "create", "x", "--role", "king").code == 2
    assert run_cli("keys", "create", "x", "--role", "viewer", "--expires", "soon").code == 2


def test_roles_are_printed_for_every_endpoint(run_cli: Run, http_api: Api) -> None:
    rows = json.loads(run_cli("keys", "roles", "--json").out)
    assert all(set(row["roles"]) <= set(Role) and row["roles"] for row in rows)
    table = run_cli("keys", "roles").out
    assert all(row["endpoint"] in table for row in rows)
