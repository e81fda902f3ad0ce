"""Hooks of `make docs`: reference pages from the code, and links out of docs/ to copies of the files.

`commands.md`, `settings.md` and `operations-of-the-api.md` exist only in the site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from orchestrator.cli import app

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SOURCE = "source"
"""The folder in the site with copies of files of the repository that pages link to."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and copies of the files that pages link to."""
    pages = {"commands.md": _commands(), "settings.md": _settings(), "operations-of-the-api.md": _operations()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for path in sorted(_linked_files(files)):
        files.append(File.generated(config, f"{SOURCE}/{path.as_posix()}.txt", content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links out of docs/ to the copies."""
    depth = page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda link: _to_copy(link, depth), markdown)


def _to_copy(link: re.Match[str], depth: int) -> str:
    if link[1].count("../") <= depth:
        return link[0]
    file = _file_for(Path(link[2]))
    return f"]({'../' * depth}{SOURCE}/{file.as_posix()}.txt)"


def _linked_files(files: Files) -> set[Path]:
    found = set()
    for file in files.documentation_pages():
        if file.abs_src_path is None:
            continue
        depth = file.src_uri.count("/")
        for link in OUTSIDE.finditer(Path(file.abs_src_path).read_text(encoding="utf-8")):
            if link[1].count("../") > depth:
                found.add(_file_for(Path(link[2])))
    return found


def _file_for(path: Path) -> Path:
    """Return a path of the repository; for a folder, the first of its files."""
    if (ROOT / path).is_dir():
        return sorted(file for file in (ROOT / path).rglob("*") if file.is_file())[0].relative_to(ROOT)
    return path


def _settings() -> str:
    """Return the table of settings in production.md as a page, with its links."""
    text = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    found = re.search(r"^## Settings\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert found
    return "# Settings\n" + re.sub(r"\]\(#", "](production.md#", found[1])


def _commands() -> str:
    group: Any = typer.main.get_command(app)
    return "# All options of all commands\n\n" + "\n".join(_command("minion", group.commands))


def _command(prefix: str, commands: dict[str, Any]) -> Iterator[str]:
    for name, command in sorted(commands.items()):
        full = f"{prefix} {name}"
        yield f"## {full}\n\n{_cell(command.help or '')}\n"
        if hasattr(command, "commands"):
            yield from _command(full, command.commands)
            continue
        rows = [_option(each) for each in command.params if each.name != "help"]
        if rows:
            yield "| argument or option | meaning | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.param_type_name == "argument":
        names = f"`{(option.metavar or option.name).upper()}`"
    default = "required" if option.required else "" if option.default in (None, False, (), []) else option.default
    return f"| {names} | {_cell(getattr(option, 'help', None) or '')} | {_cell(str(default))} |"


def _operations() -> str:
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    parts = [
        "# All operations of the API",
        "From the OpenAPI document. A running orchestrator serves it, with schemas and examples, at `/docs`.",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## {method.upper()} {path}\n\n{_cell(operation.get('description', ''))}")
            rows = [
                f"| `{each['name']}` | {each['in']} | {_cell(each.get('description', ''))} |"
                for each in operation.get("parameters", ())
            ]
            if rows:
                parts.append("| parameter | in | meaning |\n|---|---|---|\n" + "\n".join(rows))
            answers = ", ".join(f"`{status}`" for status in operation.get("responses", {}))
            parts.append(f"Answers: {answers}.")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Return a text on one line that a table can hold, with `<` and `|` as characters."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
