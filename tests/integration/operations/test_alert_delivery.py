"""Notifications: grouped, signed, plain, sent again after an outage with the newest state."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email import message_from_string
from email.header import decode_header, make_header
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from orchestrator.alerts import addresses, notices, store
from orchestrator.alerts.addresses import Address
from orchestrator.alerts.notices import Pace
from orchestrator.alerts.notifier import Hook, Notifier, Outcome
from orchestrator.alerts.store import Found
from shared.errors import NotConfigured
from shared.settings import Settings
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until
from tests.support.webhook_receiver import SECRET, Receiver, receiving

NOW = Pace(timedelta(), timedelta(), timedelta(hours=4))


@dataclass
class Mail:
    """A mail server: it keeps what it gets."""

    port: int = 0
    letters: list[str] = field(default_factory=list)


@contextmanager
def mailing() -> Iterator[Mail]:
    """Run a mail server for one client at a time."""
    mail = Mail()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mail.port = listener.getsockname()[1]
        threading.Thread(target=_serve, args=(listener, mail), daemon=True).start()
        yield mail


def _serve(listener: socket.socket, mail: Mail) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, client.makefile("rwb") as stream:

            def answer(said: str, stream: Any = stream) -> None:
                stream.write(said.encode() + b"\r\n")
                stream.flush()

            answer("220 mail")
            for line in stream:
                command = line.split()[0].upper() if line.split() else b""
                if command == b"DATA":
                    answer("354 go on")
                    letter = b""
                    while not letter.endswith(b"\r\n.\r\n"):
                        letter += stream.readline()
                    mail.letters.append(letter.decode())
                answer("221 bye" if command == b"QUIT" else "250 ok")
                if command == b"QUIT":
                    break


def fire(database: Engine, *subjects: str, rule: str = "unserved", namespace: str | None = "default") -> None:
    """Bring a rule to these alerts."""
    found = [
        Found(rule=rule, subject=each, sentence=f"About {each}.", namespace=namespace, capability=each)
        for each in subjects
    ]
    with database.begin() as connection:
        connection.execute(text("UPDATE alerts SET last_seen = last_seen - interval '1 hour'"))
        store.sync(connection, (rule,), found)


def subscribe(database: Engine, receiver: Receiver, namespace: str = "default", events: str = "{alerts}") -> None:
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO webhooks (namespace, name, url, secret, events) "
                 "VALUES (:namespace, 'hook', :url, :secret, CAST(:events AS text[]))"),
            {"namespace": namespace, "url": receiver.url, "secret": SECRET, "events": events},
        )  # fmt: skip


@pytest.fixture
def local(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_addresses": ["127.0.0.1"]})


def run(notifier: Notifier) -> None:
    """Let it send what is due now."""
    notifier.run_once()
    wait_until(lambda: not notifier._under_way, "messages are sent")


def hurry(database: Engine) -> None:
    """Make the next attempts due."""
    with database.begin() as connection:
        connection.execute(text("UPDATE alert_receivers SET next_at = now()"))


def test_alerts_of_a_rule_are_one_signed_message_and_their_end_another(local: Settings, database: Engine) -> None:
    with receiving() as receiver:
        subscribe(database, receiver)
        notifier = Notifier(local, database, pace=NOW)
        fire(database, *(f"work{number}" for number in range(30)))
        run(notifier)
        run(notifier)
        [message] = [each.verified() for each in receiver.received]
        assert message["type"] == "alert.firing"
        assert len(message["data"]["alerts"]) == 30
        alert = message["data"]["alerts"][0]
        assert alert["link"].endswith(f"/alerts/{alert['id']}")
        fire(database)
        run(notifier)
        ended = receiver.received[1].verified()
        assert (ended["type"], {each["state"] for each in ended["data"]["alerts"]}) == ("alert.resolved", {"resolved"})
        run(notifier)
        assert len(receiver.received) == 2


def test_webhooks_that_did_not_ask_and_other_namespaces_get_nothing(local: Settings, database: Engine) -> None:
    with receiving() as tasks_only, receiving() as elsewhere:
        subscribe(database, tasks_only, events="{tasks}")
        subscribe(database, elsewhere, "elsewhere")
        notifier = Notifier(local, database, pace=NOW)
        fire(database, "work")
        fire(database, "all", rule="dead_letters", namespace=None)
        run(notifier)
        assert not tasks_only.received
        assert not elsewhere.received


def test_webhook_for_alerts_alone_gets_no_tasks(database: Engine, driver: LifecycleDriver) -> None:
    with receiving() as receiver:
        subscribe(database, receiver)
    task = driver.submit("A")
    with database.begin() as connection:
        owed = text("SELECT minion_owe_webhooks(:task, 'succeeded')")
        connection.execute(owed, {"task": task})
        assert connection.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 0
        connection.execute(text("UPDATE webhooks SET events = '{tasks,alerts}'"))
        connection.execute(owed, {"task": task})
        assert connection.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 1


def test_window_and_interval_group_what_comes_later(local: Settings, database: Engine) -> None:
    with receiving() as receiver:
        subscribe(database, receiver)
        fire(database, "a")
        notifier = Notifier(local, database, pace=Pace(timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=4)))
        run(notifier)
        assert not receiver.received, "others may follow"
        with database.begin() as connection:
            connection.execute(text("UPDATE alerts SET changed_at = changed_at - interval '2 minutes'"))
        run(notifier)
        assert len(receiver.received) == 1
        fire(database, "a", "b")
        with database.begin() as connection:
            connection.execute(text("UPDATE alerts SET changed_at = changed_at - interval '2 minutes'"))
        run(notifier)
        assert len(receiver.received) == 1, "the last message is not long ago"
        with database.begin() as connection:
            connection.execute(text("UPDATE alert_notices SET at = at - interval '6 minutes'"))
        run(notifier)
        [later] = receiver.received[1].verified()["data"]["alerts"]
        assert later["subject"] == "b"
        with database.begin() as connection:
            connection.execute(text("UPDATE alert_notices SET at = at - interval '5 hours'"))
        run(notifier)
        assert len(receiver.received[2].verified()["data"]["alerts"]) == 2, "what still fires is repeated"


def test_receiver_that_was_down_gets_the_newest_state_once(local: Settings, database: Engine) -> None:
    with receiving(*[503] * 3) as receiver:
        subscribe(database, receiver)
        notifier = Notifier(local, database, pace=NOW)
        with capture_logs() as logs:
            for subjects in (("a",), ("a", "b"), ("b", "c")):
                fire(database, *subjects)
                hurry(database)
                run(notifier)
        failed = [line for line in logs if line["event"] == "alerts_not_sent"]
        assert [line["attempts"] for line in failed] == [1, 2, 3]
        assert failed[2]["next_in_seconds"] >= 120
        assert "503" in failed[0]["reason"]
        run(notifier)
        assert len(receiver.received) == 3, "it is not due yet"
        # Another orchestrator, after a restart.
        hurry(database)
        run(Notifier(local, database, pace=NOW))
        [alerts] = [each.verified()["data"]["alerts"] for each in receiver.received[3:]]
        assert {each["subject"]: each["state"] for each in alerts} == {"a": "resolved", "b": "firing", "c": "firing"}
        run(notifier)
        assert len(receiver.received) == 4


def test_two_orchestrators_send_once(local: Settings, database: Engine) -> None:
    with receiving() as receiver:
        subscribe(database, receiver)
        fire(database, "work")
        both = [Notifier(local, database, pace=NOW) for _ in range(2)]
        for notifier in both:
            notifier.run_once()
        for notifier in both:
            wait_until(lambda notifier=notifier: not notifier._under_way, "messages are sent")
        assert len(receiver.received) == 1


def test_slow_receiver_that_another_orchestrator_took_gets_nothing_twice(
    local: Settings, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def slow(hook: Hook, settings: Settings, notice: notices.Notice) -> Outcome:
        sent.append(notice.rule)
        with database.begin() as connection:
            connection.execute(text("UPDATE alert_receivers SET next_at = now() + interval '3 minutes', attempts = 7"))
        return Outcome()

    with receiving() as receiver:
        subscribe(database, receiver)
        fire(database, "work", rule="unserved")
        fire(database, "work", rule="pending_old")
        monkeypatch.setattr(Hook, "send", slow)
        run(Notifier(local, database, pace=NOW))
    assert len(sent) == 1
    with database.connect() as connection:
        assert connection.scalar(text("SELECT attempts FROM alert_receivers")) == 7, "the other one settles"


def test_acknowledged_and_silenced_alerts_are_quiet(local: Settings, database: Engine) -> None:
    with receiving() as receiver:
        subscribe(database, receiver)
        notifier = Notifier(local, database, pace=NOW)
        fire(database, "known", "seen")
        with database.begin() as connection:
            connection.execute(
                text("INSERT INTO alert_silences (subject, until_at, reason, created_by) "
                     "VALUES ('known', now() + interval '1 h', 'r', 'x')")
            )  # fmt: skip
            store.apply_silences(connection)
        run(notifier)
        [told] = receiver.received[0].verified()["data"]["alerts"]
        assert told["subject"] == "seen"
        with database.begin() as connection:
            connection.execute(
                text("UPDATE alerts SET state = 'acknowledged', acknowledged_at = now() WHERE subject = 'seen'")
            )
            connection.execute(text("UPDATE alert_notices SET at = at - interval '1 day'"))
        run(notifier)
        assert len(receiver.received) == 1
        fire(database)
        run(notifier)
        [ended] = receiver.received[1].verified()["data"]["alerts"]
        assert (ended["subject"], ended["state"]) == ("seen", "resolved"), "the silenced one was never told"


def test_gone_endpoint_is_disabled(local: Settings, database: Engine) -> None:
    with receiving(410) as receiver:
        subscribe(database, receiver)
        fire(database, "work")
        run(Notifier(local, database, pace=NOW))
    with database.connect() as connection:
        assert connection.scalar(text("SELECT enabled FROM webhooks")) is False


# --------------------------------------------------------------------------------------------------------- addresses

HOSTILE = (
    "x\r\nBcc: all@example.com\n<!channel> @here [click](http://evil.example/) `rm` <http://evil.example|ok> "
    "www.evil.example"
)


def test_mail_and_chat_get_harmless_text(local: Settings, database: Engine) -> None:
    with mailing() as mail, receiving(200) as chat:
        urls = (
            f"mailto://127.0.0.1:{mail.port}?mode=insecure&from=minions@example.com&to=ops@example.com "
            f"mmost://127.0.0.1:{chat.port}/private-token-4711"
        )
        configured = local.model_copy(update={"alert_urls": SecretStr(urls)})
        fire(database, HOSTILE)
        with capture_logs() as logs:
            run(Notifier(configured, database, pace=NOW))
        [letter] = mail.letters
        [post] = chat.received
    assert "private-token-4711" not in str(logs)
    assert not [line for line in logs if line["event"] == "alerts_not_sent"]
    assert [line["rule"] for line in logs if line["event"] == "alerts_sent"] == ["unserved"] * 2
    mime = message_from_string(letter)
    assert mime["Bcc"] is None
    assert str(make_header(decode_header(mime["Subject"]))) == "Minions: unserved, 1 firing"
    body = json.loads(post.body)["text"]
    for shown in (body, letter):
        assert "<!channel>" not in shown
        assert "http://evil" not in shown
        assert "www.evil" not in shown
        assert "@here" not in shown
    assert "＠here" in body
    assert re.search(r"http://127\.0\.0\.1:\d+/alerts/", body), "our own link is one"
    assert len(body) < 2000


def test_address_that_redirects_is_not_followed_and_its_secret_not_shown(local: Settings) -> None:
    with receiving() as target:
        with receiving((302, {"Location": target.url})) as redirecting:
            address = Address(f"mmost://127.0.0.1:{redirecting.port}/private-token-4711")
            error = address.send("title", "text")
        assert error
        assert not target.received
    refused = Address("mmost://127.0.0.1:1/private-token-4711").send("title", "text")
    assert refused
    assert "private-token" not in error + refused + repr(address) + address.name
    assert re.fullmatch("mmost:[0-9a-f]{8}", address.name)


def test_invalid_address_is_refused_without_showing_it(settings: Settings, database: Engine) -> None:
    wrong = settings.model_copy(update={"alert_urls": SecretStr("nonsense://private-token-4711")})
    with pytest.raises(NotConfigured, match=r"begins with nonsense://\.") as error:
        Notifier(wrong, database)
    assert "private" not in str(error.value)
    many = settings.model_copy(update={"alert_urls": SecretStr(" ".join(f"json://h{n}" for n in range(21)))})
    with pytest.raises(NotConfigured, match="at most 20"):
        addresses.check(many)


def test_several_addresses_without_a_space_between_are_refused(settings: Settings) -> None:
    joined = settings.model_copy(update={"alert_urls": SecretStr("json://one.example/secret,xml://two.example")})
    with pytest.raises(NotConfigured, match="begins with json:// is 2 addresses") as error:
        addresses.check(joined)
    assert "secret" not in str(error.value)


def test_encoded_secrets_are_not_shown() -> None:
    address = Address("mailtos://user:p%23a%2Fb%24c@mail.example.com?to=ops@example.com")
    for written in ("p%23a%2Fb%24c", "p#a/b$c"):
        assert written not in address._scrubbed(f"535 refused: {written}")


def test_receiver_that_hangs_holds_up_neither_another_nor_the_end_of_the_process() -> None:
    def pooled() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}

    before = pooled()
    with socket.create_server(("127.0.0.1", 0)) as hangs, receiving(200) as chat:
        slow = Address(f"mmost://127.0.0.1:{hangs.getsockname()[1]}/private-token-4711?rto=60")
        failed: list[str | None] = []
        sending = threading.Thread(target=lambda: failed.append(slow.send("title", "text")))
        sending.start()
        hanging, _ = hangs.accept()
        assert Address(f"mmost://127.0.0.1:{chat.port}/private-token-4712").send("title", "text") is None
        assert not failed
        assert pooled() <= before
        hanging.close()
        sending.join()
    assert failed[0]
    assert "private" not in failed[0]


def test_text_that_is_too_long_for_a_service_is_cut() -> None:
    with receiving(200) as chat:
        address = Address(f"mmost://127.0.0.1:{chat.port}/private-token-4711")
        assert address.send("Minions: unserved, 20 firing", "x" * 9000) is None
    [post] = chat.received
    assert len(json.loads(post.body)["text"]) <= 4000


def test_text_is_bounded() -> None:
    alert = {"id": "1", "state": "firing", "namespace": "n" * 5000, "sentence": HOSTILE * 500}
    notice = notices.Notice(alert["id"], "unserved", [alert] * 100)  # type: ignore[arg-type]
    shown = notice.text(None)
    assert len(shown) < 20_000
    assert shown.endswith("and 80 more: minion alerts list --rule unserved")
