"""Every limit has a separate error, with the limit and the observed value."""

from __future__ import annotations

import select
import time
from typing import Any
from unittest.mock import patch

import pytest

from shared.sandbox import Limits, Sandbox, SandboxFault
from shared.sandbox.parked import ParkedChild


def fault(sandbox: Sandbox, source: str, **options: Any) -> SandboxFault:
    """Return the fault of calling `f` in the source; there must be one."""
    outcome = sandbox.call(source, "f", options.pop("arguments", {}), **options)
    assert outcome.value is None
    assert outcome.error is not None, outcome
    return outcome.error


def test_memory_limit_is_reported(sandbox: Sandbox) -> None:
    error = fault(sandbox, "def f():\n    x = []\n    while True: x.append(bytearray(100_000))", memory_limit=32)
    assert (error.type, error.limit) == ("memory_limit", 32)
    assert error.observed == pytest.approx(32, abs=2)


@pytest.mark.parametrize("limit", [16, 64, 200])
def test_memory_limit_is_precise(sandbox: Sandbox, limit: int) -> None:
    source = """
def f():
    kept = []
    try:
        while True: kept.append(bytearray((1 << 20) - 4096))
    except MemoryError:
        return len(kept)
"""
    assert sandbox.call(source, "f", {}, memory_limit=limit).value == pytest.approx(limit, abs=2)


def test_pages_of_the_interpreter_s_files_do_not_count(sandbox: Sandbox) -> None:
    source = "import unicodedata\ndef f():\n    for n in range(0x110000): unicodedata.name(chr(n), '')"
    assert sandbox.call(source, "f", {}).peak_memory < 300_000


def test_memory_of_the_compiler_counts_in_every_call(sandbox: Sandbox) -> None:
    source = "def f(): return 1\n" + "".join(f"def g{n}(a, b): return [a, b, a + b * {n}]\n" for n in range(5_000))
    for _ in range(3):
        error = fault(sandbox, source, memory_limit=16)
        assert (error.type, error.limit) == ("memory_limit", 16)
    assert sandbox.call(source, "f", {}).value == 1


def test_untouched_memory_counts(sandbox: Sandbox) -> None:
    assert fault(sandbox, "def f(): return len([None] * 10**9)").type == "memory_limit"


def test_swallowed_memory_error_is_harmless(sandbox: Sandbox) -> None:
    source = "def f():\n    try: x = bytearray(1 << 40)\n    except MemoryError: return 'ok'"
    assert sandbox.call(source, "f", {}).value == "ok"


def test_wall_time_limit_is_reported(sandbox: Sandbox) -> None:
    error = fault(sandbox, "import time\ndef f(): time.sleep(60)", timeout=0.2)
    assert (error.type, error.limit) == ("timeout", 0.2)
    assert error.observed is not None
    assert error.observed >= 0.2


def test_deadlock_is_reported_immediately(sandbox: Sandbox) -> None:
    source = "import asyncio\nasync def f(): await asyncio.Event().wait()"
    error = fault(sandbox, source, timeout=60)
    assert (error.type, error.limit) == ("timeout", 60)
    assert "never happen" in error.message


def test_cpu_limit_is_reported(sandbox: Sandbox) -> None:
    error = fault(sandbox, "def f():\n    while True: pass", cpu_limit=0.2, timeout=30)
    assert (error.type, error.limit) == ("cpu_limit", 0.2)
    assert error.observed is not None
    assert error.observed >= 0.2


def test_cpu_limit_applies_after_the_channel_is_closed(bare_sandbox: Sandbox) -> None:
    source = "import os\ndef f():\n    os.close(0)\n    while True: pass"
    error = fault(bare_sandbox, source, check=False, cpu_limit=0.2, timeout=20)
    assert (error.type, error.limit) == ("cpu_limit", 0.2)


def test_deadline_before_the_first_look_is_a_timeout(sandbox: Sandbox) -> None:
    assert fault(sandbox, "import time\ndef f(): time.sleep(60)", timeout=1e-5).type == "timeout"


def test_reply_is_in_time_despite_a_late_reader(sandbox: Sandbox) -> None:
    assert sandbox.call("def f(): return 1", "f", {}).ok

    def delayed_watch(child: ParkedChild, seconds: float) -> None:
        select.select([child.channel], [], [])
        time.sleep(seconds)

    with patch.object(sandbox._server, "watch", delayed_watch):
        outcome = sandbox.call("import time\ndef f():\n    time.sleep(0.1)\n    return 1", "f", {}, timeout=0.5)
    assert outcome.value == 1


def test_sleeping_uses_no_cpu_time(sandbox: Sandbox) -> None:
    source = "import time\ndef f():\n    time.sleep(0.3)\n    return 1"
    assert sandbox.call(source, "f", {}, cpu_limit=0.2).value == 1


def test_output_limit_is_reported(sandbox: Sandbox) -> None:
    error = fault(sandbox, "def f(): return 'x' * 5_000_000")
    assert (error.type, error.limit, error.observed) == ("output_too_large", 4 << 20, 5_000_002)


def test_largest_output_is_accepted() -> None:
    with Sandbox(limits=Limits(output=1000)) as sandbox:
        assert sandbox.call("def f(): return 'x' * 998", "f", {}).ok
        assert fault(sandbox, "def f(): return 'x' * 999").type == "output_too_large"


def test_number_of_values_is_limited(sandbox: Sandbox) -> None:
    source = "def f(n): return [[0] * n, {'a': 1}]"
    assert sandbox.call(source, "f", {"n": 249_995}).ok
    error = fault(sandbox, source, arguments={"n": 249_996})
    assert (error.type, error.limit) == ("output_too_large", 250_000)
    assert "more than 250000 values" in error.message


def test_stdout_limit_is_reported(sandbox: Sandbox) -> None:
    outcome = sandbox.call("def f():\n    while True: print('x' * 1000)", "f", {})
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.limit) == ("stdout_too_large", 64 << 10)
    assert outcome.error.observed is not None
    assert outcome.error.observed > 64 << 10
    assert outcome.stdout.endswith("[cut after 65536 bytes]")


def test_swallowed_stdout_error_is_still_reported(sandbox: Sandbox) -> None:
    source = "def f():\n    try: print('x' * 100_000)\n    except BaseException: pass\n    return 1"
    assert fault(sandbox, source).type == "stdout_too_large"


def test_stdout_limit_counts_bytes(sandbox: Sandbox) -> None:
    outcome = sandbox.call("def f(): print('日' * 40_000)", "f", {})
    assert outcome.error is not None
    assert outcome.error.type == "stdout_too_large"


def test_recursion_is_limited(sandbox: Sandbox) -> None:
    error = fault(sandbox, "def f(): return f()")
    assert (error.type, error.limit) == ("recursion", 1000)


def test_output_depth_is_limited(sandbox: Sandbox) -> None:
    nested = "def f(n):\n    x = 1\n    for _ in range(n): x = [x]\n    return x"
    assert sandbox.call(nested, "f", {"n": 100}).ok
    error = fault(sandbox, nested, arguments={"n": 101})
    assert (error.type, error.limit) == ("invalid_output", 100)


def test_input_depth_is_limited(sandbox: Sandbox) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert fault(sandbox, "def f(x): return 1", arguments={"x": value}).type == "invalid_input"


def test_source_size_is_limited(sandbox: Sandbox) -> None:
    error = fault(sandbox, "#" * (256 << 10) + "\ndef f(): return 1")
    assert (error.type, error.limit) == ("source_too_large", 256 << 10)


def test_input_size_is_limited(sandbox: Sandbox) -> None:
    error = fault(sandbox, "def f(x): return 1", arguments={"x": "y" * (5 << 20)})
    assert (error.type, error.limit) == ("input_too_large", 4 << 20)


@pytest.mark.parametrize(
    ("source", "type_"),
    [
        ("def f(: pass", "syntax_error"),
        ("def f(): return '\0'", "syntax_error"),
        ("def f(): return '\ud800'", "syntax_error"),
        ("def g(): pass", "no_entrypoint"),
        ("f = 3", "no_entrypoint"),
        ("import os\ndef f(): pass", "import_denied"),
        ("from . import x\ndef f(): pass", "import_denied"),
        ("def f(): return open('/etc/passwd')", "forbidden_name"),
        ("def f(): return f.__globals__", "forbidden_name"),
        ("def f(): raise ValueError('x')", "exception"),
        ("def f(): raise SystemExit", "exception"),
        ("def f(): raise ValueError('a\\0b\\ud800')", "exception"),
        ("def f(x): pass", "exception"),
        ("def f(): return {1, 2}", "invalid_output"),
        ("def f(): return float('nan')", "invalid_output"),
        ("def f(): return '\\ud800'", "invalid_output"),
        ("def f(): return 'a\\0b'", "invalid_output"),
        ("def f(): return 10 ** 5000", "invalid_output"),
        ("def f(): return (x for x in 'ab')", "invalid_output"),
        ("def f():\n    x = []\n    x.append(x)\n    return x", "invalid_output"),
        ("def f(): return " + "(" * 250 + ")" * 250, "syntax_error"),
        ("def f(): return " + "-" * 50_000 + "1", "recursion"),
        ("def f(x=0):\n    if x: return 0\n" + "    elif x: return 1\n" * 9_000, "recursion"),
        (f"def f({'x' * 70_000}):\n    global {'x' * 70_000}", "syntax_error"),
        (f"import {'x' * 70_000}\ndef f(): pass", "import_denied"),
    ],
)
def test_fault_has_the_right_type(sandbox: Sandbox, source: str, type_: str) -> None:
    assert fault(sandbox, source).type == type_


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_non_json_arguments_are_refused(sandbox: Sandbox, value: object) -> None:
    assert fault(sandbox, "def f(x): return 1", arguments={"x": value}).type == "invalid_input"


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": 1e9}, {"memory_limit": -1}, {"cpu_limit": float("nan")}]
)
def test_invalid_limits_raise_value_error(sandbox: Sandbox, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        sandbox.call("def f(): return 1", "f", {}, **options)


def test_arguments_of_other_types_raise(sandbox: Sandbox) -> None:
    with pytest.raises(TypeError):
        sandbox.call("def f(x): return 1", "f", {"x": object()})
    with pytest.raises(TypeError, match="not a string"):
        sandbox.call("def f(x): return 1", "f", {}, allowed_imports="json")


def test_findings_with_long_names_are_reported(sandbox: Sandbox) -> None:
    source = "".join(f"import {'é' * 3_000}{number}\n" for number in range(20)) + "def f(): pass"
    assert {problem.code for problem in sandbox.validate(source, "f")} == {"import_denied"}


def test_non_json_output_is_named(sandbox: Sandbox) -> None:
    error = fault(sandbox, "from decimal import Decimal\ndef f(): return [Decimal(1)]")
    assert error.type == "invalid_output"
    assert "of type Decimal" in error.message
    assert "convert" in error.message
