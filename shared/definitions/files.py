"""Reading and writing definitions as files: YAML or JSON, one or more documents each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shared.contracts.documents import AnyDefinition, parse_definition
from shared.contracts.strict_json import parse
from shared.contracts.visible_text import visible
from shared.errors import FileFault, InvalidDefinition, InvalidInput

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 8 << 20


def load(path: Path) -> list[AnyDefinition]:
    """Load all definitions in a file, or in the files below a folder in the order of their names.

    Raises:
        FileFault: a file is missing or cannot be read.
        InvalidDefinition: names the file, and the place in it.
    """
    found = [
        parse_definition(_with_code(document, file), where=str(file))
        for file in files_below(path)
        for document in documents(file)
    ]
    if not found:
        raise InvalidDefinition(f"{path}: it contains no definitions. Each must have a `kind` and a `name`.")
    return found


def dump(definition: AnyDefinition) -> str:
    """Return a definition as a YAML document that loads again unchanged, without fields that have default values."""
    return write(document_of(definition))


def document_of(definition: AnyDefinition) -> dict[str, Any]:
    """Return a definition as plain data, without fields that have their default values."""
    plain = definition.model_dump(mode="json", exclude_defaults=True)
    if "soft_time_limit" in plain.get("config", {}):
        # If it were left out, it would follow the soft limit.
        plain["config"]["time_limit"] = definition.model_dump()["config"]["time_limit"]
    return {"kind": definition.kind, "name": definition.name, **plain}


def write(document: dict[str, Any]) -> str:
    """Return plain data as a YAML document. Hidden characters are written as escapes, so that a reader sees them."""
    return visible(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def files_below(path: Path) -> list[Path]:
    """Return a file, or the YAML and JSON files below a folder in the order of their names.

    Raises:
        FileFault: there is no such file or folder.
        InvalidDefinition: the folder has no such file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileFault(f"{path}: there is no such file or folder.")
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise InvalidDefinition(f"{path}: the folder contains no {', '.join(SUFFIXES)} file.")
    return files


def documents(file: Path) -> Iterator[Any]:
    """Yield the documents of a file, as plain data.

    Raises:
        FileFault: the file cannot be read.
        InvalidDefinition: it is too large, or not valid YAML or JSON; names the place.
    """
    try:
        text = _text(file)
        documents = [parse(text, what="The file")] if file.suffix == ".json" else yaml.load_all(text, Loader=_Loader)
        for document in documents:
            if document is not None:
                yield from document if isinstance(document, list) else [document]
    except InvalidInput as error:
        raise InvalidDefinition(f"{file}: {error.message}") from None
    except yaml.YAMLError as error:
        # PyYAML names its input "<unicode string>".
        fault = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise InvalidDefinition(f"{file}: is not valid YAML: {fault}.") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML raises these if an explicit tag and its value do not fit, such as `!!bool maybe`.
        raise InvalidDefinition(f"{file}: contains a value that cannot be read: {str(error)[:200]}.") from None
    except RecursionError:
        raise InvalidDefinition(f"{file}: is nested too deeply.") from None


def _text(file: Path) -> str:
    """Return a file's text, without the byte order mark that some editors write."""
    try:
        if not file.is_file():
            raise FileFault(f"{file}: there is no such file.")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidDefinition(f"{file}: larger than {MAX_FILE_BYTES:,} bytes.")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileFault(f"{file}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InvalidDefinition(f"{file}: is not UTF-8 (byte {error.start}).") from None


def _with_code(document: Any, file: Path) -> Any:
    """Replace `code_file`, a path relative to the definition's file, with the text of that file."""
    if not isinstance(document, dict) or "code_file" not in document:
        return document
    if "code" in document:
        raise InvalidDefinition(f"{file}: {document.get('name')!r} has both `code` and `code_file`.")
    name = document["code_file"]
    if not isinstance(name, str) or "\x00" in name:
        raise InvalidDefinition(f"{file}: code_file must be the path of a file, not {name!r}.")
    try:
        code = _text(file.parent / name)
    except (FileFault, InvalidDefinition) as error:
        raise type(error)(f"{file}: code_file {error.message}") from None
    return {**{field: value for field, value in document.items() if field != "code_file"}, "code": code}


# Meaning of plain words: YAML 1.2's core schema, which is JSON's. In YAML 1.1, PyYAML's default, `no` is false,
# `1:30` is 90 and 2026-11-22 is a date.
PLAIN_WORDS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)", "-+0123456789."),
    ("merge", r"<<", "<"),
]


def _speak_yaml_1_2(speaker: Any) -> None:
    speaker.yaml_implicit_resolvers = {}
    for kind, pattern, first in PLAIN_WORDS:
        words = re.compile(f"(?:{pattern})\\Z")
        speaker.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", words, ["" if c == "\0" else c for c in first])


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses silent data loss (duplicate keys) and aliases.

    With aliases, a small file can describe a value that fills the memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported: write out what it stands for", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML dumper for readable output: code and prompts are written as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML would read some of these back as something else, and they can only be escaped between quotes.
    hidden = visible(text) != text
    style = '"' if hidden else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # PyYAML's constructor would read 010 as 8


_speak_yaml_1_2(_Loader)
_speak_yaml_1_2(_Dumper)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Dumper.add_representer(str, _represent_text)
