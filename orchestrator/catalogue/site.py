"""Writes a catalogue as static pages: one style in each page, no scripts, relative links, the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from orchestrator.catalogue.entries import COST_DAYS, KINDS, Catalogue, Entry, bare
from orchestrator.catalogue.schema_rows import rows_of
from orchestrator.catalogue.uses import target_of, users_of, uses_of
from orchestrator.pages.relations import picture
from shared.contracts.documents import NAME
from shared.contracts.visible_text import visible
from shared.errors import FileFault, InvalidDefinition

LIST = ".minion-docs"
"""The file in a site that names all others: what is not in it was not written by an earlier build."""
LIMITS = (
    ("max_turns", "turns"),
    ("max_attempts", "attempts"),
    ("time_limit", "seconds, then it is killed"),
    ("max_chain_depth", "agents below each other"),
    ("max_parallel", "sub-tasks at once"),
    ("max_tokens", "tokens of a reply"),
)


def build(catalogue: Catalogue, folder: Path, title: str) -> list[str]:
    """Write the pages into a folder, remove those of an earlier build that are gone, and return the files' names.

    Raises:
        FileFault: the folder has files that no build has written, or cannot be written to.
    """
    pages = dict(_pages(catalogue, title))
    names = sorted(pages)
    try:
        earlier = _earlier(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(earlier - {*names}):
            (folder / name).unlink(missing_ok=True)
        for name, page in pages.items():
            (folder / name).write_text(page, encoding="utf-8", newline="\n")
        (folder / LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    except OSError as error:
        raise FileFault(f"The pages cannot be written to {folder}: {error}. Name another folder.") from None
    return names


def _earlier(folder: Path) -> set[str]:
    """Return the names of the pages that an earlier build wrote."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return set()
    written = folder / LIST
    if not written.is_file():
        raise FileFault(f"{folder} has files that `minion docs build` did not write. Name a new or an empty folder.")
    return {name for name in written.read_text(encoding="utf-8").splitlines() if re.fullmatch(r"[\w.-]+\.html", name)}


def _pages(catalogue: Catalogue, title: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    environment = _environment(catalogue, title)
    yield "index.html", environment.get_template("index.html").render()
    for entry in sorted(catalogue.entries, key=lambda each: (each.kind, each.name)):
        facts: dict[str, Any] = {"entry": entry, "it": entry.definition}
        if entry.kind == "agent":
            facts["uses"] = uses_of(catalogue, entry)
            facts["picture"] = picture(facts["uses"])
            facts["schedules"] = [each for each in catalogue.schedules if each["request"].get("agent") == entry.name]
        yield _file_of(entry), environment.get_template(f"{entry.kind}.html").render(facts)


def _environment(catalogue: Catalogue, title: str) -> Environment:
    style = (files("orchestrator.catalogue") / "templates" / "site.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("orchestrator.catalogue"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals |= {
        "catalogue": catalogue,
        "kinds": KINDS,
        "title": title,
        "style": Markup(style),  # noqa: S704 - our own file
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "days": COST_DAYS,
        "limits": LIMITS,
        "page_of": lambda kind, name: _page_of(catalogue, kind, name),
        "rows_of": rows_of,
        "target_of": target_of,
        "users_of": lambda entry: users_of(catalogue, entry.kind, entry.name),
    }
    environment.filters["bare"] = bare
    return environment


def _shown(value: Any) -> Any:
    """Return a text with its hidden characters as escapes: they can make text look like other text."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _page_of(catalogue: Catalogue, kind: str, name: str) -> str:
    """Return the file of an entry, or nothing if the catalogue lacks it."""
    entry = catalogue.find(kind, name)
    return _file_of(entry) if entry else ""


def _file_of(entry: Entry) -> str:
    if not re.fullmatch(NAME, entry.name):
        raise InvalidDefinition(f"{entry.name!r} is not the name of {entry.kind}: it must match {NAME}.")
    return f"{entry.kind}-{entry.name}.html"
