"""Definitions in Python modules, for the commands of an operator. The module is imported in a separate process.

That process has the rights and the environment of the command. It finds the operator's own packages, whatever their
names, and a module that ends, hangs or prints does not disturb the command. No server of an installation imports one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from shared.contracts.documents import AnyDefinition, parse_definition
from shared.definitions import files
from shared.errors import FileFault, InvalidDefinition, NotConfigured

MODULE = re.compile(r"[A-Za-z_][\w.]*")
SECONDS = 60.0


def load(target: str) -> list[AnyDefinition]:
    """Load definitions from a file or folder of YAML or JSON, or from Python.

    Args:
        target: a path; `path/to/file.py`, `package.module`, or one of these with `:name`.

    Raises:
        FileFault: there is no such file, folder or module.
        InvalidDefinition: names the place of the first error.
    """
    return load_module(target) if is_python(target) else files.load(Path(target))


def is_python(target: str) -> bool:
    """Return whether a target means Python code, which must be run to know its definitions."""
    place, colon, _ = target.partition(":")
    if place.endswith(".py"):
        return True
    return MODULE.fullmatch(place) is not None and (bool(colon) or not Path(place).exists())


def load_module(target: str) -> list[AnyDefinition]:
    """Run a module in a separate process, and load the definitions in it."""
    return [parse_definition(document, where=target) for document in json.loads(_run(target))]


def offered_tools(target: str) -> dict[str, str]:
    """Run a module in a separate process. Return the entry points of its builtin tools: values by name."""
    offered: dict[str, str] = tomllib.loads(_run(target, "--entry-points"))["project"]["entry-points"]["minions.tools"]
    return offered


def _run(target: str, *options: str) -> str:
    # -B: compiled files have times in whole seconds, and two saves in one second may leave the earlier one behind.
    command = [sys.executable, "-P", "-B", "-m", "minions.modules", target, *options]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidDefinition(
            f"{target}: its import took more than {SECONDS:.0f} s. A module with definitions must not start anything."
        ) from None
    if ended.returncode == 0:
        return ended.stdout.decode()
    try:
        error = json.loads(ended.stdout)["error"]
    except ValueError:
        raise InvalidDefinition(f"{target}: the process that imported it ended with {ended.returncode}.") from None
    kinds = {each.code: each for each in (FileFault, NotConfigured)}
    raise kinds.get(error["type"], InvalidDefinition)(error["message"])
