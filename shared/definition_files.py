"""Definitions as files: YAML or JSON, one or more documents each, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shared.errors import InvalidDefinition
from shared.schemas import AnyDefinition, parse_definition

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 8 << 20


def load(path: Path) -> list[AnyDefinition]:
    """All definitions in a file, or in the files below a folder, in the order of their names.

    Raises:
        InvalidDefinition: names the file, and the place in it.
    """
    return [
        parse_definition(_with_code(document, file), where=str(file))
        for file in _files(path)
        for document in _documents(file)
    ]


def dump(definition: AnyDefinition) -> str:
    """A definition as a YAML document that loads again unchanged; what has its default value is left out."""
    plain = definition.model_dump(mode="json", exclude_defaults=True)
    document = {"kind": definition.kind, "name": definition.name, **plain}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidDefinition(f"{path}: there is no such file or folder.")
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise InvalidDefinition(f"{path}: the folder holds no {', '.join(SUFFIXES)} file.")
    return files


def _documents(file: Path) -> Iterator[Any]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidDefinition(f"{file}: larger than {MAX_FILE_BYTES:,} bytes.")
        text = file.read_text(encoding="utf-8")
        for document in yaml.load_all(text, Loader=_Loader):
            if document is not None:
                yield from document if isinstance(document, list) else [document]
    except OSError as error:
        raise InvalidDefinition(f"{file}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InvalidDefinition(f"{file}: is not UTF-8 (byte {error.start}).") from None
    except yaml.YAMLError as error:
        raise InvalidDefinition(f"{file}: is not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise InvalidDefinition(f"{file}: is nested too deeply.") from None


def _with_code(document: Any, file: Path) -> Any:
    """Puts the text of `code_file`, a path beside the definition's file, in place of it."""
    if not isinstance(document, dict) or "code_file" not in document:
        return document
    if "code" in document:
        raise InvalidDefinition(f"{file}: {document.get('name')!r} has both `code` and `code_file`.")
    source = file.parent / str(document["code_file"])
    try:
        code = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDefinition(f"{file}: code_file {document['code_file']!r} cannot be read: {error}.") from None
    return {**{name: value for name, value in document.items() if name != "code_file"}, "code": code}


class _Loader(yaml.SafeLoader):
    """YAML without what would be lost in silence: a key that stands twice is refused, and so are aliases,
    with which a small file can describe a value that fills the memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML that people like to read: code and prompts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
