"""Attacks by programs: all of the corpus, and attacks on the channel to the host."""

from __future__ import annotations

import json
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.sandbox import (
    Asleep,
    Calls,
    Event,
    Failed,
    Finished,
    Outcome,
    Program,
    ProgramLimits,
    Reply,
    Sandbox,
    exchange,
)
from tests.sandbox.run_corpus import DANGEROUS, as_program, attack_all

ATTACKS = json.loads((Path(__file__).parent / "data" / "attacks.json").read_text(encoding="utf-8"))
BLOCKS = "time.sleep would stop the whole program"
FUNCTIONS = {"double": ("number",)}
NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def unchecked_sandbox() -> Iterator[Sandbox]:
    """Sandbox whose programs can use everything that the attacks import."""
    with Sandbox(preload=DANGEROUS) as started:
        yield started


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("check", [True, False], ids=["policy", "kernel layers alone"])
def test_attacks_of_the_corpus_fail_in_programs(
    sandbox: Sandbox, unchecked_sandbox: Sandbox, check: bool, step: int
) -> None:
    def run(sandbox: Sandbox, attack: dict[str, Any], check: bool) -> Outcome:
        outcome = as_program(sandbox, attack, check)
        refused = outcome.error is not None and BLOCKS in outcome.error.message
        # There the attack is over: the program has no time that could pass.
        return as_program(sandbox, {**attack, "code": "def f():\n    while True: pass"}, True) if refused else outcome

    attacked = sandbox if check else unchecked_sandbox
    attacks = [attack for attack in ATTACKS if attack["must_hold"].startswith("policy") == check][::step]
    assert attack_all(attacked, [{"repeat": 1, **attack} for attack in attacks], check, run) == []


def begin(sandbox: Sandbox, source: str, **limits: Any) -> Program:
    """Prepare a program with all of Python available."""
    sizes = ProgramLimits(**{"timeout": 5.0, **limits})
    return sandbox.program(source, FUNCTIONS, seed="s", now=NOW, limits=sizes, check=False)


def run(sandbox: Sandbox, source: str, **limits: Any) -> Event:
    """Run such a program to its end."""
    with begin(sandbox, source, **limits) as program:
        event = program.start()
        while isinstance(event, Calls | Asleep):
            event = program.resume([Reply(id, 1) for id in event.waiting] if isinstance(event, Calls) else [])
    return event


def failure_of(event: Event) -> str:
    assert isinstance(event, Failed), event
    return event.fault.type


def message(kind: bytes, body: bytes, printed: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("!cII", kind, len(body) if length is None else length, len(printed)) + body + printed


def writes(*parts: bytes) -> str:
    """Return a program that sends these bytes, then waits for its end."""
    return f"import os\nfor part in {parts!r}:\n    os.write(0, part)\nwhile os.read(0, 1): pass"


ONE = b'[["double",1,{"number":1}]]'


@pytest.mark.parametrize(
    ("sent", "type_"),
    [
        (message(b"F", b'{"type": "unavailable", "message": "x"}'), "security"),
        (message(b"F", b'{"type": "too_many_calls", "message": "x"}'), "security"),
        (message(b"P", b"[]"), "security"),
        (message(b"C", b"code"), "security"),
        (message(b"X", b"1"), "security"),
        (message(b"T", b"[]"), "security"),
        (message(b"T", b"{}"), "security"),
        (message(b"T", b"7"), "security"),
        (message(b"T", b"null"), "security"),
        (message(b"T", b'["abc"]'), "security"),
        (message(b"T", b'[["double",1]]'), "security"),
        (message(b"T", b'[["double",1,[]]]'), "security"),
        (message(b"T", b'[["double",1,{},4]]'), "security"),
        (message(b"T", b'[[["double"],1,{}]]'), "security"),
        (message(b"T", b'[["other",1,{}]]'), "security"),
        (message(b"T", b'[["__class__",1,{}]]'), "security"),
        (message(b"T", ONE) + b"x", "security"),
        (message(b"T", ONE) + message(b"V", b"1"), "security"),
        (message(b"T", ONE) * 2, "security"),
        (message(b"T", b'[["double",1,{"number":NaN}]]'), "invalid_output"),
        (message(b"T", b'[["double",1,{"number":1e999}]]'), "invalid_output"),
        (message(b"T", b'[["double",1,{"number":"\\ud800"}]]'), "invalid_output"),
        (message(b"T", b'[["double",1,{"number":"\\u0000"}]]'), "invalid_output"),
        (message(b"T", b'[["double",1,{"number":' + b"9" * 5000 + b"}]]"), "invalid_output"),
        (message(b"T", b"[" * 5000), "invalid_output"),
        (message(b"T", b"\xff"), "invalid_output"),
        (message(b"T", b""), "invalid_output"),
        (message(b"T", b"[" + b",".join([ONE[1:-1]] * 200) + b"]"), "too_many_calls"),
        (message(b"T", b"[" + b",".join([ONE[1:-1]] * 50) + b"]"), "too_many_calls"),
        (message(b"T", b"", length=1 << 30), "arguments_too_large"),
        (message(b"V", b"", length=1 << 30), "output_too_large"),
        (message(b"S", b"", length=1 << 30), "security"),
        (message(b"T", b"[]", b"x" * 70_000), "security"),
        (message(b"S", b"NaN"), "security"),
        (message(b"S", b"-1"), "security"),
        (message(b"S", b"0"), "security"),
        (message(b"S", b"1e99"), "security"),
        (message(b"S", b"1" * 4000), "security"),
        (message(b"S", b"true"), "security"),
        (message(b"S", b'"1"'), "security"),
    ],
    ids=range(40),
)
def test_forged_message_is_refused(bare_sandbox: Sandbox, sent: bytes, type_: str) -> None:
    begun = time.monotonic()
    assert failure_of(run(bare_sandbox, writes(sent))) == type_
    assert time.monotonic() - begun < 4  # it does not wait for the time limit


def test_channel_can_be_reached_without_the_system(sandbox: Sandbox) -> None:
    head = "send = asyncio.get_running_loop()._selector._line.send\n"
    for sent, type_ in ((message(b"T", b"[]"), "security"), (message(b"F", b"[]"), "security")):
        with sandbox.program(f"{head}send({sent!r})\nawait double(1)", FUNCTIONS, seed="s", now=NOW) as program:
            assert failure_of(program.start()) == type_


@pytest.mark.parametrize("dense", [b"[],", b"{},", b'{"":0},', b"0,", b'"",'])
def test_dense_call_is_refused(bare_sandbox: Sandbox, dense: bytes) -> None:
    head, tail = b'[["double",1,{"number":[', b"0]}]]"
    body = head + dense * ((1_000_000 - len(head) - len(tail)) // len(dense)) + tail
    source = f"import os\ndata = {message(b'T', b'', length=len(body))!r} + {head!r} + {dense!r} * "
    source += f"{(1_000_000 - len(head) - len(tail)) // len(dense)} + {tail!r}\n"
    source += "while data: data = data[os.write(0, data):]\nos.read(0, 1)"
    event = run(bare_sandbox, source, arguments=1 << 20)
    assert failure_of(event) in ("arguments_too_large", "security"), event


@pytest.mark.parametrize("late", [message(b"V", b"7"), message(b"T", ONE), b"x"], ids=["value", "call", "byte"])
def test_message_while_the_host_answers_is_refused(bare_sandbox: Sandbox, late: bytes) -> None:
    source = (
        f"import os\nos.write(0, {message(b'T', ONE)!r})\nsum(range(2_000_000))\nos.write(0, {late!r})\nos.read(0, 1)"
    )
    with begin(bare_sandbox, source) as program:
        event = program.start()
        assert isinstance(event, Calls)
        assert select.select([program._child.channel], [], [], 5)[0]
        assert failure_of(program.resume([Reply(1, 2)])) == "security"
        assert program._child is None


def test_forged_value_is_at_most_the_program_s_own(bare_sandbox: Sandbox) -> None:
    source = f"import os\nawait double(1)\nos.write(0, {message(b'V', b'7', b'printed')!r})\nwhile True: pass"
    with begin(bare_sandbox, source) as program:
        program.start()
        child = program._child
        assert program.resume([Reply(1, 2)]) == Finished(7, "printed")
        assert child._closed
    assert program.duration < 4


def test_program_that_steals_its_replies_gains_nothing(bare_sandbox: Sandbox) -> None:
    source = f"import os\nos.write(0, {message(b'T', ONE)!r})\nstolen = os.read(0, 100)\nreturn stolen[4:].decode()"
    with begin(bare_sandbox, source) as program:
        assert isinstance(program.start(), Calls)
        event = program.resume([Reply(1, "mine")])
    assert event == Finished('[null,[[1, true, "mine"]]]', "")


@pytest.mark.parametrize("then", ["while True: pass", "while True: os.write(0, bytes(65536))"])
def test_program_that_does_not_read_its_replies_is_killed(bare_sandbox: Sandbox, then: str) -> None:
    source = f"import os\nos.write(0, {message(b'T', ONE)!r})\n{then}"
    with begin(bare_sandbox, source, timeout=0.5) as program:
        assert isinstance(program.start(), Calls) or "write" in then
        if program._child is not None:
            assert failure_of(program.resume([Reply(1, "x" * 3_000_000)])) in ("timeout", "security")


def test_counters_of_the_child_mean_nothing(bare_sandbox: Sandbox) -> None:
    head = "exchange = asyncio.get_running_loop()._selector\nexchange._room = exchange._max_arguments = 10**9\n"
    many = run(bare_sandbox, f"{head}await asyncio.gather(*[double(n) for n in range(50)])")
    assert failure_of(many) == "too_many_calls"
    large = run(bare_sandbox, f"{head}await double('x' * 2_000_000)")
    assert failure_of(large) == "arguments_too_large"
    again = f"{head}await double(1)\nexchange._made = 5\nawait double(2)\nreturn await double(3)"
    assert failure_of(run(bare_sandbox, again)) == "exception"


@pytest.mark.parametrize(
    ("source", "type_"),
    [
        ("while True: os.write(0, bytes(65536))", "security"),
        ("while True:\n    os.write(0, b'T')", "arguments_too_large"),
        ("await double(1)\nwhile True: os.write(0, bytes(65536))", "security"),
        (f"for byte in {message(b'T', b'[' + b' ' * 9999)!r}:\n    os.write(0, bytes([byte]))", "any"),
        ("os.close(0)\nwhile True: pass", "timeout"),
        ("await double(1)\nos.close(0)\nwhile True: pass", "timeout"),
        ("os._exit(0)", "crashed"),
        ("await double(1)\nos._exit(0)", "crashed"),
        ("os.abort()", "crashed"),
        ("await double(1)\nctypes.string_at(0)", "crashed"),
        ("await double(1)\nctypes.CDLL(None).syscall(57)", "security"),
        ("class D:\n    def __del__(self):\n        while True: pass\nd = D()\nawait double(1)\ndel d", "timeout"),
        ("while True:\n    try:\n        await asyncio.sleep(0)\n    except BaseException: pass", "timeout"),
        ("while True:\n    try:\n        await double(1)\n    except BaseException: pass", "too_many_calls"),
        ("tasks = [asyncio.create_task(asyncio.sleep(9)) for _ in range(10**9)]", "any"),
        ("def f():\n    while True: yield\nclass A:\n    def __await__(self): return f()\nawait A()", "timeout"),
        ("asyncio.get_running_loop().stop()\nawait double(1)", "exception"),
        ("asyncio.get_running_loop().close()", "exception"),
        ("asyncio.current_task().cancel()\nawait double(1)", "exception"),
        ("asyncio.get_running_loop()._selector.select = lambda timeout: []\nawait double(1)", "timeout"),
        ("asyncio.get_running_loop()._selector.select = lambda timeout: [1]\nawait double(1)", "exception"),
        ("class S(str):\n    def encode(self, *_): return b'}'\nreturn await double({S('a'): S('b')})", None),
        ("class D(dict):\n    def items(self): return [('n', float('nan'))]\nreturn await double(D(a=1))", "exception"),
        ("return await double({1: 2, None: 3, True: 4, 1.5: 5})", None),
        ("return await double({(1, 2): 3})", "exception"),
        ("sys.stdout = None\nreturn await double(1)", None),
        ("sys.stdout.take = None\nreturn await double(1)", "crashed"),
        ("json.dumps = json.loads = json.JSONEncoder.encode = None\nreturn await double(1)", "crashed"),
        ("sys.modules.clear()\nreturn await double(1)", None),
        ("for o in gc.get_objects():\n    if type(o) is dict: o.clear()\nreturn await double(1)", "any"),
        ("sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()", "any"),
        ("raise BaseExceptionGroup('g', [GeneratorExit(), SystemExit(3)])", "exception"),
        ("raise SystemExit", "exception"),
        ("raise KeyboardInterrupt", "exception"),
        ("raise StopAsyncIteration", "exception"),
    ],
)  # fmt: skip
def test_odd_program_ends_cleanly(bare_sandbox: Sandbox, source: str, type_: str | None) -> None:
    head = "import asyncio, ctypes, gc, json, os, sys\n"
    event = run(bare_sandbox, head + source, timeout=0.5, calls=20)
    if type_ == "any":
        assert isinstance(event, Finished) or failure_of(event) != "unavailable"
    else:
        assert isinstance(event, Finished) if type_ is None else failure_of(event) == type_, event
    assert bare_sandbox.call("def f(): return 'fine'", "f", {}).value == "fine"


def test_flood_costs_the_host_little(bare_sandbox: Sandbox) -> None:
    begun = time.process_time()
    source = "import os\nos.write(0, b'T' + (1 << 17).to_bytes(4) + bytes(4))\nfor _ in range(9999): os.write(0, b'x')"
    with begin(bare_sandbox, source, timeout=1.0) as program:
        assert failure_of(program.start()) == "timeout"
    assert time.process_time() - begun < 0.5


def test_time_used_while_the_host_answers_counts(bare_sandbox: Sandbox) -> None:
    source = f"import os\nos.write(0, {message(b'T', ONE)!r})\nwhile True: pass"
    with begin(bare_sandbox, source, cpu=0.2) as program:
        assert isinstance(program.start(), Calls)
        deadline = time.monotonic() + 5
        while program._child.cpu_time() <= 0.2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert failure_of(program.resume([Reply(1, 2)])) == "cpu_limit"


def test_idling_between_calls_counts(bare_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HOST_DELAY", 0.05)
    source = "import threading\nwhile True:\n    threading.Event().wait(0.2)\n    await double(1)"
    assert failure_of(run(bare_sandbox, source, timeout=0.5)) == "timeout"


def test_kernel_ends_a_program_that_the_host_keeps_waiting(bare_sandbox: Sandbox) -> None:
    source = f"import os\nos.write(0, {message(b'T', ONE)!r})\nwhile True: pass"
    with begin(bare_sandbox, source, timeout=0.5) as program:
        assert isinstance(program.start(), Calls)
        assert program._child.has_ended(60)
        assert isinstance(program.resume([Reply(1, 2)]), Failed)


def test_program_sees_no_descriptor_and_no_secret(bare_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "hunter2-of-the-host")
    source = """
import ctypes, gc, os
libc = ctypes.CDLL(None, use_errno=True)
await double(1)
kept = [repr(o) for o in gc.get_objects() if type(o) is dict]
return [
    [n for n in range(1, 300) if libc.close(n) == 0 or ctypes.get_errno() != 9],
    [name for name in os.environ if not name.endswith("_THREADS")],
    any("hunter2" in text for text in kept),
]
"""
    with Sandbox(preload=("os", "ctypes", "gc", "sys")) as fresh:
        assert run(fresh, source) == Finished([[], [], False], "")
