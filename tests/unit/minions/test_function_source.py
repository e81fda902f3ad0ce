"""The source of a function for the sandbox: what it takes along of its module, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from minions.errors import InvalidDefinition

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a text as the module `shop`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> ModuleType:
        (tmp_path / "shop.py").write_text("import minions\n" + dedent(text))
        sys.modules.pop("shop", None)
        invalidate_caches()
        return import_module("shop")

    yield write
    sys.modules.pop("shop", None)


def code_of(module: ModuleType) -> str:
    return str(module.f.document()["code"])


def test_source_is_the_function_without_its_decorator(load: Load):
    module = load(
        """
        @minions.function(
            timeout=3,
        )
        def f(text: str) -> str:
            # kept
            return text.upper()
        """
    )
    assert code_of(module) == "def f(text: str) -> str:\n    # kept\n    return text.upper()\n"
    assert module.f("a") == "A"


def test_source_has_what_the_function_uses_in_order(load: Load):
    module = load(
        """
        import json, math as m
        from datetime import date, datetime
        from functools import lru_cache
        from typing import Annotated
        LIMIT: Annotated[int, 1] = 3
        A, B = 1, 2; UNUSED = json

        class Rate:
            base: date = B

        @lru_cache(maxsize=LIMIT)
        def rate(n):
            return Rate.base * m.pi * n + helper(0)

        @minions.function
        def helper(n: int) -> int:
            return n

        @minions.function
        def f(n: int, json: str = "local") -> float:
            day = lambda: datetime.max
            return [rate(n) for n in range(A)] + [json]
        """.replace("LIMIT: Annotated[int, 1] = 3", "LIMIT: Annotated[int, 1] = 3")
    )
    assert code_of(module).split("\n\n\n") == [
        "import math as m\nfrom datetime import datetime\nfrom functools import lru_cache",
        "LIMIT: Annotated[int, 1] = 3\nA, B = 1, 2",
        "class Rate:\n    base: date = B",
        "@lru_cache(maxsize=LIMIT)\ndef rate(n):\n    return Rate.base * m.pi * n + helper(0)",
        "def helper(n: int) -> int:\n    return n",
        'def f(n: int, json: str = "local") -> float:\n    day = lambda: datetime.max\n'
        "    return [rate(n) for n in range(A)] + [json]\n",
    ]


@pytest.mark.parametrize("text", ["a\n        b", "a\n b"])
def test_text_of_several_lines_in_a_block_is_kept(load: Load, text: str):
    module = load(f'if True:\n    @minions.function\n    def f(n: int) -> str:\n        return """{text}"""\n')
    names: dict[str, Any] = {}
    exec(code_of(module), names)
    assert names["f"](1) == text == module.f(1)


def test_imports_of_a_package_are_taken_along_together(load: Load):
    module = load(
        """
        import urllib.parse
        import urllib.error

        @minions.function
        def f(text: str) -> str:
            return urllib.parse.quote(text)
        """
    )
    assert code_of(module).startswith("import urllib.parse\nimport urllib.error\n\n\ndef f")


def test_script_part_of_a_module_counts_for_nothing(load: Load):
    module = load("X = []\n@minions.function\ndef f(n: int): return X\nif __name__ == '__main__':\n    X.append(f(1))")
    assert code_of(module).startswith("X = []")


def test_recursive_functions_are_taken_along_once(load: Load):
    module = load(
        """
        def odd(n): return n != 0 and f(n - 1)

        @minions.function
        def f(n: int) -> bool:
            return n == 0 or odd(n - 1)
        """
    )
    assert code_of(module).count("def ") == 2
    assert module.f(4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from math import *\n@minions.function\ndef f(n: int): return pi", r"line 4\): it uses 'pi', which the top"),
        (
            "X = 1\nX = 2\n@minions.function\ndef f(n: int): return X",
            r"'X', which is defined more than once, or changed \(lines 2",
        ),
        ("if 1:\n    X = 2\n@minions.function\ndef f(n: int):\n    return X", r"line 6\): it uses 'X', which line 2"),
        ("X = 1\nX += 1\n@minions.function\ndef f(n: int): return X", "defined more than once"),
        ("X = {}\nX['a'] = 1\n@minions.function\ndef f(n: int): return X", r"or changed \(lines 2 and 3\)"),
        (
            "X = []\nfor n in (1, 2): X.append(n)\n@minions.function\ndef f(n: int): return X",
            r"or changed \(lines 2 and 3\)",
        ),
        ("class X: ...\nX.y = 1\n@minions.function\ndef f(n: int): return X.y", r"or changed \(lines 2 and 3\)"),
        ("@minions.tool\ndef g(n: int): ...\n@minions.function\ndef f(n: int): return g(n)", "which is the tool 'g'"),
        ("def keep(g): return g\n@minions.function\n@keep\ndef f(n: int): ...", "has another decorator"),
        (
            "def make(k):\n    @minions.function\n    def f(n: int): return k\n    return f\nf = make(1)",
            r"it uses 'k' of the function around it",
        ),
    ],
)
def test_use_that_cannot_be_taken_along_is_refused(load: Load, text: str, words: str):
    with pytest.raises(InvalidDefinition, match=rf"function 'f' \(shop.py, .*{words}"):
        code_of(load(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f = minions.function(lambda n: n)", "a lambda cannot be stored"),
        ("class A:\n    @minions.function\n    def f(self): ...", "it is a method"),
        ("class A:\n    @minions.tool\n    @staticmethod\n    def f(self): ...", "it is a method"),
        ("@minions.function\ndef f(n: int):\n    yield n", "it is a generator"),
        ("@minions.function\nclass A: ...", "it must decorate a function, not type"),
    ],
)
def test_what_is_no_plain_function_is_refused_at_once(load: Load, text: str, words: str):
    with pytest.raises(InvalidDefinition, match=words):
        load(text)


def test_changed_file_is_refused(load: Load, tmp_path: Path):
    module = load("@minions.function\ndef f(n: int): ...")
    (tmp_path / "shop.py").write_text("\n\n\nimport minions\n")
    with pytest.raises(InvalidDefinition, match="its source cannot be read"):
        code_of(module)
