"""Any item in a capability's queue: our messages are read, everything else is refused with one error type."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual import Channel, Message

from shared import broker
from shared.settings import Settings
from shared.tasks.envelopes import Foreign
from shared.tasks.lifecycle import Dispatched
from workers.run_messages import LARGEST, LARGEST_PACK, LAST_CLAIM, Entry, RunMessage, read, write

TASK = UUID("01a223e6-c97c-7343-85b3-d00b41650f94")

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**30, -1, "abc", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
task: dict[str, Any] = {
    "claim": st.integers(0, LAST_CLAIM),
    "time_limit": st.integers(1, 90_000),
    "soft_time_limit": st.integers(1, 86_400),
    "agent_name": st.from_regex(r"\A[A-Za-z][A-Za-z0-9_.-]{0,99}\Z"),
}
others = st.lists(
    st.builds(Entry, task_id=st.uuids(version=4), **task), max_size=5, unique_by=lambda each: each.task_id
)
messages = st.builds(RunMessage, version=st.integers(1, 5), task_id=st.uuids(version=1), **task) | st.builds(
    RunMessage, version=st.just(1), task_id=st.uuids(version=1), **task, others=others.map(tuple)
)


def item(**changes: Any) -> dict[str, Any]:
    """Return a valid message as an object; `headers` and `fields` (the arguments) are merged into it."""
    good = json.loads(write(RunMessage(1, TASK, 0, 330, 300, "Act"), "work"))
    good["headers"] |= changes.pop("headers", {})
    if "fields" in changes:
        fields = {"v": 1, "task_id": str(TASK), "claim": 0} | changes.pop("fields")
        good["body"] = b64encode(json.dumps([[], fields, {}]).encode()).decode()
    return {**good, **changes}


@given(messages)
def test_written_message_is_read(message: RunMessage) -> None:
    assert read(write(message, "work")) == message


@pytest.mark.parametrize("has_model", [False, True])
def test_message_of_the_orchestrator_is_read(has_model: bool) -> None:
    app = broker.make_app(Settings(redis_url="redis://127.0.0.1:1"))
    sent = broker._message(app, Dispatched(TASK, 6, "work", "Act", 300, 330, 0, has_model))
    raw = {
        "body": b64encode(json.dumps(sent.body).encode()).decode(),
        "content-type": "application/json",
        "headers": sent.headers,
        "properties": {**sent.properties, "body_encoding": "base64"},
    }
    found = read(json.dumps(raw).encode())
    assert found == RunMessage(1, TASK, 6, 330, 300, "Act", has_model)
    ours = json.loads(write(found, "work"))
    assert {name: sent.headers[name] for name in ours["headers"] if name != "parent_id"} == {
        name: value for name, value in ours["headers"].items() if name != "parent_id"
    }


def test_pack_of_the_orchestrator_is_read() -> None:
    app = broker.make_app(Settings(redis_url="redis://127.0.0.1:1"))
    pack = [Dispatched(UUID(int=n), n, "work", "A" * 100, 300 + n, 330 + n, 0) for n in range(LARGEST_PACK)]
    sent = broker._message(app, *pack)
    raw = {
        "body": b64encode(json.dumps(sent.body).encode()).decode(),
        "content-type": "application/json",
        "headers": sent.headers,
        "properties": {**sent.properties, "body_encoding": "base64"},
    }
    found = read(json.dumps(raw).encode())
    assert [found.task_id, *(other.task_id for other in found.others)] == [each.task_id for each in pack]
    assert found.others[4] == Entry(UUID(int=5), 5, 335, 305, "A" * 100)
    assert read(write(found, "work")) == found


OTHER = [str(UUID(int=1)), 3, 330, 300, "Act"]


@pytest.mark.parametrize(
    "pack",
    [
        [], {}, 1, "x", [1], [[]], [OTHER[:4]], [[*OTHER, 1]], [OTHER, OTHER], [[str(TASK), *OTHER[1:]]],
        [[OTHER[0], 10**30, *OTHER[2:]]], [[OTHER[0], -1, *OTHER[2:]]], [[OTHER[0], True, *OTHER[2:]]],
        [[OTHER[0], 1.5, *OTHER[2:]]], [[*OTHER[:2], 0, 300, "Act"]], [[*OTHER[:2], 10**9, 300, "Act"]],
        [[*OTHER[:4], "no name!"]], [[*OTHER[:4], None]], [["x" * 36, *OTHER[1:]]], [[None, *OTHER[1:]]],
        [OTHER] * 1_000_000, [[str(UUID(int=n)), *OTHER[1:]] for n in range(1, LARGEST_PACK + 1)],
        [[[[[]]]]], [{"task_id": str(TASK)}],
    ],
)  # fmt: skip
def test_hostile_pack_is_refused(pack: Any) -> None:
    with pytest.raises(Foreign):
        read(json.dumps(item(headers={"pack": pack})).encode())


def test_pack_for_the_lane_is_refused() -> None:
    read(json.dumps(item(headers={"pack": [OTHER], "has_model": False})).encode())
    with pytest.raises(Foreign):
        read(json.dumps(item(headers={"pack": [OTHER], "has_model": True})).encode())


def test_pack_of_one_task_is_refused() -> None:
    message = item(headers={"task": "minion.run_pack"})
    with pytest.raises(Foreign):
        read(json.dumps(message).encode())


@given(st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(Foreign):
        read(raw)


@given(anything)
def test_arbitrary_json_is_refused(value: Any) -> None:
    with pytest.raises(Foreign):
        read(json.dumps(value).encode())


def survives_kombu(raw: bytes) -> None:
    """Read an item; kombu and Celery must be able to take every accepted one."""
    try:
        message = read(raw)
    except Foreign:
        return
    written = json.loads(write(message, "work"))
    headers = Message(written, channel=FakeChannel()).headers
    assert headers["timelimit"] == [message.time_limit, message.soft_time_limit]
    assert all(type(limit) is int and 1 <= limit <= 90_000 for limit in headers["timelimit"])
    assert headers["id"] == f"{message.task_id}.{message.claim + 1}"
    assert (headers["task"], headers["eta"], headers["expires"]) == ("minion.run", None, None)
    assert 0 <= message.claim <= LAST_CLAIM


class FakeChannel:
    """The part of a channel that a message uses."""

    codecs = Channel.codecs
    decode_body = Channel.decode_body


@pytest.mark.parametrize("name", [*item()["headers"], "compression", "callbacks", "stamps", "stamped_headers"])
@given(value=anything)
def test_hostile_header_is_refused_or_harmless(name: str, value: Any) -> None:
    survives_kombu(json.dumps(item(headers={name: value})).encode())


@pytest.mark.parametrize("name", [*item()])
@given(value=anything)
def test_hostile_field_is_refused_or_harmless(name: str, value: Any) -> None:
    survives_kombu(json.dumps(item() | {name: value}).encode())


@pytest.mark.parametrize("name", ["v", "task_id", "claim", "more"])
@given(value=anything)
def test_hostile_argument_is_refused_or_harmless(name: str, value: Any) -> None:
    survives_kombu(json.dumps(item(fields={name: value})).encode())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"headers": {"task": "celery.map"}}, "not a minion.run message"),
        ({"headers": {"task": ["minion.run"]}}, "not a minion.run message"),
        ({"headers": {"timelimit": "abc"}}, "timelimit"),
        ({"headers": {"timelimit": [0.1, 0.1]}}, "hard"),
        ({"headers": {"timelimit": [True, True]}}, "hard"),
        ({"headers": {"timelimit": [1e9, 1]}}, "hard"),
        ({"headers": {"timelimit": None}}, "timelimit"),
        ({"headers": {"shadow": "\x1b]52;c;aGk=\x07"}}, "name of an agent"),
        ({"headers": {"compression": "application/x-gzip"}}, "not plain JSON"),
        ({"content-type": "application/x-python-serialize"}, "not plain JSON"),
        ({"fields": {"claim": 10**30}}, "claim"),
        ({"fields": {"claim": -1}}, "claim"),
        ({"fields": {"claim": True}}, "claim"),
        ({"fields": {"claim": LAST_CLAIM + 1}}, "claim"),
        ({"fields": {"task_id": "x"}}, "task_id"),
        ({"fields": {"task_id": f"{{{TASK}}}"}}, "task_id"),
        ({"fields": {"more": 1}}, "unknown keyword arguments"),
        ({"body": b64encode(b"[[1], {}, {}]").decode()}, "no keyword arguments"),
        ({"body": b64encode(b"[" * 5000).decode()}, "not JSON"),
        ({"body": "!"}, "encoding is broken"),
        ({"body": "\ud800", "properties": {}}, "encoding is broken"),
        ({"properties": {"body_encoding": "rot13"}}, "encoding is unknown"),
        ({"properties": None}, "properties"),
    ],
)
def test_forgery_is_refused_with_the_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Foreign, match=why):
        read(json.dumps(item(**changes)).encode())


def test_compression_bomb_is_refused_without_unpacking() -> None:
    body = b64encode(zlib.compress(b"[" * 10_000_000)).decode()
    with pytest.raises(Foreign, match="plain"):
        read(json.dumps(item(body=body, headers={"compression": "application/x-gzip"})).encode())
    with pytest.raises(Foreign, match="larger"):
        read(b" " * (LARGEST + 1))


def test_arguments_of_a_later_release_are_accepted() -> None:
    assert read(json.dumps(item(fields={"v": 2, "more": [1]})).encode()).version == 2
