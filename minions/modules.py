"""The definitions in a module: `python -m minions.modules shop.agents` prints them as JSON, for `minion apply`.
With `--entry-points`, it prints the part of a `pyproject.toml` that offers the module's builtin tools to workers.

It imports the module, and therefore runs its code, in this process. The installation's servers never do this.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from minions.definitions import BuiltinTool, Declared, documents_of, related
from minions.errors import InvalidDefinition, MinionsError


def load(target: str) -> list[Declared]:
    """Import a module and return what it declares.

    Args:
        target: `package.module` or `path/to/file.py`, for all of its definitions; with `:name`, only what that name
            holds: a definition or a list of them. What they refer to is included.

    Raises:
        MinionsError: there is no such module.
        InvalidDefinition: it cannot be imported, or has no such name.
    """
    place, _, name = target.partition(":")
    module = _imported(place)
    declared = list(_named(module, name, target) if name else _all(module))
    if not declared:
        raise InvalidDefinition(
            f"{target}: it defines no agent, tool or function. Use `minions.Agent`, `@minions.tool` or "
            "`@minions.function`, or name a list of them that is not empty."
        )
    return related(declared)


def entry_points(declared: list[Declared]) -> str:
    """Return the part of a `pyproject.toml` by which a package offers its builtin tools to workers."""
    offered = [each.entry_point for each in declared if isinstance(each, BuiltinTool)]
    return "\n".join(['[project.entry-points."minions.tools"]', *(f'{name} = "{place}"' for name, place in offered)])


def _documents(declared: list[Declared], target: str) -> str:
    try:
        return json.dumps(documents_of(declared), indent=2, ensure_ascii=False)
    except InvalidDefinition as error:
        raise InvalidDefinition(f"{target}: {error.message}") from None


def _imported(place: str) -> ModuleType:
    folder, name = located(Path(place)) if place.endswith(".py") else (Path.cwd(), place)
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


def located(file: Path) -> tuple[Path, str]:
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
    parser = argparse.ArgumentParser(prog="python -m minions.modules", description="Print the definitions in a module.")
    parser.add_argument("target", help="FILE.py or package.module, or one of these with :NAME")
    parser.add_argument("--entry-points", action="store_true", help="print those of its builtin tools instead")
    given = parser.parse_args(arguments)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)
        try:
            declared = load(given.target)
            print(entry_points(declared) if given.entry_points else _documents(declared, given.target), file=output)
        except MinionsError as error:
            print(json.dumps({"error": {"type": error.code, "message": error.message}}), file=output)
            return 65
    return 0


if __name__ == "__main__":
    # What it declares are instances of classes of the module under its own name, which is not this one.
    sys.exit(import_module("minions.modules").main(sys.argv[1:]))
