"""The demo's builtin tools: installed distributions, and the files of a report.

Each is a plain function of a context and its arguments, which were checked against the tool's input schema.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from orchestrator.demo import distributions, report


class Context(Protocol):
    """Part of the context of a builtin tool that the demo's tools use."""

    @property
    def root_id(self) -> str:
        """The id of the root task."""

    @property
    def data_dir(self) -> Path:
        """The data folder of this installation."""


def list_distributions(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return the installed distributions, sorted by name.

    Args:
        arguments: `{"only": [names]}`, or nothing for all of them.
        context: not used.

    Returns:
        `{"distributions": [{"name", "version"}, …]}`.

    Raises:
        LookupError: a name in `only` is not installed.
    """
    installed = distributions.installed()
    if "only" in arguments:
        installed = [distributions.find(name) for name in arguments["only"]]
    found = {found.key: {"name": found.name, "version": found.version} for found in installed}
    return {"distributions": [found[key] for key in sorted(found)]}


def inspect_distribution(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return the metadata and contents of one installed distribution.

    Args:
        arguments: `{"name", "version"?}`.
        context: not used.

    Raises:
        LookupError: it is not installed, or its version differs from the given one.
    """
    found = distributions.find(arguments["name"])
    expected = arguments.get("version") or found.version
    if expected != found.version:
        raise LookupError(
            f"{found.name} {expected} is not installed here; {found.version or 'an unknown version'} is. Do all "
            "minions of this capability run in the same environment?"
        )
    return found.inspect()


def save_audit_data(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Store a summarised audit as JSON in the data folder, under a name that a retry finds again.

    Args:
        arguments: `{"title", "headline", "findings", "rows"}`, from the stored function `summarise_audit`.
        context: provides the data folder and the root task's id.

    Returns:
        `{"report", "headline", "findings"}`: without the rows, which a model does not need.
    """
    name = report.name_of(context.root_id)
    audit = {
        **arguments,
        "report": name,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}",
    }
    _write(report.folder(context.data_dir, name) / report.DATA, json.dumps(audit, indent=1, ensure_ascii=False))
    return {"report": name, "headline": arguments["headline"], "findings": arguments["findings"]}


def write_audit_report(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Write a saved audit as `report.md` and `report.html`.

    Args:
        arguments: `{"report", "commentary"?}`.
        context: provides the data folder.

    Returns:
        `{"report", "markdown", "html", "has_commentary"}`: the two files relative to the data folder, and whether they
        contain a commentary.

    Raises:
        LookupError: no audit of that name was saved.
    """
    folder = report.folder(context.data_dir, arguments["report"])
    commentary = arguments.get("commentary", "").strip()
    try:
        audit = json.loads((folder / report.DATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LookupError(
            f"No saved audit is called {arguments['report']!r}. Pass `report` exactly as the task's input gives it."
        ) from None
    _write(folder / report.MARKDOWN, report.markdown(audit, commentary))
    _write(folder / report.HTML, report.html(audit, commentary))
    place = folder.relative_to(context.data_dir)
    return {
        "report": arguments["report"],
        "markdown": str(place / report.MARKDOWN),
        "html": str(place / report.HTML),
        "has_commentary": bool(commentary),
    }


def _write(path: Path, text: str) -> None:
    """Write a file atomically, so that a reader or a second attempt never sees an incomplete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
