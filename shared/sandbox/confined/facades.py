"""A function's view of a safe module: its names, without the modules that it has imported for itself.

`random._os` or `typing.sys` would be ways around the policy. Some modules are shown in part only (`modules.PARTS`), and
some parts are replaced by versions that refuse paths.
"""

from __future__ import annotations

import mimetypes
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TextIO

from .in_memory import REPLACED
from .modules import PARTS, SAFE_IMPORTS, is_allowed

preloaded: set[str] = set()
"""Packages that the operator has chosen to expose unchanged. Set once, in the zygote."""

_IMPORT_SYSTEM = frozenset({"__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__"})
_PARENTS = frozenset(".".join(parts[:-1]) for name in SAFE_IMPORTS if len(parts := name.split(".")) > 1) | {"xml"}
_facades: dict[str, ModuleType] = {}
_hidden: dict[str, frozenset[str]] = {}


class _Facade(ModuleType):
    """The visible names of a module; submodules are looked up on access."""

    def __getattr__(self, name: str) -> Any:
        submodule = _submodule(self.__name__, name)
        if submodule is not None:
            return of(submodule)
        if name in _hidden.get(self.__name__, ()):
            raise AttributeError(_explain(self.__name__, name))
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Sys(_Facade):
    """`sys` for functions. The streams are those of the call, even if it replaces them."""

    @property
    def stdout(self) -> TextIO:
        return sys.stdout

    @stdout.setter
    def stdout(self, stream: TextIO) -> None:
        sys.stdout = stream

    @property
    def stderr(self) -> TextIO:
        return sys.stderr

    @stderr.setter
    def stderr(self, stream: TextIO) -> None:
        sys.stderr = stream


def of(module: ModuleType) -> ModuleType:
    """Return the facade of a safe module; any other module is returned unchanged."""
    if not _has_facade(module):
        return module
    name = module.__name__
    if name not in _facades:
        _facades[name] = _make(module)
    return _facades[name]


def prepare() -> None:
    """Create all facades in the zygote, and leave no path from their classes to the hidden modules."""
    mimetypes.knownfiles.clear()
    mimetypes.init()
    for module in list(sys.modules.values()):
        if module is not None:
            of(module)
    _show_flavours()


def _show_flavours() -> None:
    """Hide path flavours: from Python 3.12 on, a kind of path names the module that computes it, which knows `os`."""
    copies: dict[str, ModuleType] = {}
    for kind in (pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath):
        for attribute in ("_flavour", "parser"):
            if isinstance(flavour := vars(kind).get(attribute), ModuleType):
                copy = copies.setdefault(flavour.__name__, ModuleType(flavour.__name__))
                vars(copy).update(_plain(flavour))
                setattr(kind, attribute, copy)


def hidden_name(module: str, names: Sequence[str]) -> str | None:
    """Explain why one of the names cannot be imported from a module; None if all can, or if it has no facade."""
    real = sys.modules.get(module)
    if real is None or not _has_facade(real):
        return None
    of(real)
    hidden = (name for name in names if name in _hidden[module] and _submodule(module, name) is None)
    return next((_explain(module, name) for name in hidden), None)


def _submodule(module: str, name: str) -> ModuleType | None:
    """Return a module below another one, if it is loaded and visible to functions."""
    found = sys.modules.get(f"{module}.{name}")
    seen = found is not None and (_has_facade(found) or is_allowed(found.__name__, preloaded))
    return found if seen else None


def is_parent(name: str) -> bool:
    """Return whether this is a package above a module that functions may import."""
    return name in _PARENTS or any(package.startswith(f"{name}.") for package in preloaded)


def _has_facade(module: ModuleType) -> bool:
    return is_allowed(module.__name__, SAFE_IMPORTS) or module.__name__ in _PARENTS


def _make(module: ModuleType) -> ModuleType:
    name, streams = module.__name__, {"stdout", "stderr"} if module is sys else set()
    shown = {key: value for key, value in _plain(module).items() if _is_shown(name, key) and key not in streams}
    _hidden[name] = frozenset(vars(module)) - shown.keys() - streams
    if "__all__" in shown:
        shown["__all__"] = [key for key in module.__all__ if key not in _hidden[name]]
    facade = (_Sys if module is sys else _Facade)(name)
    vars(facade).update(shown, **REPLACED.get(name, {}))
    return facade


def _plain(module: ModuleType) -> dict[str, Any]:
    """Return the content of a module, without other modules and without attributes of the import system."""
    return {
        key: value
        for key, value in vars(module).items()
        if key not in _IMPORT_SYSTEM and not isinstance(value, ModuleType)
    }


def _is_shown(module: str, name: str) -> bool:
    return module not in PARTS or name in PARTS[module] or (name.startswith("__") and name.endswith("__"))


def _explain(module: str, name: str) -> str:
    return (
        f"{module}.{name} is not available in the sandbox, which has no files, sockets or processes and hides the "
        "interpreter: pass what the function needs as its input"
    )
