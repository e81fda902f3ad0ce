"""Cases as files: YAML or JSON, with large values in files beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cases.case import Case, parse_case
from shared.contracts.strict_json import JsonValue, parse
from shared.definitions.files import documents, files_below, write
from shared.errors import FileFault, InvalidDefinition, InvalidInput

LARGE = 16 << 10
"""Characters from which a text is stored in a separate file."""
MOST_BYTES = 32 << 20
"""Of all files beside a case."""
REFERENCE = "$external"
ESCAPED = "value"
"""The member of a reference that is none: a recorded value has the same form."""


def load(paths: list[Path]) -> list[Case]:
    """Load the cases of files, and of the files below folders.

    Raises:
        FileFault: a file is missing or cannot be read.
        InvalidInput: a file is not a valid case, or two cases have the same name.
    """
    found: dict[str, Path] = {}
    cases = []
    for path in paths:
        for file in _files(path):
            case = _load(file)
            if case.name in found:
                raise InvalidInput(f"{file}: the case {case.name!r} is also in {found[case.name]}. Rename one of them.")
            found[case.name] = file
            cases.append(case)
    return cases


def _files(path: Path) -> list[Path]:
    try:
        return files_below(path)
    except InvalidDefinition as error:
        raise InvalidInput(error.message) from None


def _load(file: Path) -> Case:
    try:
        [data] = list(documents(file))
    except InvalidDefinition as error:
        raise InvalidInput(error.message) from None
    except ValueError:
        raise InvalidInput(f"{file}: must hold one case, and nothing else.") from None
    return parse_case(_with_externals(data, file), where=str(file))


def text_of(case: dict[str, Any]) -> str:
    """Return a case as a YAML document."""
    return write(_replace(case, lambda text: text))


def save(case: dict[str, Any], file: Path) -> list[Path]:
    """Write a case, and its large texts to the folder `NAME.files` beside it. Return the files.

    Raises:
        FileFault: a file cannot be written.
    """
    folder = file.with_suffix(".files")
    written: dict[Path, bytes] = {}

    def put_out(text: str) -> JsonValue:
        if len(text) < LARGE:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(raw).hexdigest()
        written[folder / f"{digest[:16]}.txt"] = raw
        return {REFERENCE: {"path": f"{folder.name}/{digest[:16]}.txt", "sha256": digest, "bytes": len(raw)}}

    whole = _replace(case, put_out)
    document = json.dumps(whole, ensure_ascii=False, indent=1) + "\n" if file.suffix == ".json" else write(whole)
    try:
        (folder if written else file.parent).mkdir(parents=True, exist_ok=True)
        for path, raw in written.items():
            path.write_bytes(raw)
        file.write_text(document, encoding="utf-8")
    except OSError as error:
        raise FileFault(f"{file}: cannot be written: {error.strerror}.") from None
    return [file, *written]


def _replace(value: Any, put_out: Callable[[str], JsonValue]) -> Any:
    """Return a value with other texts. An object that looks like a reference becomes an escaped one."""
    if isinstance(value, str):
        return put_out(value)
    if isinstance(value, dict):
        replaced = {name: _replace(part, put_out) for name, part in value.items()}
        return {REFERENCE: {ESCAPED: replaced[REFERENCE]}} if replaced.keys() == {REFERENCE} else replaced
    return [_replace(part, put_out) for part in value] if isinstance(value, list) else value


def _with_externals(data: Any, file: Path) -> Any:
    left = MOST_BYTES

    def resolve(value: Any) -> Any:
        nonlocal left
        if isinstance(value, list):
            return [resolve(part) for part in value]
        if not isinstance(value, dict):
            return value
        if value.keys() != {REFERENCE}:
            return {name: resolve(part) for name, part in value.items()}
        reference = value[REFERENCE]
        if isinstance(reference, dict) and reference.keys() == {ESCAPED}:
            return {REFERENCE: resolve(reference[ESCAPED])}
        raw = _read(reference, file, left)
        left -= len(raw)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{file}: {reference['path']!r} is not UTF-8 (byte {error.start}).") from None

    try:
        return resolve(data)
    except RecursionError:
        raise InvalidInput(f"{file}: is nested too deeply.") from None


def _read(reference: Any, file: Path, left: int) -> bytes:
    """Return the content of a file beside a case. The reference is hostile: it must not lead elsewhere."""
    names = {"path": str, "sha256": str, "bytes": int}
    if not isinstance(reference, dict) or {name: type(value) for name, value in reference.items()} != names:
        raise InvalidInput(f"{file}: {REFERENCE} must have `path`, `sha256` and `bytes`.")
    folder = file.parent.resolve()
    try:
        path = (folder / reference["path"]).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise InvalidInput(f"{file}: {reference['path']!r} is not a file below the folder of the case.")
        if path.stat().st_size > left:
            raise InvalidInput(f"{file}: the files beside it have more than {MOST_BYTES:,} bytes together.")
        raw: bytes = path.read_bytes()
    except (OSError, ValueError) as error:
        raise FileFault(f"{file}: {reference['path']!r} cannot be read: {error}.") from None
    if hashlib.sha256(raw).hexdigest() != reference["sha256"]:
        raise InvalidInput(
            f"{file}: {reference['path']!r} has changed since it was recorded. Restore it, or record the task again."
        )
    return raw


def read_json(file: Path) -> Any:
    """Return the JSON in a file.

    Raises:
        FileFault, InvalidInput: it cannot be read, or is not JSON.
    """
    try:
        return parse(file.read_bytes(), what=str(file))
    except OSError as error:
        raise FileFault(f"{file}: cannot be read: {error.strerror}.") from None


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON.

    Raises:
        FileFault: the file cannot be written.
    """
    write_text(file, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file.

    Raises:
        FileFault: it cannot be written.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileFault(f"{file}: cannot be written: {error.strerror}.") from None
