"""The pages of what operators set and look after: from schedules and limits to keys, alerts and the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx2
import pytest
from axe_playwright_python.sync_playwright import DEFAULT_OPTIONS, Axe
from playwright.sync_api import expect
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.pages import audit as audit_page
from orchestrator.pages.navigation import MAIN, MORE
from shared.access.actors import local_actor
from shared.access.roles import MASK
from shared.audit import log
from shared.tasks import lifecycle
from tests.integration.api.conftest import Api
from tests.integration.api.test_alerts import add
from tests.integration.api.test_boundaries import agent, define_in
from tests.integration.pages.conftest import Open
from tests.integration.pages.test_in_chromium import HOSTILE, take_picture
from tests.integration.pages.test_in_chromium import Open as Visits
from tests.support.browser import Browser, hidden
from tests.support.definitions import NOOP, agent_definition
from tests.support.webhook_receiver import receiving

PLACES = ("schedules", "limits", "budgets", "webhooks", "secrets", "memory", "keys", "alerts", "silences", "audit")
SECRET_PATH = "T000-B000-s3cr3t-path"
SOON = datetime.now(UTC) + timedelta(hours=1)
WITH_ADMIN = ("keys", "audit")
"""Places that only administrators see."""


@pytest.fixture
def world(client: Client, database: Engine) -> dict[str, str]:
    """Something at each place, with hostile texts wherever a caller chooses one; ids and names by what they are."""
    define_in(database, "default", NOOP, agent("Ours", "work"))
    client.put_schedule("nightly", {"agent": "Ours", "input": {"secret": "s3cr3t-input"}}, cron="30 2 * * *")
    client.set_limit("agent", HOSTILE.replace("/", "|"), max_running=3, rate="100/5m")
    client.pause("capability", "search", reason=HOSTILE)
    client.stop_all(agent=HOSTILE, reason=HOSTILE)
    client.set_budget("agent", HOSTILE, period="day", dollars=2, tokens=1000)
    client.add_webhook("ledger", f"https://93.184.215.14/{SECRET_PATH}?token=s3cr3t", labels={"team": "a"})
    task = client.submit("Ours", {}, labels={"team": "a"}).id
    with database.begin() as connection:
        lifecycle.cancel(connection, UUID(task), reason="Enough.")
        connection.execute(
            text("UPDATE webhook_deliveries SET status = 'failed', attempts = 8, last_status = 500, last_error = :it"),
            {"it": HOSTILE},
        )
        delivery = connection.scalar(text("SELECT id FROM webhook_deliveries"))
        connection.execute(
            text("INSERT INTO secrets (namespace, name, ciphertext) VALUES ('default', 'mail', 's3cr3t-cipher')")
        )
    alert = add(database, "anomaly.failures", "default")
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE alerts SET subject = :it, sentence = :it, "
                "facts = jsonb_build_object('failures', CAST(:it AS text))"
            ),
            {"it": HOSTILE},
        )
    client.add_silence(until=SOON, reason=HOSTILE, rule="unserved", subject=HOSTILE)
    key = client.create_api_key("ci", "submitter", tenant=HOSTILE[:200])
    return {"alert": alert, "delivery": str(delivery), "key": key["id"], "text": key["key"], "task": task}


def paths(world: dict[str, str]) -> list[str]:
    named = ("schedules/nightly", "webhooks/ledger", f"alerts/{world['alert']}", f"keys/{world['key']}")
    return [f"/{place}" for place in (*PLACES, *named, "limits/stop")]


def seen_by(browser: Browser, world: dict[str, str]) -> dict[str, str]:
    """The pages that a browser may see, by path."""
    answers = {path: browser.get(path) for path in paths(world)}
    return {path: unescape(answer.text) for path, answer in answers.items() if answer.status_code == 200}


def post(browser: Browser, path: str, **fields: str) -> httpx2.Response:
    return browser.post(path, {**fields, "csrf_token": browser.csrf_token()})


def acts(database: Engine, of: str) -> list[str]:
    with database.connect() as connection:
        return list(connection.scalars(text("SELECT act FROM audit_log WHERE act LIKE :of ORDER BY id"), {"of": of}))


# ------------------------------------------------------------------------------------------------- what readers see


def test_shortcut_leads_to_one_place() -> None:
    keys = [place.keys for place in (*MAIN, *MORE)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("place", [*PLACES, "files"])
def test_empty_place_says_what_to_do_next(logged_in: Open, place: str) -> None:
    page = logged_in("admin").get(f"/{place}" + ("?until=9000d" if place == "audit" else ""))
    assert page.status_code == 200
    if place != "keys":  # its reader has one
        assert "minion " in re.sub(r"<footer.*", "", page.text, flags=re.DOTALL)
    assert page.headers["cache-control"] == "no-store"


def test_pages_show_what_there_is_and_no_secret(logged_in: Open, world: dict[str, str]) -> None:
    shown = seen_by(logged_in("admin"), world)
    assert set(shown) == set(paths(world))
    for path, page in shown.items():
        for secret in (SECRET_PATH, "token=s3cr3t", "s3cr3t-cipher", world["text"]):
            assert secret not in page, path
    assert "https://93.184.215.14/…" in shown["/webhooks/ledger"]
    assert "s3cr3t-input" in shown["/schedules/nightly"]
    assert "3 at once, 100 in 300 s" in shown["/limits"]
    assert shown["/schedules/nightly"].count("02:30:00 UTC") >= 5
    assert "${secret:mail}" in shown["/secrets"]
    assert world["text"][:9] in shown["/keys"]
    assert "budget.set" in shown["/audit"]
    assert "state%3Afailed" in shown[f"/alerts/{world['alert']}"]


def test_payloads_and_buttons_are_those_of_the_reader(logged_in: Open, world: dict[str, str]) -> None:
    viewer, operator = (seen_by(logged_in(role), world) for role in ("viewer", "operator"))
    assert "s3cr3t-input" not in viewer["/schedules/nightly"]
    assert MASK in viewer["/schedules/nightly"]
    assert MASK in viewer["/webhooks/ledger"], "what an endpoint answered is a payload"
    assert not [path for path, page in viewer.items() if 'method="post"' in page]
    assert not [path for path in viewer if path.strip("/").split("/")[0].split("?")[0] in WITH_ADMIN]
    assert 'href="/keys"' not in viewer["/limits"]
    assert 'action="/limits/set"' in operator["/limits"]
    assert "/schedules/nightly/run" in operator["/schedules"]
    assert 'method="post"' not in operator["/webhooks/ledger"], "a webhook sends payloads"
    assert logged_in("operator").get("/limits/stop").status_code == 200
    assert logged_in("viewer").get("/limits/stop").status_code == 403


def test_pages_of_many_things_stay_small(logged_in: Open, client: Client, database: Engine) -> None:
    names = [f"agent-{number:03}" + "x" * 80 for number in range(100)]
    client.create_api_key("many", "viewer", agents=names)
    of = "SELECT 'n' || n FROM generate_series(1, 1000) n"
    with database.begin() as connection:
        for statement in (
            f"INSERT INTO pauses (name, scope) SELECT x, 'agent' FROM ({of}) t (x)",
            f"INSERT INTO limits (name, scope, max_running) SELECT x, 'agent', 3 FROM ({of}) t (x)",
            f"INSERT INTO stops (name, namespace, scope) SELECT x, 'default', 'agent' FROM ({of}) t (x)",
            f"INSERT INTO secrets (name, ciphertext) SELECT x, 'x' FROM ({of}) t (x)",
            "INSERT INTO standing_budgets (name, scope, namespace, period, timezone, tokens, on_breach) "
            f"SELECT x, 'agent', 'default', 'day', 'UTC', 9, 'wait' FROM ({of}) t (x)",
        ):
            connection.execute(text(statement))
        facts = {f"field-{number:02}": "v" * 1000 for number in range(40)}
        for _ in range(60):
            log.record(connection, local_actor(), "agent.status", "many", namespace="default", after=facts)
    browser = logged_in("admin")
    pages = {place: browser.get(f"/{place}") for place in ("limits", "budgets", "secrets", "keys", "audit")}
    assert {place: len(page.content) for place, page in pages.items() if len(page.content) > 150_000} == {}
    assert pages["limits"].text.count("Only the first 50") == 3
    assert "Only the first 100. <code>minion budgets</code> lists all." in pages["budgets"].text
    assert "Only the first 200. <code>minion secrets list</code> lists all." in pages["secrets"].text
    assert "There are more fields: <code>minion audit</code> shows all." in pages["audit"].text


def test_namespace_is_a_boundary(logged_in: Open, client: Client, world: dict[str, str], database: Engine) -> None:
    bound = logged_in("admin", namespace="ours")
    add(database, "unserved", "ours")
    for path in (f"/{place}" for place in PLACES):
        page = unescape(bound.get(path).text)
        for foreign in ("nightly", "ledger", ">search<", "secret:mail", world["key"], world["alert"], "budget.set"):
            assert foreign not in page, path
    for path in ("/schedules/nightly", "/webhooks/ledger", f"/alerts/{world['alert']}", f"/keys/{world['key']}"):
        assert bound.get(path).status_code == 404, path
    for place in ("schedules", "webhooks", "secrets"):
        assert bound.get(f"/{place}?namespace=default").status_code == 403
    assert "installation" not in bound.get("/limits").text.partition('name="scope"')[2].partition("</select>")[0]
    assert post(bound, "/limits/stop", scope="installation").status_code == 403
    assert post(bound, "/limits/resume", scope="capability", name="search", namespace="default").status_code == 403
    assert post(bound, "/webhooks/ledger/retry", delivery=world["delivery"]).status_code == 404
    for bounds in ({"tenant": "t"}, {"agents": ["Ours"]}):
        narrow = logged_in("admin", **bounds)
        assert {narrow.get(f"/{place}").status_code for place in PLACES} == {403}
        assert 'href="/audit"' not in narrow.get("/tasks").text


# ------------------------------------------------------------------------------------------------------------- acts


def test_schedule_is_run_paused_resumed_and_removed(
    logged_in: Open, client: Client, world: dict[str, str], database: Engine
) -> None:
    operator = logged_in("operator")
    ran = post(operator, "/schedules/nightly/run")
    task = ran.headers["location"].partition("?")[0]
    assert client.get(task.rpartition("/")[2]).labels == {"schedule": "nightly"}
    assert "Submitted, as this task." in operator.get(ran.headers["location"]).text
    paused = post(operator, "/schedules/nightly/pause")
    page = operator.get(paused.headers["location"]).text
    assert "It is paused, and does not run." in page
    assert client.schedule("nightly")["enabled"] is False
    post(operator, "/schedules/nightly/resume?namespace=default")
    assert client.schedule("nightly")["enabled"] is True
    assert post(operator, "/schedules/nightly/remove").headers["location"].endswith("done=remove")
    assert acts(database, "schedule.%")[1:] == [f"schedule.{act}" for act in ("run", "change", "change", "delete")]


def test_schedule_is_created_and_changed(logged_in: Open, client: Client, define: Any, database: Engine) -> None:
    define(NOOP, agent_definition("A"))
    admin = logged_in("admin")
    form = {"name": "hourly", "cron": "0 * * * *", "timezone": "", "interval_seconds": "", "missed": "skip",
            "agent": "A", "input": '{"n": 1}', "others": '{"labels": {"team": "x"}}'}  # fmt: skip
    for wrong, words in (
        ({"cron": "61 * * * *"}, "61"),
        ({"interval_seconds": "60"}, "must have either `cron` or `interval_seconds`"),
        ({"input": "{"}, "The input must be JSON"),
        ({"others": "[1]"}, "must be a JSON object"),
        ({"agent": "None"}, "None"),
        ({"name": "a b"}, "name"),
    ):
        refused = post(admin, "/schedules/create", **{**form, **wrong})
        assert (refused.status_code in (404, 422), words in unescape(refused.text)) == (True, True), refused.text
        assert f'value="{wrong.get("name", "hourly")}"' in refused.text
    created = post(admin, "/schedules/create", **form)
    assert created.headers["location"] == "/schedules/hourly?namespace=default&done=create"
    page = unescape(admin.get(created.headers["location"]).text)
    assert "Stored. It runs at the times below." in page
    assert '"team": "x"' in page
    stored = client.schedule("hourly")
    assert (stored["request"], stored["missed"]) == ({"agent": "A", "input": {"n": 1}, "labels": {"team": "x"}}, "skip")
    assert post(admin, "/schedules/create", **form).status_code == 409
    del form["name"]
    changed = post(admin, "/schedules/hourly/change", **{**form, "cron": "", "interval_seconds": "90", "input": ""})
    assert changed.headers["location"].endswith("done=change")
    stored = client.schedule("hourly")
    assert (stored["cron"], stored["interval_seconds"], "input" in stored["request"]) == (None, 90, False)
    masked = logged_in("operator")
    assert "schedules/create" not in masked.get("/schedules").text, "it sees no input"
    assert '"team"' not in (page := masked.get("/schedules/hourly").text).partition("Change the schedule")[2]
    assert "Change the schedule" in page
    post(masked, "/schedules/hourly/change", cron="5 * * * *")
    assert client.schedule("hourly")["request"] == stored["request"]
    assert acts(database, "schedule.%") == ["schedule.create", "schedule.change", "schedule.change"]


def test_webhook_is_created_changed_and_removed(logged_in: Open, client: Client, database: Engine) -> None:
    admin = logged_in("admin")
    form = {"name": "chat", "url": "https://example.com/a-secret-path", "event.tasks": "on", "state.failed": "on",
            "agents": "A\r\nB", "labels": "team=x"}  # fmt: skip
    for wrong, words in (
        ({"url": "ftp://example.com"}, "http"),
        ({"labels": "team"}, "must be written name=value"),
        ({"event.tasks": ""} | {"name": "a b"}, "name"),
    ):
        refused = post(admin, "/webhooks/create", **{**form, **wrong})
        assert (refused.status_code, words in unescape(refused.text)) == (422, True)
    created = post(admin, "/webhooks/create", **form)
    assert created.headers["cache-control"] == "no-store"
    assert re.search(r'aria-label="Secret">whsec_[^<]+<', created.text)
    for page in (admin.get("/webhooks").text, admin.get("/webhooks/chat").text):
        assert "whsec_" not in page
        assert "a-secret-path" not in page
    [stored] = client.webhooks()
    expected = {"events": ["tasks"], "states": ["failed"], "agents": ["A", "B"], "labels": {"team": "x"}}
    assert {name: stored[name] for name in expected} == expected
    fields = {"url": "", "event.alerts": "on", "subtasks": "on", "agents": "", "labels": ""}
    assert post(admin, "/webhooks/chat/change", **{"url": "", "labels": ""}).status_code == 422, "it reports nothing"
    post(admin, "/webhooks/chat/change", **fields)
    [changed] = client.webhooks()
    assert (changed["url"], changed["events"], changed["states"], changed["roots_only"]) == (
        form["url"], ["alerts"], [], False,
    )  # fmt: skip
    removed = post(admin, "/webhooks/chat/remove")
    assert "The webhook was removed" in admin.get(removed.headers["location"]).text
    assert list(client.webhooks()) == []
    assert acts(database, "webhook.%") == ["webhook.create", "webhook.change", "webhook.delete"]


def test_run_that_is_refused_says_why_on_the_page(logged_in: Open, database: Engine, world: dict[str, str]) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE schedules SET request = '{\"agent\": 1}'"))
    refused = post(logged_in("admin"), "/schedules/nightly/run")
    assert refused.status_code == 422
    assert 'role="alert"' in refused.text
    assert "Next runs" in refused.text


def test_limits_and_pauses_are_set_and_removed(logged_in: Open, client: Client, database: Engine) -> None:
    operator = logged_in("operator")
    wrong = post(operator, "/limits/set", scope="agent", name="<b>triage</b>", rate="fast")
    assert wrong.status_code == 422
    assert 'value="&lt;b&gt;triage&lt;/b&gt;"' in wrong.text, "what was typed is still there"
    assert "A rate must be like 10/s" in wrong.text
    assert post(operator, "/limits/set", scope="agent", name="triage", max_running="many").status_code == 422
    assert post(operator, "/limits/set", scope="agent", name="a/b c", max_running="2").status_code == 303
    assert post(operator, "/limits/pause", scope="agent", name="a/b c", reason="why").status_code == 303
    assert [limit["max_running"] for limit in client.limits()] == [2]
    assert [pause["reason"] for pause in client.pauses()] == ["why"]
    post(operator, "/limits/resume", scope="agent", name="a/b c", namespace="default")
    post(operator, "/limits/remove", scope="agent", name="a/b c", namespace="default")
    assert [*client.limits(), *client.pauses()] == []
    assert post(operator, "/limits/remove", scope="agent", name="a/b c").status_code == 404
    assert acts(database, "limit.%") + acts(database, "pause.%") == [
        "limit.set", "limit.remove", "pause.set", "pause.remove"
    ]  # fmt: skip


def test_stop_says_what_it_does_before_it_is_done(logged_in: Open, client: Client) -> None:
    operator = logged_in("operator")
    asked = operator.get("/limits/stop?scope=installation&namespace=&name=&reason=It+pays+twice")
    assert "no call of a model begins" in asked.text
    assert "0 tasks run" in asked.text
    form = hidden(asked.text)
    assert form["scope"] == "installation"
    assert list(client.stops()) == []
    done = operator.post("/limits/stop", {**form, "reason": "It pays twice"})
    assert "Stopped." in operator.get(done.headers["location"]).text
    [stop] = client.stops()
    assert (stop["scope"], stop["reason"]) == ("installation", "It pays twice")
    lifting = operator.get("/limits/lift?scope=installation")
    assert "Its tasks continue" in lifting.text
    operator.post("/limits/lift", hidden(lifting.text))
    assert list(client.stops()) == []
    unnamed = operator.get("/limits/stop?scope=agent")
    assert unnamed.status_code == 422
    assert "must name its agent" in unnamed.text
    assert operator.get("/limits/stop?scope=everything").status_code == 422
    assert post(operator, "/limits/lift", scope="everything").status_code == 422


def test_budget_is_set_and_its_use_shown(logged_in: Open, client: Client, database: Engine) -> None:
    operator = logged_in("operator")
    fields = {"scope": "agent", "name": "research", "period": "day", "on_breach": "wait"}
    assert "must be a number" in post(operator, "/budgets/set", **fields, dollars="twenty").text
    assert post(operator, "/budgets/set", **fields, dollars="nan").status_code == 422
    assert post(operator, "/budgets/set", **fields, dollars="20", timezone="Europe/Berlin").status_code == 303
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO standing_usage (budget_id, period_start, period_end, spent_microdollars) "
                "SELECT b.id, p.starts, p.ends, 5000000 "
                "FROM standing_budgets b CROSS JOIN LATERAL minion_period(b.period, b.timezone, now()) p"
            )
        )
    page = operator.get("/budgets").text
    assert '<meter min="0" max="100" high="80" optimum="0" value="25.00"' in page
    assert "$5.00 of $20.00" in page
    post(operator, "/budgets/remove", scope="agent", name="research", namespace="default", period="day")
    assert list(client.budgets()) == []
    assert acts(database, "budget.%") == ["budget.set", "budget.remove"]


@pytest.fixture
def outbound(site: Api) -> Iterator[None]:
    """Webhooks may be on this machine."""
    allowing = site.app.state.settings.model_copy(update={"allow_private_addresses": ["127.0.0.1"]})
    with patch.object(site.app.state, "settings", allowing):
        yield


def test_webhook_is_tested_disabled_and_sends_again(
    logged_in: Open, client: Client, world: dict[str, str], outbound: None, database: Engine
) -> None:
    browser = logged_in("admin")
    with receiving() as receiver:
        client.add_webhook("local", f"{receiver.url}{SECRET_PATH}")
        tested = post(browser, "/webhooks/local/test")
        assert "The test message was delivered: status 2" in tested.text
        assert len(receiver.received) == 1
    failed = unescape(post(browser, "/webhooks/local/test").text)
    assert "was not delivered" in failed
    assert SECRET_PATH not in failed
    post(browser, "/webhooks/ledger/disable")
    refused = post(browser, "/webhooks/ledger/retry", delivery=world["delivery"])
    assert refused.status_code == 409
    assert "Enable it first" in refused.text
    post(browser, "/webhooks/ledger/enable")
    again = post(browser, "/webhooks/ledger/retry", delivery=world["delivery"])
    assert "The message is sent again." in browser.get(again.headers["location"]).text
    assert post(browser, "/webhooks/ledger/retry", delivery="x").status_code == 422
    assert [each["status"] for each in client.webhook_deliveries("ledger")] == ["pending"]
    assert "No message is failed." in browser.get("/webhooks/ledger?status=failed").text
    assert acts(database, "webhook.%")[2:] == [
        f"webhook.{act}" for act in ("test", "test", "change", "change", "retry")
    ]


def test_key_is_shown_once_and_rotated(logged_in: Open, client: Client, database: Engine) -> None:
    browser = logged_in("admin")
    wrong = post(browser, "/keys/create", name="a b", role="viewer")
    assert wrong.status_code == 422
    assert 'value="a b"' in wrong.text
    fields = {"name": "ci", "role": "operator", "payloads": "yes", "agents": "A\r\nB c", "expires_days": "30"}
    created = post(browser, "/keys/create", **fields)
    assert created.headers["cache-control"] == "no-store"
    [shown] = re.findall(r'aria-label="Key">(mk_\w+)<', created.text)
    with Client(browser.site, shown, retries=0) as own:
        assert list(own.tasks()) == []
    key = client.api_key("ci")
    assert (key["agents"], key["payloads"]) == (["A", "B c"], True)
    page = browser.get(f"/keys/{key['id']}").text
    assert shown not in page + browser.get("/keys").text + browser.get("/audit").text
    rotated = post(browser, f"/keys/{key['id']}/rotate", overlap_hours="0")
    [second] = re.findall(r'aria-label="Key">(mk_\w+)<', rotated.text)
    assert second != shown
    assert post(browser, "/keys/create", name="ci", role="viewer").status_code == 409
    assert post(browser, f"/keys/{key['id']}/rotate", overlap_hours="-1").status_code == 422
    assert acts(database, "key.%")[-2:] == ["key.create", "key.rotate"]


def test_account_leads_administrators_to_the_keys(logged_in: Open) -> None:
    assert 'href="/keys"' in logged_in("admin").get("/account").text
    assert 'href="/keys"' not in logged_in("operator").get("/account").text
    assert 'href="/keys"' not in logged_in("admin", tenant="t").get("/account").text


def test_alert_has_its_history_and_its_tasks(logged_in: Open, client: Client, database: Engine) -> None:
    define_in(database, "default", NOOP, agent("triage", "work"))
    task = client.submit("triage", {}).id
    earlier = add(database, "unserved", "default", "resolved")
    alert = add(database, "unserved", "default")
    page = logged_in("viewer").get(f"/alerts/{alert}").text
    for part in (task, f"/alerts/{earlier}", "It fired.", "capability%3Awork%20state%3Apending"):
        assert part in page, part
    assert alert in logged_in("viewer").get("/alerts").text
    assert earlier not in logged_in("viewer").get("/alerts").text
    assert earlier in logged_in("viewer").get("/alerts?state=all").text
    threat = add(database, "threat.refusals", "default")
    assert logged_in("operator").get(f"/alerts/{threat}").status_code == 404
    assert "the audit log" in logged_in("admin").get(f"/alerts/{threat}").text
    for rule in ("budget_blocks", "webhook_fails", "dead_letters", "approval_old", "anomaly.run", "pending_old"):
        assert logged_in("admin").get(f"/alerts/{add(database, rule, None)}").status_code == 200, rule


def test_silence_is_added_from_an_alert_and_ended(logged_in: Open, client: Client, database: Engine) -> None:
    operator = logged_in("operator")
    alert = add(database, "unserved", "default")
    [link] = re.findall(r'href="(/silences\?[^"]+)"', operator.get(f"/alerts/{alert}").text)
    form = operator.get(unescape(link)).text
    assert 'value="unserved"' in form
    added = post(operator, "/silences/add", rule="unserved", namespace="default", hours="2", reason="known")
    assert added.status_code == 303
    assert client.alert(alert)["state"] == "silenced"
    refused = post(operator, "/silences/add", hours="2", reason="<i>")
    assert refused.status_code == 422
    assert "&lt;i&gt;" in refused.text
    assert post(operator, "/silences/add", rule="*", hours="2", reason="known").status_code == 403, "it matches threats"
    [silence] = client.silences()
    post(operator, "/silences/remove", silence=silence["id"])
    assert client.alert(alert)["state"] == "firing"
    assert post(operator, "/silences/remove", silence="x").status_code == 422
    assert acts(database, "silence.%") == ["silence.create", "silence.delete"]


def test_audit_log_is_filtered_in_pages(logged_in: Open, client: Client, database: Engine) -> None:
    for number in range(30):
        client.pause("agent", f"A{number}", reason="x" * 400)
    client.set_limit("agent", "A", max_running=1)
    client.set_limit("agent", "A", max_running=2)
    browser = logged_in("admin")
    page = browser.get("/audit?act=limit&since=1h").text
    assert page.count("<tr data-item>") == 2
    assert re.search(r"max_running</bdi>: <bdi>1</bdi> → <bdi>2</bdi>", page)
    assert browser.get("/audit?act=limit&target=agent+B").text.count("<tr data-item>") == 0
    assert browser.get("/audit?actor=bootstrap&act=pause.set&until=1h").text.count("<tr data-item>") == 0
    with patch.object(audit_page, "LONGEST_VALUE", 100):
        assert "x" * 101 not in browser.get("/audit?act=pause").text
    wrong = browser.get("/audit?since=yesterday")
    assert wrong.status_code == 422
    assert "not a time" in wrong.text
    assert 'value="yesterday"' in wrong.text
    for _ in range(30):
        client.pause("agent", "B")
    first = browser.get("/audit?act=pause")
    assert first.text.count("<tr data-item>") == 50
    older = re.search(r'rel="next" href="([^"]+)"', first.text)
    assert older
    assert browser.get(unescape(older[1])).text.count("<tr data-item>") == 10


def test_search_of_the_audit_log_is_bounded(logged_in: Open, client: Client) -> None:
    client.set_limit("agent", "A", max_running=1)
    for _ in range(10):
        client.pause("agent", "B")
    browser = logged_in("admin")
    with patch.object(audit_page, "MOST_SEARCHED", 5):
        address, pages = "/audit?act=limit", 0
        while '<code class="whole">limit.set' not in (page := browser.get(address).text):
            pages += 1
            address = unescape(re.findall(r'rel="next" href="([^"]+)">Continue the search', page)[0])
        assert 2 <= pages <= 4
        [target] = {row["target"] for row in client.audit() if row["act"] == "limit.set"}
        found = browser.get("/audit", params={"target": target}).text
        assert '<code class="whole">limit.set' in found, "the target has an index"
        assert "Continue the search" not in found
    assert "Continue the search" not in browser.get("/audit?act=none").text


def test_audit_log_says_whether_rows_are_signed(logged_in: Open, client: Client, database: Engine, site: Api) -> None:
    client.pause("agent", "A")
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO audit_log (nonce, act, actor) VALUES (:nonce, 'forged.act', 'x')"), {"nonce": uuid4()}
        )
    browser = logged_in("admin")
    assert "not signed by this installation" in browser.get("/audit?act=forged").text
    assert "minion audit verify" in browser.get("/audit").text
    settings = site.app.state.settings
    if settings.secret_key is not None:
        assert "not signed by this installation" not in browser.get("/audit?act=pause").text


# ----------------------------------------------------------------------------------------------- unknown addresses


def test_unknown_address_is_a_page_for_readers_alone(logged_in: Open, site: Api, client: Client) -> None:
    browser = logged_in()
    wanted = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = browser.get("/nothing<b>", headers=wanted)
    assert page.status_code == 404
    assert "There is nothing at" in page.text
    assert "<nav" in page.text
    assert "<b>" not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert browser.get("/limits/set", headers=wanted).status_code == 404, "it only takes a form"
    others = (
        browser.get("/nothing"),
        browser.get("/v1/nothing"),
        Browser(site.url, site.url).get("/nothing", headers=wanted),
    )
    assert {each.headers["content-type"] for each in others} == {"application/problem+json"}
    with httpx2.Client(base_url=site.url, trust_env=False) as http:
        answer = http.get("/nothing", headers={**wanted, "Authorization": f"Bearer {site.key}"})
    assert answer.headers["content-type"] == "application/problem+json"


# ---------------------------------------------------------------------------------------------------- in Chromium


def test_places_are_accessible_in_light_and_dark(world: dict[str, str], visit: Visits) -> None:
    axe = Axe()
    contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
    for name, options in (("light", DEFAULT_OPTIONS), ("dark", contrast), ("phone", None)):
        visited = visit(dark=name == "dark", phone=name == "phone")
        for path in paths(world):
            page = visited.go(path)
            page.evaluate("document.querySelectorAll('main details').forEach((each) => { each.open = true })")
            take_picture(page, path.replace(world["alert"], "one").replace(world["key"], "one"), name)
            assert page.locator("main img, main script, main svg, main [onerror]").count() == 0, path
            if options is not None:
                found = axe.run(page, options=options)
                assert found.violations_count == 0, f"{path} {name}\n{found.generate_report()}"
            width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert width <= 0, f"{path} {name} is too wide"
        visited.check()


def test_webhook_message_is_sent_again(visit: Visits, world: dict[str, str], client: Client) -> None:
    visited = visit("admin")
    page = visited.page
    page.get_by_text("More", exact=True).click()
    page.get_by_role("link", name="Webhooks").click()
    page.get_by_role("link", name="ledger").click()
    expect(page.get_by_role("row").nth(1)).to_contain_text("failed")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("The message is sent again.")).to_be_visible()
    expect(page.get_by_role("row").nth(1)).to_contain_text("pending")
    visited.check()


def test_schedules_and_webhooks_follow_what_happens(visit: Visits, world: dict[str, str], client: Client) -> None:
    visited = visit("admin")
    for path, act in (
        ("/schedules", lambda: client.change_schedule("nightly", enabled=False)),
        ("/schedules/nightly", lambda: client.change_schedule("nightly", enabled=True)),
        ("/webhooks", lambda: client.change_webhook("ledger", enabled=False)),
        ("/webhooks/ledger", lambda: client.change_webhook("ledger", enabled=True)),
    ):
        page = visited.go(path)
        before = page.locator("main .state").first.inner_text()
        expect(page.locator("#live-state")).to_have_text("live")
        act()
        expect(page.locator("main .state").first).not_to_have_text(before, timeout=15_000)
    visited.check()


def test_key_is_created_and_revoked(visit: Visits, client: Client) -> None:
    visited = visit("admin")
    page = visited.page
    page.keyboard.press("g")
    page.keyboard.press("k")
    page.wait_for_url("**/keys")
    page.get_by_text("Create a key…").click()
    page.get_by_label("Name (required)").fill("ci")
    page.get_by_label("Role").select_option("submitter")
    page.get_by_role("button", name="Create the key").click()
    key = page.get_by_label("Key", exact=True).inner_text()
    with Client(visited.site, key, retries=0) as own:
        assert list(own.tasks()) == []
    page.get_by_role("link", name="Keys", exact=True).first.click()
    page.get_by_role("link", name="ci", exact=True).click()
    expect(page.get_by_label("Key", exact=True)).to_have_count(0)
    page.get_by_text("Revoke the key…").click()
    page.get_by_role("button", name="Revoke ci").click()
    expect(page.get_by_text("Revoked. It is refused everywhere within a second.")).to_be_visible()
    assert client.api_key("ci")["status"] == "revoked"
    visited.check()


def test_alert_is_acknowledged(visit: Visits, client: Client, database: Engine) -> None:
    alert = add(database, "unserved", None)
    visited = visit("operator")
    page = visited.go("/overview")
    page.get_by_role("link", name="unserved").click()
    page.wait_for_url(f"**/alerts/{alert}")
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.get_by_text("Acknowledged: it is not repeated")).to_be_visible()
    assert client.alert(alert)["state"] == "acknowledged"
    expect(page.get_by_role("heading", level=1)).to_contain_text("acknowledged")
    page.locator("main").click()  # and nothing in it has the focus
    expect(page.locator("#live-state")).to_have_text("live")
    with database.begin() as connection:
        connection.execute(text("UPDATE alerts SET state = 'resolved', resolved_at = now()"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("resolved", timeout=15_000)
    visited.check()
