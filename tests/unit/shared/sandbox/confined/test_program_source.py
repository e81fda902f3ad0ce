from __future__ import annotations

import ast
import asyncio
import symtable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sandbox.confined.program_source import MAIN, compile_program


def run(source: str) -> dict[str, Any]:
    """Run a program without calls; return its names, and its value as `value`."""
    names: dict[str, Any] = {"__name__": "__main__", "asyncio": asyncio}
    exec(compile_program(source), names)
    return names | {"value": asyncio.run(names[MAIN]())}


@pytest.mark.parametrize(
    "binding",
    [
        "x = 1", "x: int = 1", "for x in [1]: pass", "def x(): pass", "async def x(): pass", "class x: pass",
        "import json as x", "from json import loads as x", "with open_x() as x: pass", "(x := 1)",
        "[x := 1 for _ in '1']", "a, *x = [1, 2]", "match [1]:\n    case [x]: pass", "match [1]:\n    case [*x]: pass",
        "match {}:\n    case {**x}: pass", "if True:\n    x: int = 1", "x = []\nx += [1]",
    ],
)  # fmt: skip
def test_names_of_the_top_level_are_global(binding: str) -> None:
    head = "import contextlib\ndef open_x(): return contextlib.nullcontext(1)\n"
    names = run(f"{head}{binding}\ndef read(): return x\nread()\nreturn 'x' in globals()")
    assert names["value"] is True


def test_exception_name_is_unbound_after_its_block() -> None:
    assert run("try:\n    1 / 0\nexcept ZeroDivisionError as x:\n    pass\nreturn 'x' in globals()")["value"] is False


def test_names_of_functions_and_classes_stay_theirs() -> None:
    names = run(
        "x = 1\ndef f():\n    x = 2\n    return x\nclass A:\n    x = 3\nreturn [f(), A.x, x, [x for x in 'ab']]"
    )
    assert names["value"] == [2, 3, 1, ["a", "b"]]
    assert names["x"] == 1


def test_lines_are_those_of_the_program() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("x = 1\n\nasync def f():\n    1 / 0\n\nawait f()")
    lines = [entry.lineno + 1 for entry in caught.traceback if entry.frame.code.path == "<program>"]
    assert lines == [6, 4]


@pytest.mark.parametrize(
    "source",
    [
        "yield 1", "x = yield", "yield from []", "if True:\n    yield", "return 1\nyield", "from math import *",
        "break", "x = (", "nonlocal x", "await x = 1", "\0", "return = 1", "async with a: b = yield",
    ],
)  # fmt: skip
def test_invalid_program_is_a_syntax_error(source: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        compile_program(source)


@given(st.text(st.sampled_from("abx=:()[]{} \n\t'\"+-*,.@%10awitdefrnuls;")))
def test_any_text_compiles_or_is_a_syntax_error(source: str) -> None:
    try:
        compile_program(source)
    except (SyntaxError, ValueError):
        return
    ast.parse(source)


def test_module_that_compiles_is_a_program() -> None:
    with open(symtable.__file__) as file:
        compile_program(file.read())
