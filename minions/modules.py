"""The definitions in a module: `python -m minions.modules shop.agents` prints them as JSON, for `minion apply`.

It imports the module, and therefore runs its code, in this process. The installation's servers never do this.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from minions.definitions import Declared, Document, documents_of
from minions.errors import InvalidDefinition, MinionsError


def load(target: str) -> list[Document]:
    """Import a module and return the definitions in it.

    Args:
        target: `package.module` or `path/to/file.py`, for all of its definitions; with `:name`, only what that name
            holds: a definition or a list of them. What they refer to is included.

    Raises:
        MinionsError: there is no such module.
        InvalidDefinition: it cannot be imported, has no such name, or a definition is wrong.
        NotConfigured: it needs Pydantic, which is not installed.
    """
    place, _, name = target.partition(":")
    module = _imported(place)
    declared = list(_named(module, name, target) if name else _all(module))
    if not declared:
        raise InvalidDefinition(
            f"{target}: it defines no agent, tool or function. Use `minions.Agent`, `@minions.tool` or "
            "`@minions.function`, or name a list of them that is not empty."
        )
    try:
        return documents_of(declared)
    except InvalidDefinition as error:
        raise InvalidDefinition(f"{target}: {error.message}") from None


def _imported(place: str) -> ModuleType:
    folder, name = _located(Path(place)) if place.endswith(".py") else (Path.cwd(), place)
    sys.path.insert(0, str(folder))
    try:
        module = import_module(name)
    except (KeyboardInterrupt, MemoryError):
        raise
    except MinionsError as error:
        raise InvalidDefinition(f"{place}: {error.message}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InvalidDefinition(f"{place}: it cannot be imported: {_described(error)}.") from None
        raise MinionsError(
            f"{place}: there is no such file, folder or module. Modules are found from the current folder, and among "
            "the installed packages.",
            code="file_fault",
        ) from None
    except BaseException as error:  # SystemExit too: modules may run anything
        raise InvalidDefinition(f"{place}: it cannot be imported: {_described(error)}.") from None
    if place.endswith(".py") and not (module.__file__ and Path(module.__file__).samefile(place)):
        raise InvalidDefinition(f"{place}: another module is named {name!r}. Rename the file.")
    return module


def _located(file: Path) -> tuple[Path, str]:
    """Return the folder from which a file is imported, and the name of its module: a package begins at its top."""
    if not file.is_file():
        raise MinionsError(f"{file}: there is no such file.", code="file_fault")
    folder, names = file.resolve().parent, [file.stem]
    while (folder / "__init__.py").exists():
        folder, names = folder.parent, [folder.name, *names]
    if names[-1] == "__init__":
        names.pop()
    if not all(name.isidentifier() for name in names):
        raise InvalidDefinition(f"{file}: {'.'.join(names)!r} is not the name of a module. Rename the file.")
    return folder, ".".join(names)


def _named(module: ModuleType, name: str, target: str) -> Iterator[Declared]:
    try:
        value = getattr(module, name)
    except AttributeError:
        known = ", ".join(each for each, value in vars(module).items() if isinstance(value, Declared))
        raise InvalidDefinition(f"{target}: the module has no {name!r}. Its definitions: {known or 'none'}.") from None
    values = [value] if isinstance(value, Declared) else value
    if not isinstance(values, list | tuple | set) or not all(isinstance(each, Declared) for each in values):
        raise InvalidDefinition(
            f"{target}: it must be an agent, a tool, a function, or a list of these, not {type(value).__name__}."
        )
    yield from values


def _all(module: ModuleType) -> Iterator[Declared]:
    yield from (value for value in vars(module).values() if isinstance(value, Declared))


def _described(error: BaseException) -> str:
    """Return an error of an import with its place in the user's code."""
    text = f"{type(error).__name__}: {error}".removesuffix(".").removesuffix(": ")
    if isinstance(error, SyntaxError):
        return text  # it has file and line
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_machinery(each.filename)]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _is_machinery(file: str) -> bool:
    return file.startswith("<frozen") or file == __file__ or Path(file).parent.name == "importlib"


def main(arguments: list[str]) -> int:
    """Print the definitions as a list of JSON; what the module prints goes to standard error. An error is an object."""
    if len(arguments) != 1:
        print("usage: python -m minions.modules MODULE[:NAME] | FILE.py[:NAME]", file=sys.stderr)
        return 2
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)
        answer: Any
        try:
            answer = load(arguments[0])
            written = json.dumps(answer, indent=2, ensure_ascii=False, allow_nan=False)
        except MinionsError as error:
            written = json.dumps({"error": {"type": error.code, "message": error.message}})
        except (TypeError, ValueError) as error:
            message = f"{arguments[0]}: a definition is not JSON: {error}."
            written = json.dumps({"error": {"type": InvalidDefinition.code, "message": message}})
        print(written, file=output)
    return 65 if written.startswith("{") else 0


if __name__ == "__main__":
    # The definitions are instances of the module under its own name, which is not this one.
    sys.exit(import_module("minions.modules").main(sys.argv[1:]))
