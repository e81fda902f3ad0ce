from __future__ import annotations

import pytest

from shared.sandbox.confined import policy
from shared.sandbox.confined.modules import SAFE_IMPORTS
from shared.sandbox.confined.validator import compile_source


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x.__globals__", "__globals__"),
        ("def f():\n    class A:\n        def g(self): return self.__subclasses__()", "__subclasses__"),
        ("getattr(x, '__code__')", "__code__"),
        ("y = ('a', ('__mro__',))", "__mro__"),
        ("x in {'f_back'}", "f_back"),
        ("'{x.__class__.__bases__}'.format(x=1)", "__bases__"),
        ("'{0[__globals__]}'", "__globals__"),
        ("x.__ｇlobals__", "__globals__"),
        ("self.__class__.__name__", None),
        ("'{x.__class__}'", None),
        ("'mentions __globals__ in prose'", None),
        ("x.__dict__", None),
    ],
)
def test_forbidden_attributes_in_code_are_found(source: str, found: str | None) -> None:
    assert policy.forbidden_in_code(compile_source(source)) == found


@pytest.mark.parametrize(
    ("name", "fromlist", "level", "allowed", "refused"),
    [
        ("json", (), 0, {"json"}, False),
        ("json.decoder", (), 0, {"json"}, False),
        ("collections.abc", ("Mapping",), 0, {"collections"}, False),
        ("urllib.parse", (), 0, {"urllib.parse"}, False),
        ("urllib", ("parse",), 0, {"urllib.parse"}, False),
        ("urllib", ("parse", "request"), 0, {"urllib.parse"}, True),
        ("urllib", (), 0, {"urllib.parse"}, True),
        ("urllib.request", (), 0, {"urllib.parse"}, True),
        ("jsonx", (), 0, {"json"}, True),
        ("__future__", ("annotations",), 0, set(), False),
        ("typing", ("List",), 0, set(), False),
        ("collections.abc", (), 0, set(), False),
        ("collections", ("abc",), 0, set(), False),
        ("collections", (), 0, set(), True),
        ("email.mime.text", (), 0, {"email"}, False),
        ("logging", ("getLogger",), 0, {"logging"}, False),
        ("logging.handlers", (), 0, {"logging"}, True),
        ("logging", ("FileHandler",), 0, {"logging"}, True),
        ("pathlib", ("PurePath", "Path"), 0, {"pathlib"}, True),
        ("random", ("_os",), 0, {"random"}, True),
        ("json", ("decoder",), 0, {"json"}, False),
        ("json", (), 1, {"json"}, True),
    ],
)
def test_import_problem(name: str, fromlist: tuple[str, ...], level: int, allowed: set[str], refused: bool) -> None:
    assert bool(policy.import_problem(name, fromlist, level, frozenset(allowed))) == refused


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("statistics", "add it to `allowed_imports`"),
        ("requests", "call an HTTP tool"),
        ("urllib.request", "call an HTTP tool"),
        ("os", "pass what they need as input, keys as a tool's secret"),
        ("numpy.linalg", "preload the package in the workers (MINION_SANDBOX_PRELOAD)"),
    ],
)
def test_refused_import_names_an_alternative(name: str, way_out: str) -> None:
    problem = policy.import_problem(name, (), 0, frozenset({"json"}))
    assert problem is not None
    assert way_out in problem


def test_imports_by_c_code_reach_harmless_modules_only() -> None:
    hook = policy.restricted_builtins(frozenset())["__import__"]
    assert hook("_strptime", {}, {}, ["__doc__"], 0)
    for fromlist in ((), ["__doc__"]):
        with pytest.raises(policy.ImportDenied):
            hook("os", {}, {}, fromlist, 0)
    with pytest.raises(policy.ImportDenied):
        hook("_strptime", {}, {}, None, 0)


def test_restricted_builtins() -> None:
    table = policy.restricted_builtins(SAFE_IMPORTS)
    assert not table.keys() & policy.ABSENT_BUILTINS
    assert {"len", "print", "vars", "type", "super", "__build_class__", "ExceptionGroup"} <= table.keys()
