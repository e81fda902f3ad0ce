from __future__ import annotations

from typing import Any

import pytest

from shared.sandbox.confined.modules import SAFE_IMPORTS
from shared.sandbox.confined.validator import MAX_PROBLEMS, find_problems, first_forbidden


def found(source: str, schema: dict[str, Any] | None = None) -> list[tuple[str, int | None, int | None]]:
    problems = find_problems(source, "f", SAFE_IMPORTS, schema)
    return [(problem.code, problem.line, problem.column) for problem in problems]


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ("def f(): pass", []),
        ("async def f(x: Nope) -> [1/0]: ...", []),
        ("def f(:", [("syntax_error", 1, 7)]),
        ("def f():\n  return 1\n return 2", [("syntax_error", 3, 10)]),
        ("return 1", [("syntax_error", 1, 1)]),
        ("def g(): pass", [("no_entrypoint", None, None)]),
        ("if 1:\n    def f(): pass", [("no_entrypoint", None, None)]),
        ("import os\ndef f(): import gc", [("import_denied", 1, 1), ("import_denied", 2, 10)]),
        ("from .x import y\ndef f(): pass", [("import_denied", 1, 1)]),
        ("def f(): return eval('1')", [("forbidden_name", 1, 17)]),
        ("def f(x): return x.__globals__", [("forbidden_name", 1, 18)]),
        ("def f(x): return '{x.f_back}'", [("forbidden_name", 1, 18)]),
        ("def f(open, input): return open(input)", []),
        ("from re import compile\ndef f(): return compile('x')", []),
        ("import re\ndef f(): return re.compile('x')", []),
    ],
)
def test_findings_of_source(source: str, problems: list[tuple[str, int | None, int | None]]) -> None:
    assert found(source) == problems


SCHEMA = {"additionalProperties": False, "properties": {"a": {}, "b": {}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("signature", "count"),
    [
        ("a, b=1", 0),
        ("a, *, b=1", 0),
        ("a, b=1, c=2", 0),
        ("a, b=1, context=None", 0),
        ("a, b=1, *, context", 1),
        ("**anything", 0),
        ("a, **rest", 0),
        ("a", 1),
        ("a, b", 1),
        ("a, b=1, *, c", 1),
        ("a, /, b=1", 2),
        ("", 2),
    ],
)
def test_signature_must_match_the_schema(signature: str, count: int) -> None:
    problems = found(f"def f({signature}): pass", SCHEMA)
    assert [code for code, _, _ in problems] == ["signature"] * count
    assert all(line == 1 for _, line, _ in problems)


@pytest.mark.parametrize(("signature", "count"), [("a, b=1, *, context", 0), ("a, b=1", 1), ("a, **rest", 0)])
def test_context_needs_a_parameter(signature: str, count: int) -> None:
    source = f"def f({signature}): pass"
    assert len(find_problems(source, "f", SAFE_IMPORTS, SCHEMA, with_context=True)) == count


@pytest.mark.parametrize("schema", [{"properties": 3, "required": "x"}, {"required": ["a"]}, {}])
def test_odd_schemas_never_raise(schema: dict[str, Any]) -> None:
    found("def f(a): pass", schema)


def test_number_of_findings_is_limited() -> None:
    assert len(found("\n".join(["import os"] * 500))) == MAX_PROBLEMS


def test_first_forbidden_reports_line_and_column() -> None:
    finding = first_forbidden("x = 1\ny = x.__code__", SAFE_IMPORTS)
    assert finding is not None
    assert (finding.line, finding.column) == (2, 5)


@pytest.mark.parametrize(("signature", "count"), [("a, /", 2), ("a", 1), ("a, *, context", 0), ("**rest", 0)])
def test_arguments_are_keywords_without_a_schema_too(signature: str, count: int) -> None:
    source = f"def f({signature}): pass"
    assert len(find_problems(source, "f", SAFE_IMPORTS, None, with_context=True)) == count


def test_bound_names_are_not_builtins() -> None:
    source = """
def f(x):
    match x:
        case {"input": input, **compile}: return input, compile
        case [open, *exec]: return open, exec
    try: pass
    except ValueError as eval: return eval
"""
    assert find_problems(source, "f", SAFE_IMPORTS, None) == []
