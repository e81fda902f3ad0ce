"""Logs with fields, and error reports without user data. Each test runs a process: both are set up per process."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.processes import ROOT
from tests.support.webhook_receiver import SECRET as WEBHOOK_SECRET
from tests.support.webhook_receiver import receiving

SECRET = "Ms-Smith-s3cret"
START = """
import logging, sys
import structlog
from shared.settings import get_settings
from shared.telemetry import configure
configure(get_settings(), component="worker")
log = structlog.get_logger("test")
SECRET = sys.argv[1]
"""


def run(code: str, **env: str) -> str:
    """Run code in a process with telemetry; return what it writes to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", START + code, SECRET],
        cwd=ROOT,
        env={**os.environ, "SENTRY_DSN": "", "MINION_LOG_FORMAT": "json", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def logged(code: str, **env: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(code, **env).splitlines()]


# ------------------------------------------------------------------------------------------------------- logs


def test_every_line_has_the_bound_fields() -> None:
    code = """
with structlog.contextvars.bound_contextvars(task="t", claim=1, agent="A", capability="work"):
    log.info("started", attempt=1)
    logging.getLogger("somebody.else").warning("value %s", 5, extra={"more": "x"})
log.info("after")
"""
    first, second, third = logged(code)
    bound = {"component": "worker", "task": "t", "claim": 1, "agent": "A", "capability": "work"}
    assert first.items() >= {**bound, "event": "started", "attempt": 1, "level": "info", "logger": "test"}.items()
    assert second.items() >= {**bound, "event": "value 5", "more": "x", "logger": "somebody.else"}.items()
    assert third.keys() == {"event", "component", "level", "logger", "timestamp"}
    assert third["timestamp"].endswith("Z")


def test_exception_is_logged_on_one_line() -> None:
    [line] = logged("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')\n")
    assert line["event"] == "failed"
    assert "ZeroDivisionError: division by zero" in line["exception"]


def test_values_that_json_cannot_hold_are_logged_as_text() -> None:
    [line] = logged("import uuid\nlog.info('x', id=uuid.UUID(int=0), error=ValueError('y'), odd='\\ud800')\n")
    assert line["id"] == "00000000-0000-0000-0000-000000000000"


def test_terminal_does_not_obey_logged_text() -> None:
    code = "log.info('x\\x1b]52;', error='\\x9b2K', id=1)\ntry:\n    raise ValueError('\\x1b[2K')\n"
    lines = run(code + "except ValueError:\n    log.exception('failed')\n", MINION_LOG_FORMAT="console")
    colours = re.compile(r"\x1b\[[0-9;]*m")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", colours.sub("", lines))
    assert "\\u001b]52;" in lines


@pytest.mark.parametrize(("level", "events"), [("warning", ["b"]), ("DEBUG", ["a", "b"]), ("ERROR", [])])
def test_log_level_is_a_setting(level: str, events: list[str]) -> None:
    lines = logged("log.info('a')\nlog.warning('b')\n", MINION_LOG_LEVEL=level)
    assert [line["event"] for line in lines] == events


def test_terminal_gets_readable_lines() -> None:
    written = run("log.info('started', task='t')\n", MINION_LOG_FORMAT="console")
    assert "started" in written
    assert "task" in written
    assert not written.startswith("{")


def test_parameters_of_statements_are_not_logged() -> None:
    code = """
from sqlalchemy import text
from shared.database.connections import make_engine
engine = make_engine(get_settings())
try:
    with engine.connect() as connection:
        connection.execute(text("SELECT :input"), {"input": SECRET})
except Exception:
    log.exception("failed")
"""
    [line] = logged(code, DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2")
    assert line["event"] == "failed"
    assert SECRET not in json.dumps(line)


# ----------------------------------------------------------------------------------------------------- Sentry


class Receiver(ThreadingHTTPServer):
    """Server that accepts Sentry's envelopes and keeps every byte of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[bytes] = []

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.server_port}/1"

    def events(self) -> list[dict[str, Any]]:
        """Return the error events among the envelopes."""
        lines = [json.loads(line) for envelope in self.received for line in envelope.splitlines() if line]
        return [line for line in lines if "event_id" in line and "level" in line]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append(body)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiving_envelopes() -> Iterator[Receiver]:
    """Run a receiver while the block runs."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


# Each code reports one error; SECRET is user data.
WORK = """
import asyncio, threading
import sentry_sdk
from celery import Celery
from fastapi import FastAPI
from sqlalchemy import text
from shared.database.connections import make_engine

def work(prompt):
    held = {"prompt": prompt}
    try:
        raise KeyError(prompt)
    except KeyError as error:
        error.add_note(prompt)
        raise ValueError(f"cannot use {held}") from error
"""
CAPTURE = "try:\n    work(SECRET)\nexcept ValueError as error:\n    sentry_sdk.capture_exception(error)\n"
CASES = {
    "capture": CAPTURE,
    "structlog": "try:\n    work(SECRET)\nexcept ValueError:\n    log.exception('failed', input=SECRET)\n",
    "logging": "try:\n    work(SECRET)\nexcept ValueError:\n    logging.getLogger('x').exception(SECRET)\n",
    "breadcrumbs": f"log.warning(SECRET)\nlog.info('x', y=SECRET)\nprint(SECRET)\n{CAPTURE}",
    "thread": "thread = threading.Thread(target=work, args=[SECRET])\nthread.start()\nthread.join()\n",
    "celery": "Celery('x', set_as_current=False).task(name='t')(work).apply(args=[SECRET])\n",
    "scope": f"""
sentry_sdk.set_user({{"email": SECRET}})
sentry_sdk.set_context("input", {{"prompt": SECRET}})
sentry_sdk.set_extra("prompt", SECRET)
sentry_sdk.add_breadcrumb(message=SECRET)
sentry_sdk.get_current_scope().set_transaction_name("/v1/agents/" + SECRET)
{CAPTURE}""",
    "database": """
try:
    with make_engine(get_settings()).connect() as connection:
        connection.execute(text("SELECT :input"), {"input": SECRET})
except Exception as error:
    sentry_sdk.capture_exception(error)
""",
    "http": """
app = FastAPI()
@app.post("/{name}")
def endpoint(name: str):
    work(name)
async def call():
    sent = iter([{"type": "http.request", "body": SECRET.encode()}, {"type": "http.disconnect"}])
    async def receive(): return next(sent)
    async def send(message): pass
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/" + SECRET, "raw_path": SECRET.encode(), "query_string": SECRET.encode(), "root_path": "",
             "headers": [(b"authorization", SECRET.encode()), (b"cookie", SECRET.encode())],
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
    try:
        await app(scope, receive, send)
    except ValueError:
        pass
asyncio.run(call())
""",
}
LEFT_OUT = "(left out: a message may quote data)"
LINES = {
    "log.error('failed_unexpectedly', prompt=SECRET)": "failed_unexpectedly",
    "log.error(f'cannot use {SECRET}')": LEFT_OUT,
    "logging.getLogger('other').error('cannot use %s', SECRET)": "cannot use %s",
    "logging.getLogger('other').error(f'cannot use {SECRET}')": f"{LEFT_OUT} other",
    "sentry_sdk.capture_message(SECRET)": LEFT_OUT,
}


@pytest.fixture(scope="module")
def reported() -> dict[str, dict[str, Any]]:
    """Return the event of each case, from one process; no event quotes user data."""
    with receiving_envelopes() as receiver:
        tagged = (
            f"sentry_sdk.set_tag('case', {name!r})\n{code}"
            for name, code in [*CASES.items(), *((line, line) for line in LINES)]
        )
        run(
            WORK + "\n".join(tagged) + "\nsentry_sdk.flush()\n",
            SENTRY_DSN=receiver.dsn,
            MINION_ENVIRONMENT="test",
            DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2",
        )
    assert not [envelope for envelope in receiver.received if SECRET.encode() in envelope]
    return {event["tags"]["case"]: event for event in receiver.events()}


@pytest.mark.parametrize("case", CASES)
def test_error_is_reported_without_its_message(reported: dict[str, dict[str, Any]], case: str) -> None:
    values = reported[case]["exception"]["values"]
    assert {value["value"] for value in values} == {LEFT_OUT}
    assert values[-1]["type"] == ("OperationalError" if case == "database" else "ValueError")
    frames = [frame for value in values for frame in value["stacktrace"]["frames"]]
    assert not [frame for frame in frames if "vars" in frame or "context_line" in frame]


def test_report_names_location_and_process(reported: dict[str, dict[str, Any]]) -> None:
    event = reported["capture"]
    assert [value["type"] for value in event["exception"]["values"]] == ["KeyError", "ValueError"]
    assert event["exception"]["values"][1]["stacktrace"]["frames"][-1]["function"] == "work"
    assert event["tags"]["component"] == "worker"
    assert event["environment"] == "test"
    assert event["release"].startswith("minions@")
    assert not event.keys() & {"server_name", "user", "request", "extra", "breadcrumbs", "transaction"}


@pytest.mark.parametrize(("line", "message"), LINES.items())
def test_log_line_is_reported_without_its_values(reported: dict[str, dict[str, Any]], line: str, message: str) -> None:
    assert reported[line]["logentry"]["message"] == message


OUTBOUND = """
import urllib.request
import httpx2, sentry_sdk
from orchestrator.webhooks.messages import of_test, post
from shared.outbound import guarded_client
url = "{url}"
assert sentry_sdk.get_client().is_active()
with guarded_client(get_settings(), seconds=20) as client:
    client.post(url, content=b"tool").raise_for_status()
httpx2.post(url, content=b"model", trust_env=False).raise_for_status()
urllib.request.urlopen(urllib.request.Request(url, b"library")).close()
assert post(get_settings(), url, [SECRET], "id", of_test("name")).delivered
with sentry_sdk.start_transaction(name="traced"), guarded_client(get_settings(), seconds=20) as client:
    client.post(url, content=b"traced").raise_for_status()
"""


def test_outbound_requests_have_no_sentry_headers() -> None:
    with receiving_envelopes() as sentry, receiving() as receiver:
        run(
            OUTBOUND.format(url=receiver.url).replace("[SECRET]", repr([WEBHOOK_SECRET])),
            SENTRY_DSN=sentry.dsn,
            MINION_ALLOW_PRIVATE_ADDRESSES="127.0.0.1",
        )
    assert [one.body for one in receiver.received if len(one.body) < 10] == [b"tool", b"model", b"library", b"traced"]
    assert len(receiver.received) == 5
    names = {name.lower() for one in receiver.received for name in one.headers}
    assert not names & {"baggage", "sentry-trace", "traceparent"}


def test_invalid_dsn_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**os.environ, "SENTRY_DSN": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "NotConfigured: SENTRY_DSN is not an address like https://key@host/project." in done.stderr


def test_sentry_is_off_without_a_dsn() -> None:
    assert run("import sentry_sdk\nassert not sentry_sdk.get_client().is_active()\n") == ""
