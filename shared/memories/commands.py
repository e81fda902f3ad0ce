"""Commands of the memory tool, with the results and errors that the API's documentation gives, which models know.

https://platform.claude.com/docs/en/agents-and-tools/tool-use/memory-tool
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from shared.contracts.server_tools import Memory
from shared.errors import InvalidInput
from shared.memories.paths import ROOT, checked_path, is_below, parent

MAX_LINES = 999_999
MAX_FILES = 1000
LEVELS = 2
AROUND = 2
"""Lines before and after a change that its result shows."""
MOST_PLACES = 20
"""Lines with the same text that an error names."""

# The fields of each command, and whether it needs them.
FIELDS: dict[str, dict[str, tuple[type, bool]]] = {
    "view": {"path": (str, True), "view_range": (list, False)},
    "create": {"path": (str, True), "file_text": (str, True)},
    "str_replace": {"path": (str, True), "old_str": (str, True), "new_str": (str, False)},
    "insert": {"path": (str, True), "insert_line": (int, True), "insert_text": (str, True)},
    "delete": {"path": (str, True)},
    "rename": {"old_path": (str, True), "new_path": (str, True)},
}
KINDS = {str: "a text", int: "a whole number", list: "a list"}


class Files(Protocol):
    """The files of a store as they are now.

    Attributes:
        sizes: the bytes of each file, by path.
    """

    sizes: Mapping[str, int]

    def read(self, path: str) -> str:
        """Return the text of a file."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Result of a command that changes files.

    Attributes:
        path: the path that it names, for a list of changes.
        new_path: where a path was moved.
        result: the text for the model.
        files: the new text of each file that it changes; None: the file is gone.
    """

    path: str
    result: str
    files: dict[str, str | None]
    new_path: str | None = None


def checked(arguments: Any) -> dict[str, Any]:
    """Return the fields of a command, with paths in one form.

    Raises:
        InvalidInput: a field is missing or wrong.
    """
    given = arguments if isinstance(arguments, dict) else {}
    command = given.get("command")
    if not isinstance(command, str) or command not in FIELDS:
        raise InvalidInput(f"Error: `command` must be one of {', '.join(FIELDS)}.")
    fields: dict[str, Any] = {"command": command}
    for name, (kind, needed) in FIELDS[command].items():
        value = given.get(name)
        if value is None and not needed:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidInput(f"Error: The command `{command}` needs `{name}`, {KINDS[kind]}.")
        fields[name] = checked_path(str(value)) if name.endswith("path") else value
    return fields


def view(files: Files, fields: Mapping[str, Any]) -> str:
    """Return the content of a file, or the files in a directory.

    Raises:
        InvalidInput: there is no such path, or no such line.
    """
    path = fields["path"]
    if path in files.sizes:
        return _content(path, files.read(path), fields.get("view_range"))
    if path != ROOT and not _is_directory(files, path):
        raise InvalidInput(f"The path {path} does not exist. Please provide a valid path.")
    listed = "\n".join([f"{_size(sum(_sizes_below(files, path)))}\t{path}", *_entries(files, path, LEVELS)])
    return (
        f"Here're the files and directories up to {LEVELS} levels deep in {path}, excluding hidden items and "
        f"node_modules:\n{listed}"
    )


def change(files: Files, fields: Mapping[str, Any], limits: Memory) -> Changed:
    """Return what a command changes.

    Raises:
        InvalidInput: it cannot be done; nothing is changed.
    """
    made = COMMANDS[fields["command"]](files, fields)
    _check_sizes(files, made.files, limits)
    return made


def _create(files: Files, fields: Mapping[str, Any]) -> Changed:
    path = fields["path"]
    if path in files.sizes:
        raise InvalidInput(f"Error: File {path} already exists")
    _check_place(files, path)
    return Changed(path, f"File created successfully at: {path}", {path: fields["file_text"]})


def _str_replace(files: Files, fields: Mapping[str, Any]) -> Changed:
    path, old, new = fields["path"], fields["old_str"], fields.get("new_str", "")
    if path not in files.sizes:
        raise InvalidInput(f"Error: The path {path} does not exist. Please provide a valid path.")
    if not old:
        raise InvalidInput("No replacement was performed: old_str must not be empty.")
    text = files.read(path)
    places = [*islice(_places(text, old), MOST_PLACES + 1)]
    if not places:
        raise InvalidInput(f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}.")
    if len(places) > 1:
        lines = ", ".join(map(str, places[:MOST_PLACES])) + (", …" if len(places) > MOST_PLACES else "")
        raise InvalidInput(
            f"No replacement was performed. Multiple occurrences of old_str `{old}` in lines: {lines}. Please "
            "ensure it is unique"
        )
    changed = text.replace(old, new)
    first = max(1, places[0] - AROUND)
    shown = changed.split("\n")[first - 1 : places[0] + new.count("\n") + AROUND]
    said = "The memory file has been edited. Here is the snippet showing the change (with line numbers):"
    return Changed(path, f"{said}\n{_numbered(shown, first)}", {path: changed})


def _insert(files: Files, fields: Mapping[str, Any]) -> Changed:
    path, line = fields["path"], fields["insert_line"]
    if path not in files.sizes:
        raise InvalidInput(f"Error: The path {path} does not exist")
    lines = files.read(path).split("\n")
    if not lines[-1]:
        lines.pop()
    if not 0 <= line <= len(lines):
        raise InvalidInput(
            f"Error: Invalid `insert_line` parameter: {line}. It should be within the range of lines of the file: "
            f"[0, {len(lines)}]"
        )
    lines.insert(line, fields["insert_text"].removesuffix("\n"))
    return Changed(path, f"The file {path} has been edited.", {path: "\n".join(lines) + "\n"})


def _delete(files: Files, fields: Mapping[str, Any]) -> Changed:
    path = fields["path"]
    if path == ROOT:
        raise InvalidInput(f"Error: Cannot delete the {ROOT} directory itself")
    gone = _at_or_below(files, path)
    if not gone:
        raise InvalidInput(f"Error: The path {path} does not exist")
    return Changed(path, f"Successfully deleted {path}", dict.fromkeys(gone))


def _rename(files: Files, fields: Mapping[str, Any]) -> Changed:
    old, new = fields["old_path"], fields["new_path"]
    if ROOT in (old, new):
        raise InvalidInput(f"Error: Cannot rename the {ROOT} directory itself")
    moved = _at_or_below(files, old)
    if not moved:
        raise InvalidInput(f"Error: The path {old} does not exist")
    if new in files.sizes or _is_directory(files, new):
        raise InvalidInput(f"Error: The destination {new} already exists")
    if is_below(new, old):
        raise InvalidInput(f"Error: The destination {new} is inside of {old}")
    _check_place(files, new)
    arrived = {new + path.removeprefix(old): files.read(path) for path in moved}
    for path in arrived:
        checked_path(path)
    return Changed(old, f"Successfully renamed {old} to {new}", {**dict.fromkeys(moved), **arrived}, new)


COMMANDS = {
    "create": _create,
    "str_replace": _str_replace,
    "insert": _insert,
    "delete": _delete,
    "rename": _rename,
}


def _check_place(files: Files, path: str) -> None:
    """Refuse a file where a directory is, and the other way round."""
    if path == ROOT or _is_directory(files, path):
        raise InvalidInput(f"Error: The path {path} is a directory")
    above = parent(path)
    while above != ROOT:
        if above in files.sizes:
            raise InvalidInput(f"Error: The path {above} is a file, not a directory")
        above = parent(above)


def _check_sizes(files: Files, changed: Mapping[str, str | None], limits: Memory) -> None:
    sizes = {path: len(text.encode()) for path, text in changed.items() if text is not None}
    for path, size in sizes.items():
        if size > limits.max_file_bytes:
            raise InvalidInput(
                f"Error: The file {path} would have {size:,} bytes, and {limits.max_file_bytes:,} is the most"
            )
    after = {path: size for path, size in files.sizes.items() if path not in changed} | sizes
    # A memory that is too large already, because its limits were lowered, may shrink.
    if sum(after.values()) > max(limits.max_bytes, sum(files.sizes.values())):
        raise InvalidInput(
            f"Error: The memory would have {sum(after.values()):,} bytes, and {limits.max_bytes:,} is the most. Delete "
            "what is no longer needed"
        )
    if len(after) > max(MAX_FILES, len(files.sizes)):
        raise InvalidInput(f"Error: The memory would have {len(after):,} files, and {MAX_FILES:,} is the most")


def _is_directory(files: Files, path: str) -> bool:
    return any(is_below(file, path) for file in files.sizes)


def _at_or_below(files: Files, path: str) -> list[str]:
    return [file for file in files.sizes if file == path or is_below(file, path)]


def _sizes_below(files: Files, directory: str) -> list[int]:
    return [size for file, size in files.sizes.items() if is_below(file, directory)]


def _entries(files: Files, directory: str, levels: int) -> Iterator[str]:
    """Yield the lines of a listing, in the order of names."""
    names = {file.removeprefix(f"{directory}/").partition("/")[0] for file in files.sizes if is_below(file, directory)}
    for name in sorted(names):
        path = f"{directory}/{name}"
        if name.startswith(".") or name == "node_modules":
            continue
        if path in files.sizes:
            yield f"{_size(files.sizes[path])}\t{path}"
            continue
        yield f"{_size(sum(_sizes_below(files, path)))}\t{path}/"
        if levels > 1:
            yield from _entries(files, path, levels - 1)


def _content(path: str, text: str, view_range: list[Any] | None) -> str:
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        raise InvalidInput(f"File {path} exceeds maximum line limit of 999,999 lines.")
    first, last = 1, len(lines)
    if view_range:
        first, last = _range(view_range, len(lines))
    return f"Here's the content of {path} with line numbers:\n{_numbered(lines[first - 1 : last], first)}"


def _range(view_range: list[Any], lines: int) -> tuple[int, int]:
    match view_range:
        case [int(first), int(last)] if 1 <= first <= lines and (last == -1 or first <= last):
            return first, lines if last == -1 else last
    raise InvalidInput(
        f"Error: Invalid `view_range` parameter: {str(view_range)[:100]}. It should be two line numbers within "
        f"[1, {lines}], the first one not after the last one, which may be -1"
    )


def _places(text: str, part: str) -> Iterator[int]:
    """Yield the number of the line of each occurrence."""
    line, counted = 1, 0
    place = text.find(part)
    while place >= 0:
        line, counted = line + text.count("\n", counted, place), place
        yield line
        place = text.find(part, place + 1)


def _numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"{number:>6}\t{line}" for number, line in enumerate(lines, first))


def _size(size: int) -> str:
    """Return a size as `du -h` writes it: `512B`, `1.5K`, `4K`."""
    number, unit = float(size), "B"
    for unit in ("B", "K", "M"):  # noqa: B007
        if number < 1024:
            break
        number /= 1024
    return f"{number:.1f}".removesuffix(".0") + unit
