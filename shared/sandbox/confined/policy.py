"""The Python-level policy: imports, builtins and names that no well-behaved function needs.

Its purpose is early, readable errors. It is not the boundary: the kernel layers hold without it.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any

from . import facades
from .modules import HIDDEN, LANGUAGE_IMPORTS, SAFE_IMPORTS, is_allowed

FORBIDDEN_BUILTINS = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"})
ABSENT_BUILTINS = FORBIDDEN_BUILTINS - {"__import__"}
IMPLICIT_IMPORTS = SAFE_IMPORTS | set(HIDDEN)

FORBIDDEN_NAMES = frozenset({
    # from an object to all classes
    "__base__", "__bases__", "__mro__", "__objclass__", "__subclasses__",
    # from a function to its module, and from there to everything
    "__builtins__", "__closure__", "__code__", "__globals__", "__loader__", "__self__", "__spec__",
    # frames
    "ag_code", "ag_frame", "cr_code", "cr_frame", "f_back", "f_builtins", "f_code", "f_globals", "f_locals",
    "gi_code", "gi_frame", "tb_frame", "tb_next",
    # pickling hooks call any function
    "__reduce__", "__reduce_ex__",
})  # fmt: skip
"""Attributes and names that a source may not mention."""

failed_packages: dict[str, str] = {}
"""Packages that the operator preloads but that could not be loaded, with the reason. Set once, in the zygote."""

_IN_FORMAT = re.compile(r"\{[^{}]*[.\[](" + "|".join(sorted(FORBIDDEN_NAMES)) + r")\b")


class ImportDenied(ImportError):
    """The module is not on the function's list."""


def forbidden_text(text: str) -> str | None:
    """Return the forbidden name that a string constant contains, or that its format fields access."""
    if text in FORBIDDEN_NAMES:
        return text
    match = _IN_FORMAT.search(text) if "{" in text else None
    return match.group(1) if match else None


def forbidden_in_code(code: CodeType) -> str | None:
    """Return a forbidden name in compiled code: a cheap search over its tables of names and constants."""
    for name in code.co_names:
        if name in FORBIDDEN_NAMES:
            return name
    for constant in _constants(code.co_consts):
        found = forbidden_in_code(constant) if isinstance(constant, CodeType) else forbidden_text(constant)
        if found:
            return found
    return None


def _constants(values: Sequence[object] | frozenset[object]) -> Iterator[CodeType | str]:
    for value in values:
        if isinstance(value, CodeType | str):
            yield value
        elif isinstance(value, tuple | frozenset):
            yield from _constants(value)


def import_problem(
    name: str, fromlist: Sequence[str], level: int, allowed: frozenset[str], *, of_program: bool = False
) -> str | None:
    """Explain why an import is refused, and the alternative; None if it is allowed."""
    if level:
        return "relative imports are not possible: a function is one module"
    if is_allowed(name, allowed) or is_allowed(name, LANGUAGE_IMPORTS):
        return facades.hidden_name(name, fromlist)
    if fromlist and all(f"{name}.{part}" in allowed | LANGUAGE_IMPORTS for part in fromlist):
        return None
    return f"the module {name!r} is not among the allowed imports: {_FOR_PROGRAMS if of_program else _way_out(name)}"


_FOR_PROGRAMS = "a program can import modules of the standard library that only compute; call functions for the rest"


def _way_out(name: str) -> str:
    root = name.partition(".")[0]
    if is_allowed(name, SAFE_IMPORTS):
        return "add it to `allowed_imports`"
    if root in _NETWORK:
        return "functions have no network; call an HTTP tool instead"
    if root in sys.stdlib_module_names:
        return (
            "functions have no files, processes or environment; pass what they need as input, keys as a tool's secret"
        )
    return "preload the package in the workers (MINION_SANDBOX_PRELOAD), and add it to `allowed_imports`"


_NETWORK = frozenset({
    "aiohttp", "ftplib", "http", "httpx", "imaplib", "requests", "smtplib", "socket", "ssl", "urllib", "urllib3",
    "websockets",
})  # fmt: skip


def missing_package(name: str) -> str | None:
    """Explain why an allowed module is not available; None if it is. The function is not at fault."""
    for package, reason in failed_packages.items():
        if is_allowed(name, {package}):
            return f"the package of {name!r} could not be preloaded by this worker: {reason}"
    if is_allowed(name, IMPLICIT_IMPORTS) or is_allowed(name, facades.preloaded) or facades.is_parent(name):
        return None
    return f"this worker does not preload the package of {name!r}: it must be named in MINION_SANDBOX_PRELOAD"


def restricted_builtins(allowed: frozenset[str], *, of_program: bool = False) -> dict[str, Any]:
    """Return the builtins for a checked function or program.

    The table is created once, in the zygote, and completed here: a child serves one call, and a copy would
    touch every builtin object, each on a separate page.
    """
    _RESTRICTED["__import__"] = _import_hook(builtins.__import__, allowed, of_program)
    return _RESTRICTED


_RESTRICTED = {name: value for name, value in vars(builtins).items() if name not in ABSENT_BUILTINS}


def _import_hook(
    real: Callable[..., ModuleType], allowed: frozenset[str], of_program: bool
) -> Callable[..., ModuleType]:
    def __import__(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        # C code imports through the caller's builtins, with a list where a statement passes a tuple:
        # `datetime.strptime` imports `_strptime` this way. Those modules are harmless, or the operator's choice.
        if type(fromlist) is list and (name in IMPLICIT_IMPORTS or is_allowed(name, facades.preloaded)):
            return real(name, globals, locals, fromlist, level)
        if problem := import_problem(name, fromlist or (), level, allowed, of_program=of_program):
            raise ImportDenied(problem, name=name)
        if reason := missing_package(name):
            raise ImportError(reason, name=name)
        return facades.of(real(name, globals, locals, fromlist, level))

    return __import__
