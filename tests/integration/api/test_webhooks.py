"""Webhooks over HTTP, with the client and on the command line."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from minions import Client, errors
from orchestrator.api.app import create_app
from orchestrator.cli import app as commands
from shared.database.connections import autocommit, be_patient
from shared.settings import Settings, get_settings
from shared.tasks import lifecycle
from tests.support.processes import wait_until
from tests.support.webhook_receiver import SECRET, receiving

from .conftest import Api, serving

pytestmark = pytest.mark.usefixtures("agents")

URL = "https://93.184.215.14/hook"
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%webhooks%'")


@pytest.fixture
def local_client(settings: Settings, database: Engine) -> Iterator[Client]:
    """A client of an API whose operator allows endpoints on this machine."""
    allowing = settings.model_copy(update={"allow_private_addresses": ["127.0.0.1"]})
    with (
        serving(create_app(allowing)) as port,
        Client(f"http://127.0.0.1:{port}", settings.require_api_key()) as client,
    ):
        yield client


def owe(database: Engine, client: Client, number: int = 1) -> list[str]:
    """End tasks; return the ids of the deliveries that are due, newest first."""
    tasks = [client.submit("Echo").id for _ in range(number)]
    for task in tasks:
        with database.begin() as connection:
            lifecycle.cancel(connection, UUID(task), reason="Enough.")
    with database.connect() as connection:
        return [str(id) for id in connection.scalars(text("SELECT id FROM webhook_deliveries ORDER BY id DESC"))]


def stored(database: Engine, columns: str) -> tuple[Any, ...]:
    with database.connect() as connection:
        return tuple(connection.execute(text(f"SELECT {columns} FROM webhooks")).one())


# ---------------------------------------------------------------------------------------------------- webhooks


def test_a_webhook_is_added_and_its_secret_shown_once(client: Client, http: httpx2.Client, database: Engine) -> None:
    added = client.add_webhook("hook", URL, states=["failed"], agents=["Echo"], labels={"a": "b"}, roots_only=False)
    secret = added.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert stored(database, "secret") == (secret,)
    assert added == client.webhook("hook") == next(client.webhooks())
    del added["created_at"]
    assert added == {
        "name": "hook",
        "namespace": "default",
        "url": URL,
        "events": ["tasks"],
        "states": ["failed"],
        "agents": ["Echo"],
        "labels": {"a": "b"},
        "roots_only": False,
        "enabled": True,
        "disabled_reason": None,
        "pending": 0,
        "rotated_at": None,
    }
    client.change_webhook("hook", enabled=False)
    for path in ("", "/hook", "/hook/deliveries"):
        assert secret not in http.get(f"/v1/webhooks{path}").text


def test_audit_row_of_a_change_has_only_that_change(client: Client, database: Engine) -> None:
    """Two people change a webhook at the same time."""
    client.add_webhook("hook", URL)
    with ThreadPoolExecutor(1) as thread, database.connect() as other:
        be_patient(other)
        other.execute(text("UPDATE webhooks SET enabled = false"))
        changing = thread.submit(client.change_webhook, "hook", roots_only=False)
        # In a transaction, PostgreSQL repeats the activity that the first look found.
        with autocommit(database).connect() as watching:
            wait_until(lambda: watching.scalar(BLOCKED), "the second change waits for the first")
        other.commit()
        changing.result()
    [row] = client.audit(act="webhook.change")
    assert (row["before"], row["after"]) == ({"roots_only": True}, {"roots_only": False})


def test_a_secret_of_ones_own(client: Client, http: httpx2.Client) -> None:
    assert client.add_webhook("hook", URL, secret=SECRET)["secret"] == SECRET


@pytest.mark.parametrize(
    "secret", ["sesame", "whsec_", "whsec_sesame", "whsec_" + "QUJD" * 7, "whsec_" + "QUJD" * 22, SECRET[6:], 5]
)
def test_a_wrong_secret_is_not_repeated(http: httpx2.Client, secret: Any) -> None:
    answer = http.post("/v1/webhooks", json={"name": "hook", "url": URL, "secret": secret})
    assert answer.status_code == 422
    assert "secret" in answer.json()["detail"]
    assert str(secret) == "5" or str(secret).removeprefix("whsec_")[:6] not in answer.text or secret == "whsec_"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "ftp://example.com"}, "must begin with http"),
        ({"url": "https://user:sesame@example.com/"}, "remove them"),
        ({"url": "http://127.0.0.1:8700/v1/tasks"}, "MINION_ALLOW_PRIVATE_ADDRESSES"),
        ({"url": "http://0x7f.1/"}, "MINION_ALLOW_PRIVATE_ADDRESSES"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "not a public address"),
        ({"url": ""}, "url"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"states": ["running"]}, "states.0"),
        ({"states": "failed"}, "states"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"agents": ["\x00"]}, "U+0000"),
        ({"every": True}, "every"),
    ],
)
def test_invalid_webhooks_are_refused(
    http: httpx2.Client, database: Engine, fields: dict[str, Any], words: str
) -> None:
    answer = http.post("/v1/webhooks", json={"name": "hook", "url": URL, **fields})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert "sesame" not in answer.text
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM webhooks")) == 0
    if words.startswith("MINION"):
        assert answer.json()["code"] == "forbidden_address"


def test_names_are_unique_in_a_namespace(client: Client) -> None:
    client.add_webhook("hook", URL)
    with pytest.raises(errors.Conflict, match="named 'hook' already"):
        client.add_webhook("hook", URL)
    client.add_webhook("hook", URL, namespace="other")
    assert [w["namespace"] for w in client.webhooks("other")] == ["other"]
    client.remove_webhook("hook", "other")
    assert [w["namespace"] for w in client.webhooks()] == ["default"]


def test_only_given_fields_change(client: Client, database: Engine) -> None:
    before = client.add_webhook("hook", URL, states=["failed"], labels={"a": "b"})
    secret = before.pop("secret")
    assert client.change_webhook("hook", agents=["Echo"], states=[]) == {**before, "agents": ["Echo"], "states": []}
    with pytest.raises(errors.ForbiddenAddress):
        client.change_webhook("hook", url="http://10.0.0.1/")
    with database.begin() as connection:
        connection.execute(text("UPDATE webhooks SET enabled = false, disabled_reason = 'Gone.'"))
    assert client.change_webhook("hook", roots_only=False)["disabled_reason"] == "Gone."
    changed = client.change_webhook("hook", enabled=True)
    assert (changed["enabled"], changed["disabled_reason"], changed["url"]) == (True, None, URL)
    assert stored(database, "secret") == (secret,)


def test_a_new_secret_leaves_the_old_one_for_a_day(client: Client, database: Engine) -> None:
    old = client.add_webhook("hook", URL)["secret"]
    rotated = client.rotate_webhook("hook")
    assert rotated["rotated_at"]
    assert stored(database, "secret, previous_secret") == (rotated["secret"], old)
    assert rotated["secret"] != old


def test_unknown_webhook_is_404(client: Client, http: httpx2.Client) -> None:
    for call in (client.webhook, client.remove_webhook, client.rotate_webhook, client.test_webhook):
        with pytest.raises(errors.NotFound, match="no webhook named 'nothing'"):
            call("nothing")
    with pytest.raises(errors.NotFound, match="no webhook named 'nothing'"):
        client.change_webhook("nothing", enabled=True)
    with pytest.raises(errors.NotFound, match="no webhook named"):
        list(client.webhook_deliveries("nothing"))
    with pytest.raises(errors.NotFound, match="no delivery"):
        client.retry_delivery(uuid4())
    assert http.get("/v1/webhooks/a%00b").status_code == 422


def test_pages_of_webhooks(client: Client, http: httpx2.Client) -> None:
    for name in "cab":
        client.add_webhook(name, URL)
    first = http.get("/v1/webhooks", params={"limit": 2}).json()
    assert [w["name"] for w in first["items"]] == ["a", "b"]
    rest = http.get("/v1/webhooks", params={"limit": 2, "cursor": first["next"]}).json()
    assert ([w["name"] for w in rest["items"]], rest["next"]) == (["c"], None)


# --------------------------------------------------------------------------------------------------- deliveries


def test_deliveries_are_pages_the_newest_first(client: Client, database: Engine) -> None:
    client.add_webhook("hook", URL)
    owed = owe(database, client, 5)
    assert client.webhook("hook")["pending"] == 5
    found = list(client.webhook_deliveries("hook", page=2))
    assert [one["id"] for one in found] == owed
    assert {(one["status"], one["state"], one["attempts"]) for one in found} == {("pending", "cancelled", 0)}
    with database.begin() as connection:
        connection.execute(
            text("UPDATE webhook_deliveries SET status = 'failed', finished_at = now() WHERE id = :id"), {"id": owed[0]}
        )
    [failed] = client.webhook_deliveries("hook", status="failed")
    assert (failed["id"], failed["next_at"]) == (owed[0], None)
    assert len(list(client.webhook_deliveries("hook", status="pending"))) == 4


def test_a_delivery_is_sent_again(client: Client, database: Engine) -> None:
    client.add_webhook("hook", URL)
    [owed] = owe(database, client)
    with database.begin() as connection:
        connection.execute(
            text("UPDATE webhook_deliveries SET status = 'failed', attempts = 10, last_status = 500, last_error = 'x'")
        )
    again = client.retry_delivery(owed)
    assert (again["status"], again["attempts"], again["finished_at"]) == ("pending", 0, None)
    client.change_webhook("hook", enabled=False)
    with pytest.raises(errors.Conflict, match="'hook' is disabled"):
        client.retry_delivery(owed)


def test_delivery_is_found_by_prefix_of_its_id(client: Client, http: httpx2.Client, database: Engine) -> None:
    client.add_webhook("hook", URL)
    first, second = owe(database, client), owe(database, client)
    owed = [*first, *second]
    assert client.retry_delivery(owed[0].replace("-", "")[:31])["id"] == owed[0]
    assert client.retry_delivery(owed[0].upper())["id"] == owed[0]
    with pytest.raises(errors.MinionsError, match=r"More than one delivery .* Give more characters") as error:
        client.retry_delivery(owed[0][:8])
    assert set(error.value.detail["candidates"]) <= set(owed)
    with pytest.raises(errors.NotFound, match="There is no delivery whose id is, or begins with, ffffffff"):
        client.retry_delivery("ffffffff")
    wrong = http.post("/v1/webhooks/deliveries/xyz/retry").json()
    message = "'xyz' is not the id of a delivery: it must be a whole id, or at least its first 8 hexadecimal digits"
    assert wrong["faults"] == [{"path": "path.delivery_id", "message": message}]


def test_removing_webhook_drops_its_deliveries(client: Client, database: Engine) -> None:
    client.add_webhook("hook", URL)
    owe(database, client)
    client.remove_webhook("hook")
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 0


def test_a_test_message_is_signed_and_sent_at_once(local_client: Client) -> None:
    with receiving(204, 500) as endpoint:
        secret = local_client.add_webhook("hook", endpoint.url)["secret"]
        answer = local_client.test_webhook("hook")
        assert (answer["delivered"], answer["status"], answer["error"]) == (True, 204, None)
        message = endpoint.received[0].verified(secret)
        assert (message["type"], message["data"]["webhook"]) == ("webhook.test", "hook")
        refused = local_client.test_webhook("hook")
        assert (refused["delivered"], refused["status"]) == (False, 500)
        assert "500 Internal Server Error" in refused["error"]


def test_a_test_message_reaches_public_addresses_only(client: Client, local_client: Client) -> None:
    with receiving() as endpoint:
        local_client.add_webhook("hook", endpoint.url)
        answer = client.test_webhook("hook")
        assert "not a public address" in answer["error"]
        assert endpoint.received == []


# ------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def run_cli(http_api: Api, database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a command: `minion("webhooks", …)` is its result."""
    monkeypatch.setenv("MINION_API_URL", http_api.url)
    get_settings.cache_clear()
    runner = CliRunner()
    yield lambda *words: runner.invoke(commands, list(words), catch_exceptions=False)
    monkeypatch.undo()
    get_settings.cache_clear()


def test_commands(run_cli: Any, client: Client, database: Engine) -> None:
    assert "No webhooks" in run_cli("webhooks").stderr
    words = ["add", "hook", URL, "--state", "cancelled", "--agent", "Echo", "--all-tasks"]
    added = run_cli("webhooks", *words)
    secret = added.stdout.strip()
    assert stored(database, "secret, states, agents, roots_only") == (secret, ["cancelled"], ["Echo"], False)
    listed = run_cli("webhooks", "list")
    assert "hook" in listed.stdout
    assert (
        secret
        not in listed.stdout + run_cli("webhooks", "list", "--json").stdout + run_cli("webhooks", "show", "hook").stdout
    )
    [owed] = owe(database, client)
    assert owed in run_cli("webhooks", "deliveries", "hook").stdout
    assert json.loads(run_cli("webhooks", "deliveries", "hook", "--status", "failed", "--json").stdout) == []
    assert run_cli("webhooks", "retry", owed).stdout == f"{owed} pending\n"
    assert run_cli("webhooks", "rotate", "hook").stdout.strip() == stored(database, "secret")[0] != secret
    assert "disabled" in run_cli("webhooks", "disable", "hook").stdout
    assert "NO" in run_cli("webhooks").stdout
    assert "enabled" in run_cli("webhooks", "enable", "hook").stdout
    with database.begin() as connection:
        connection.execute(text("UPDATE webhooks SET url = 'http://127.0.0.1:9/'"))
    tested = run_cli("webhooks", "test", "hook")
    assert (tested.exit_code, "not a public address" in tested.stderr) == (1, True)
    assert run_cli("webhooks", "remove", "hook").exit_code == 0
    assert json.loads(run_cli("webhooks", "--json").stdout) == []
