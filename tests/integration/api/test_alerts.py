"""Alerts and silences over HTTP, in the client and on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from tests.integration.api.conftest import Run, WithKey

SOON = datetime.now(UTC) + timedelta(hours=1)


def add(database: Engine, rule: str, namespace: str | None, state: str = "firing") -> str:
    with database.begin() as connection:
        return str(
            connection.scalar(
                text(
                    "INSERT INTO alerts (rule, namespace, subject, agent, capability, sentence, state, resolved_at) "
                    "VALUES (:rule, :namespace, :rule, 'triage', 'work', :sentence, :state, "
                    "CASE :state WHEN 'resolved' THEN now() END) RETURNING id"
                ),
                {"rule": rule, "namespace": namespace, "state": state, "sentence": f"{rule} \x1b[31m{namespace}"},
            )
        )


@pytest.fixture
def ids(database: Engine) -> dict[str, str]:
    return {
        "ours": add(database, "unserved", "ours"),
        "theirs": add(database, "anomaly.run", "theirs"),
        "whole": add(database, "dead_letters", None),
        "threat": add(database, "threat.refusals", "ours"),
        "over": add(database, "pending_old", "ours", "resolved"),
    }


def test_namespace_is_a_boundary(with_key: WithKey, ids: dict[str, str]) -> None:
    whole, ours = with_key("admin"), with_key("admin", namespace="ours")
    assert {a["id"] for a in whole.get("/v1/alerts").json()["items"]} == {
        ids[name] for name in ("ours", "theirs", "whole", "threat")
    }
    assert {a["id"] for a in ours.get("/v1/alerts").json()["items"]} == {ids["ours"], ids["threat"]}
    assert ours.get("/v1/alerts", params={"namespace": "theirs"}).status_code == 403
    for name, status in (("ours", 200), ("theirs", 404), ("whole", 404)):
        assert ours.get(f"/v1/alerts/{ids[name]}").status_code == status
        assert ours.post(f"/v1/alerts/{ids[name]}/acknowledge").status_code == status


def test_threats_need_the_right_to_read_the_audit_log(with_key: WithKey, ids: dict[str, str]) -> None:
    operator = with_key("operator")
    assert ids["threat"] not in {a["id"] for a in operator.get("/v1/alerts").json()["items"]}
    assert operator.get(f"/v1/alerts/{ids['threat']}").status_code == 404
    assert with_key("viewer").get(f"/v1/alerts/{ids['ours']}").status_code == 200


def test_filters_and_pages(client: Client, with_key: WithKey, ids: dict[str, str]) -> None:
    assert [a["id"] for a in client.alerts(all=True, rule="pending_old")] == [ids["over"]]
    assert [a["id"] for a in client.alerts(state="resolved")] == [ids["over"]]
    assert [a["id"] for a in client.alerts(namespace="theirs", agent="triage")] == [ids["theirs"]]
    http = with_key("admin")
    seen, cursor = [], None
    while True:
        page = http.get("/v1/alerts", params={"limit": 2, "all": True} | ({"cursor": cursor} if cursor else {})).json()
        seen += [a["id"] for a in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == list(reversed(ids.values()))
    alert = client.alert(ids["ours"])
    assert alert["link"].endswith(f"/alerts/{ids['ours']}")
    assert alert["link"].startswith("http://127.0.0.1")
    assert "/v1/" not in alert["link"], "it leads people to a page"


def test_acknowledge(client: Client, with_key: WithKey, ids: dict[str, str]) -> None:
    found = client.acknowledge_alert(ids["ours"])
    assert (found["state"], found["acknowledged_by"][:4]) == ("acknowledged", "api:")
    client.acknowledge_alert(ids["ours"])
    with pytest.raises(errors.Conflict, match="resolved already"):
        client.acknowledge_alert(ids["over"])
    with pytest.raises(errors.NotFound, match="minion alerts"):
        client.alert(uuid4())
    assert with_key("viewer").post(f"/v1/alerts/{ids['ours']}/acknowledge").status_code == 403


def test_silence_applies_at_once_and_ends(client: Client, ids: dict[str, str]) -> None:
    added = client.add_silence(until=SOON, reason="known", rule="anomaly.*", namespace="theirs")
    assert [(s["id"], s["rule"], s["namespace"]) for s in client.silences()] == [(added["id"], "anomaly.*", "theirs")]
    assert client.alert(ids["theirs"])["state"] == "silenced"
    assert client.alert(ids["ours"])["state"] == "firing"
    client.remove_silence(added["id"])
    assert client.alert(ids["theirs"])["state"] == "firing"
    with pytest.raises(errors.NotFound):
        client.remove_silence(added["id"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": None}, "rule `*` matches all"),
        ({"until": (datetime.now(UTC) - timedelta(minutes=1)).isoformat()}, "in the future"),
        ({"until": "2126-01-01T00:00:00Z"}, "within a year"),
        ({"until": "2126-01-01T00:00:00"}, "until"),
        ({"reason": ""}, "reason"),
        ({"agnet": "triage"}, "agnet"),
        ({"subject": "x\x00"}, "subject"),
    ],
)
def test_invalid_silence_is_refused(with_key: WithKey, change: dict[str, Any], said: str) -> None:
    body = {"rule": "unserved", "until": SOON.isoformat(), "reason": "known", **change}
    answer = with_key("operator").post("/v1/silences", json={k: v for k, v in body.items() if v is not None})
    assert answer.status_code == 422
    assert said in answer.text


@pytest.mark.parametrize("matcher", [{"rule": "*"}, {"rule": "threat.*"}, {"subject": "threat.refusals"}])
def test_silence_that_may_match_threats_needs_the_right_to_read_the_audit_log(
    with_key: WithKey, ids: dict[str, str], matcher: dict[str, str]
) -> None:
    body = {"until": SOON.isoformat(), "reason": "quiet", **matcher}
    operator = with_key("operator", namespace="ours")
    refused = operator.post("/v1/silences", json=body)
    assert refused.status_code == 403
    assert "audit:read" in refused.text
    assert operator.post("/v1/silences", json=body | {"rule": "*", "agent": "other"}).status_code == 201
    admin = with_key("admin", namespace="ours")
    assert admin.post("/v1/silences", json=body).status_code == 201
    assert admin.get(f"/v1/alerts/{ids['threat']}").json()["state"] == "silenced"


def test_silences_of_a_namespace_leave_room_for_those_of_others(with_key: WithKey, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO alert_silences (namespace, rule, until_at, reason, created_by) "
                 "SELECT 'ours', 'unserved', now() + interval '1 hour', 'known', 'x' FROM generate_series(1, 100)")
        )  # fmt: skip
    body = {"rule": "unserved", "until": SOON.isoformat(), "reason": "known"}
    full = with_key("operator", namespace="ours").post("/v1/silences", json=body)
    assert (full.status_code, "There are 100 silences" in full.text) == (409, True)
    assert with_key("operator", namespace="theirs").post("/v1/silences", json=body).status_code == 201


def test_silence_of_a_bound_key_is_in_its_namespace(with_key: WithKey, ids: dict[str, str]) -> None:
    body = {"rule": "*", "until": SOON.isoformat(), "reason": "known"}
    ours = with_key("admin", namespace="ours")
    assert ours.post("/v1/silences", json=body).json()["namespace"] == "ours"
    assert ours.post("/v1/silences", json=body | {"namespace": "theirs"}).status_code == 403
    whole = with_key("admin")
    states = {a["id"]: a["state"] for a in whole.get("/v1/alerts").json()["items"]}
    assert states[ids["ours"]] == "silenced"
    assert states[ids["theirs"]] == states[ids["whole"]] == "firing"


def test_commands(run_cli: Run, ids: dict[str, str]) -> None:
    listed = run_cli("alerts")
    assert listed.code == 0
    assert "unserved" in listed.line
    assert "\x1b[31m" not in listed.out, "hostile text must not colour the terminal"
    assert run_cli("alerts", "show", ids["ours"]).code == 0
    assert "is acknowledged" in run_cli("alerts", "ack", ids["ours"]).line
    silenced = run_cli("alerts", "silence", "known", "--for", "2h", "--rule", "*", "--json")
    assert silenced.code == 0
    assert "rule *" in run_cli("alerts", "silences").line
    silence = silenced.out.partition('"id": "')[2][:36]
    assert run_cli("alerts", "unsilence", silence).code == 0
    assert "No silences" in run_cli("alerts", "silences").line
    assert "MINION_ALERT_URLS is not set" in run_cli("alerts", "test").line


def test_webhook_commands_understand_an_orchestrator_of_the_previous_release(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def add_webhook(client: Client, name: str, url: str, **fields: Any) -> dict[str, Any]:
        sent.update(fields)
        return {"name": name, "url": url, "secret": "whsec_x"}

    known = {"name": "hook", "enabled": True, "url": "http://x", "states": [], "agents": [], "labels": {}}
    monkeypatch.setattr(Client, "add_webhook", add_webhook)
    monkeypatch.setattr(Client, "webhooks", lambda client: iter([known | {"roots_only": True, "pending": 0}]))
    assert run_cli("webhooks", "add", "hook", "http://x").code == 0
    assert "events" not in sent, "it refuses fields that it does not know"
    assert "tasks" in run_cli("webhooks", "list").line
    assert run_cli("webhooks", "add", "hook", "http://x", "--event", "alerts").code == 0
    assert sent["events"] == ["alerts"]
