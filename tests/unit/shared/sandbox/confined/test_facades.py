from __future__ import annotations

import importlib
import logging
import os
import random
import sys
import types
import typing
import urllib.parse

import pytest

from shared.sandbox.confined import facades
from shared.sandbox.confined.modules import HIDDEN, PARTS, SAFE_IMPORTS

MODULES = sorted(SAFE_IMPORTS - {"__future__"})


@pytest.mark.parametrize("name", MODULES)
def test_facade_contains_no_module(name: str) -> None:
    facade = facades.of(importlib.import_module(name))
    assert facade.__name__ == name
    assert not any(isinstance(value, types.ModuleType) for value in vars(facade).values())
    assert not any(vars(facade).get(each) for each in ("__builtins__", "__loader__", "__spec__"))


@pytest.mark.parametrize("name", MODULES)
def test_star_import_of_facade_finds_all_names(name: str) -> None:
    for hidden in HIDDEN:
        importlib.import_module(hidden)
    facade = facades.of(importlib.import_module(name))
    assert all(hasattr(facade, each) for each in getattr(facade, "__all__", ()))


@pytest.mark.parametrize("name", sorted(PARTS))
def test_listed_parts_of_each_module_exist(name: str) -> None:
    missing = {part for part in PARTS[name] if not hasattr(facades.of(importlib.import_module(name)), part)}
    assert missing <= {"splitroot"}  # Python 3.12


def test_hidden_names_are_explained() -> None:
    for module, name in ((random, "_os"), (typing, "sys"), (sys, "modules"), (logging, "FileHandler")):
        with pytest.raises(AttributeError, match=f"{module.__name__}.{name} is not available in the sandbox"):
            getattr(facades.of(module), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = facades.of(random).nothing


def test_package_above_a_safe_module_shows_nothing_else() -> None:
    package = facades.of(sys.modules["urllib"])
    assert package.parse.quote is urllib.parse.quote
    importlib.import_module("urllib.request")
    assert not hasattr(package, "request")


def test_unsafe_modules_have_no_facade() -> None:
    assert facades.of(os) is os


def test_sys_facade_shows_the_current_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    facade = facades.of(sys)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
        setattr(facade, name, stream := object())
        assert getattr(sys, name) is getattr(facade, name) is stream
