"""Promises to honest callers, beyond the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.sandbox import DEFAULT_IMPORTS, SAFE_IMPORTS, Sandbox

HONEST = json.loads((Path(__file__).parent / "data" / "honest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("function", HONEST, ids=lambda function: function["name"])
def test_honest_function_of_the_corpus_works(sandbox: Sandbox, function: dict[str, Any]) -> None:
    for _ in range(2):  # the second call runs code that was compiled separately
        outcome = sandbox.call(function["code"], "f", function["input"], allowed_imports=function["imports"])
        assert outcome.error is None
        assert outcome.value == function["expected"]


def test_every_safe_module_can_be_imported(sandbox: Sandbox) -> None:
    source = "\n".join(f"import {name}" for name in sorted(SAFE_IMPORTS - {"__future__"}))
    assert sandbox.call(f"{source}\ndef f(): return 1", "f", {}).error is None
    assert DEFAULT_IMPORTS < SAFE_IMPORTS


def test_annotations_are_never_evaluated(sandbox: Sandbox) -> None:
    source = "async def search_docs(query: str, n: Nope[1/0] = 2) -> List[str]: ..."
    assert sandbox.call(source, "search_docs", {"query": "x"}).value is None
    assert sandbox.validate(source, "search_docs") == []


def test_context_is_a_read_only_mapping(sandbox: Sandbox) -> None:
    source = """
def f(x, context):
    try:
        context["task_id"] = "other"
    except TypeError:
        return [x, context["task_id"], context["agent"]["name"], context]
"""
    context = {"task_id": "t1", "agent": {"name": "a"}, "tags": ["b"]}
    assert sandbox.call(source, "f", {"x": 1}, context=context).value == [1, "t1", "a", context]


def test_printed_text_is_captured(sandbox: Sandbox) -> None:
    outcome = sandbox.call("def f():\n    print('a', 'ü')\n    return 1", "f", {})
    assert (outcome.value, outcome.stdout) == (1, "a ü\n")


def test_counters_are_those_of_the_kernel(sandbox: Sandbox) -> None:
    source = "def f():\n    x = bytearray(30 << 20)\n    return sum(range(3_000_000))"
    outcome = sandbox.call(source, "f", {})
    assert 29 << 20 < outcome.peak_memory < 34 << 20
    assert 0 < outcome.cpu_time < outcome.duration + 0.01
    assert "seccomp" in outcome.layers


def test_exception_is_reported_with_its_line(sandbox: Sandbox) -> None:
    outcome = sandbox.call("def f(x):\n    y = 1\n    return y / x", "f", {"x": 0})
    assert outcome.error is not None
    assert outcome.error.type == "exception"
    assert outcome.error.message == "ZeroDivisionError: division by zero"
    assert outcome.error.line == 3
    assert "return y / x" in (outcome.error.traceback or "")


def test_local_time_is_utc(sandbox: Sandbox) -> None:
    source = "import time, datetime\ndef f(): return [time.localtime(0).tm_hour, time.tzname[0]]"
    assert sandbox.call(source, "f", {}).value == [0, "UTC"]


def test_children_have_separate_randomness(sandbox: Sandbox) -> None:
    returned = "[random.random(), secrets.token_hex(), uuid.uuid4().hex]"
    source = f"import random, secrets, uuid\ndef f(): return {returned}"
    values = [sandbox.call(source, "f", {}).value for _ in range(8)]
    assert all(len(set(column)) == 8 for column in zip(*values, strict=True))


def test_unloaded_modules_cannot_be_allowed(sandbox: Sandbox) -> None:
    outcome = sandbox.call("import os\ndef f(): return 1", "f", {}, allowed_imports=["os"])
    assert outcome.error is not None
    assert outcome.error.type == "import_denied"


def test_openssl_is_not_loaded(sandbox: Sandbox) -> None:
    source = "import asyncio\ndef f(): return asyncio.sslproto.ssl is None"
    assert sandbox.call(source, "f", {}).value is True


def test_refused_import_can_be_caught(sandbox: Sandbox) -> None:
    source = "try:\n    import numpy\nexcept ImportError:\n    numpy = None\ndef f(): return numpy is None"
    assert sandbox.call(source, "f", {}).value is True


def test_preloaded_packages_come_from_the_running_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "with space" / "acme"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from acme.rates import RATE")
    (package / "rates.py").write_text("RATE = 7")
    monkeypatch.syspath_prepend(package.parent)
    with Sandbox(preload=["acme"]) as sandbox:
        source = "import acme.rates\nfrom acme import RATE\ndef f(): return RATE"
        assert sandbox.call(source, "f", {}, allowed_imports=["acme"]).value == 7
        assert sandbox.call(source, "f", {}, allowed_imports=["json"]).ok is False


def test_preloaded_modules_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host.py").write_text("NAME = 'theirs'")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(preload=["host"]) as sandbox:
        source = "import host\ndef f(): return host.NAME"
        assert sandbox.call(source, "f", {}, allowed_imports=["host"]).value == "theirs"


def test_hooks_of_preloaded_modules_run_in_every_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked.py").write_text("import os\nn = []\nos.register_at_fork(after_in_child=lambda: n.append(1))")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(preload=["hooked"]) as sandbox:
        source = "import hooked\ndef f(): return hooked.n"
        assert sandbox.call(source, "f", {}, allowed_imports=["hooked"]).value == [1]
