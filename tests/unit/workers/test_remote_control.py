"""Workers answer the questions of monitors and take no orders over Celery's remote control."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from celery.worker.control import Panel
from flower.inspector import Inspector
from hypothesis import given
from hypothesis import strategies as st

from shared.tasks.envelopes import Foreign
from tests.unit.workers.test_run_messages import anything
from workers.remote_control import READING, Command, handlers, read, write

GOOD = Command("stats", {}, ["worker@host"], "6fe2", "41c0")


def mail(**changes: Any) -> bytes:
    """Return a valid command with some fields changed."""
    fields = {
        "method": "stats",
        "arguments": {},
        "destination": ["worker@host"],
        "pattern": None,
        "matcher": None,
        "ticket": "41c0",
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "6fe2"},
    } | changes
    return json.dumps(json.loads(write(GOOD)) | {"body": b64encode(json.dumps(fields).encode()).decode()}).encode()


def test_command_is_read() -> None:
    assert read(mail()) == read(write(GOOD)) == GOOD
    assert read(mail(reply_to=None, ticket=None, destination=None)) == Command("stats", {}, None, None, None)


@given(st.binary(max_size=2000) | anything.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_mail_is_refused(raw: bytes) -> None:
    with pytest.raises(Foreign):
        read(raw)


@pytest.mark.parametrize("name", ["method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to"])
@given(value=anything)
def test_hostile_field_is_refused_or_harmless(name: str, value: Any) -> None:
    try:
        command = read(mail(**{name: value}))
    except Foreign:
        return
    assert command.method in Panel.data
    assert isinstance(command.arguments, dict)
    assert command.destination is None or all(isinstance(each, str) for each in command.destination)


def test_pattern_is_refused() -> None:
    with pytest.raises(Foreign, match="patterns"):
        read(mail(pattern="(a+)+$", matcher="pcre", destination=None))


def test_monitors_can_only_read() -> None:
    taken = {name for name, handler in handlers().items() if handler is Panel.data[name]}
    assert taken == READING
    assert set(Inspector.inspect_methods) <= READING
    changing = {name for name, about in Panel.meta.items() if about.type == "control"}
    assert READING & changing == {"enable_events"}
    assert "minion cancel" in handlers()["revoke"](None, task_id="x")["error"]
