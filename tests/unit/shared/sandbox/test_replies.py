from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sandbox.confined import wire
from shared.sandbox.outcome import Limits, SandboxFault
from shared.sandbox.replies import LONGEST_SLEEP, Inbox, Reply, Wish

LIMITS = Limits(output=1000, stdout=100, arguments=500)


def receive(*chunks: bytes, of_program: bool = False) -> Reply:
    inbox = Inbox(LIMITS, of_program=of_program)
    for chunk in chunks:
        if inbox.add(chunk):
            break
    return inbox.reply()


def framed(kind: bytes, body: bytes, printed: bytes = b"") -> bytes:
    return wire.REPLY.pack(kind, len(body), len(printed)) + body + printed


def check(reply: Reply) -> None:
    """Check the properties of a reply that the host relies on."""
    assert isinstance(reply.stdout, str)
    json.dumps(reply.value, allow_nan=False).encode()
    for wish in reply.wishes or ():
        assert isinstance(wish.name, str)
        assert wish.line is None or (type(wish.line) is int and wish.line >= 0)
        json.dumps(wish.arguments, allow_nan=False).encode()
    assert reply.asleep is None or (type(reply.asleep) is float and 0 < reply.asleep <= LONGEST_SLEEP)
    if reply.fault is not None:
        assert isinstance(reply.fault, SandboxFault)
        assert reply.fault.type in wire.FAULT_TYPES
        assert reply.value is None
        json.dumps(reply.fault.as_dict(), allow_nan=False)


@given(st.lists(st.binary(), max_size=5), st.booleans())
def test_any_bytes_give_a_reply(chunks: list[bytes], of_program: bool) -> None:
    check(receive(*chunks, of_program=of_program))


KINDS = st.sampled_from([b"V", b"F", b"P", b"T", b"S", b"X"])


@given(KINDS, st.binary(max_size=300), st.binary(max_size=150), st.binary(), st.booleans())
def test_any_frame_gives_a_reply(kind: bytes, body: bytes, printed: bytes, extra: bytes, of_program: bool) -> None:
    check(receive(framed(kind, body, printed) + extra, of_program=of_program))


LENGTHS = st.integers(0, 2**32 - 1)


@given(st.binary(min_size=1, max_size=1), LENGTHS, LENGTHS, st.binary(), st.booleans())
def test_any_lengths_give_a_reply(kind: bytes, body: int, printed: int, rest: bytes, of_program: bool) -> None:
    check(receive(struct.pack("!cII", kind, body, printed) + rest, of_program=of_program))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
NAMES = st.sampled_from(["type", "message", "line", "column", "traceback", "limit", "observed", "other"])


@given(st.dictionaries(NAMES, JSON | st.sampled_from(sorted(wire.FAULT_TYPES))))
def test_any_fault_gives_a_reply(facts: dict[str, object]) -> None:
    check(receive(framed(wire.FAULT, json.dumps(facts).encode())))


@given(st.lists(JSON | st.lists(JSON, min_size=4, max_size=4)))
def test_any_findings_give_a_reply(rows: list[object]) -> None:
    reply = receive(framed(wire.PROBLEMS, json.dumps(rows).encode()))
    check(reply)
    assert all(isinstance(problem.message, str) for problem in reply.problems)


@given(st.lists(JSON | st.tuples(st.just("f"), JSON, st.dictionaries(st.text(), JSON, max_size=3)), max_size=4))
def test_any_calls_give_a_reply(rows: list[object]) -> None:
    check(receive(framed(wire.CALLS, json.dumps(rows).encode()), of_program=True))


@given(JSON)
def test_any_sleep_gives_a_reply(seconds: object) -> None:
    check(receive(framed(wire.ASLEEP, json.dumps(seconds).encode()), of_program=True))


def test_calls_are_received() -> None:
    reply = receive(framed(wire.CALLS, b'[["f", 3, {"a": [1]}], ["g", null, {}]]', b"out"), of_program=True)
    assert reply == Reply(wishes=(Wish("f", 3, {"a": [1]}), Wish("g", None, {})), stdout="out")
    assert receive(framed(wire.ASLEEP, b"1.5"), of_program=True) == Reply(asleep=1.5)


@pytest.mark.parametrize("kind", [wire.CALLS, wire.ASLEEP])
def test_function_makes_no_calls(kind: bytes) -> None:
    for data in (framed(kind, b"[]"), framed(kind, b"1"), struct.pack("!cII", kind, 1 << 30, 0)):
        fault = receive(data).fault
        assert fault is not None
        assert fault.type == "security"


@given(JSON, st.integers(1, 40))
def test_reply_may_arrive_in_pieces(value: object, size: int) -> None:
    data = framed(wire.VALUE, json.dumps(value).encode(), b"out")
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert receive(*pieces) == receive(data)


def test_value_reply_is_received() -> None:
    assert receive(framed(wire.VALUE, b'{"a": [1]}', "ü".encode())) == Reply(value={"a": [1]}, stdout="ü")


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (b"", "crashed"),
        (b"V", "crashed"),
        (framed(b"V", b"[1]")[:-1], "crashed"),
        (framed(b"V", b"[1]") + b"!", "security"),
        (framed(b"V", b"1" * 1001), "output_too_large"),
        (framed(b"V", b"1", b"x" * 101), "security"),
        (framed(b"F", b'{"type": "crashed"}'), "security"),
        (framed(b"F", b'{"type": "exception"}'), "exception"),
        (framed(b"Q", b""), "security"),
    ],
    ids=range(9),
)
def test_fault_replies_are_received(data: bytes, type_: str) -> None:
    fault = receive(data).fault
    assert fault is not None
    assert fault.type == type_


def test_nul_in_printed_text_is_replaced() -> None:
    assert receive(framed(wire.VALUE, b"1", b"a\0b\xff")).stdout == "a\ufffdb\ufffd"
