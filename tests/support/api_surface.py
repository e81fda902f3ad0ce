"""The OpenAPI document without texts, and its changes that break clients; `make api` accepts the others.

A change breaks a client if a request that was accepted may be refused, or an answer may lack what it had. New values of
an enumeration in an answer are no such change: docs/http-api.md says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.api.app import create_app
from shared.settings import Settings
from tests.support.processes import ROOT

FILE = ROOT / "docs" / "openapi.json"
TEXTS = ("description", "summary", "title", "example", "examples")
METHODS = ("get", "put", "post", "patch", "delete")
JSON = "application/json"
# Bounds of values in requests, and whether a larger number is the narrower one.
BOUNDS = {
    "maximum": False,
    "exclusiveMaximum": False,
    "maxLength": False,
    "maxItems": False,
    "maxProperties": False,
    "minimum": True,
    "exclusiveMinimum": True,
    "minLength": True,
    "minItems": True,
    "minProperties": True,
}

Document = dict[str, Any]


def current() -> Document:
    """Return the document of this release, without its texts."""
    settings = Settings(
        database_url="postgresql://nobody@127.0.0.1:1/none", redis_url="redis://127.0.0.1:1", api_key="k" * 32
    )
    document = _without_texts(create_app(settings).openapi())
    return {**document, "info": {"title": "Minions", "version": "1"}}


def as_text(document: Document) -> str:
    """Return the document as the file has it."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def breaking(old: Document, new: Document) -> list[str]:
    """Return the changes that break clients, one sentence each."""
    return sorted(set(_of_document(old, new)))


def _of_document(old: Document, new: Document) -> Iterator[str]:
    for path, methods in old["paths"].items():
        for method in METHODS:
            if method not in methods:
                continue
            where = f"{method.upper()} {path}"
            if method not in new["paths"].get(path, {}):
                yield f"{where} is removed."
                continue
            was, now = methods[method], new["paths"][path][method]
            if was["operationId"] != now["operationId"]:
                yield f"{where}: the operation is no longer {was['operationId']}."
            yield from _of_operation(where, old, new, was, now)
    for name in old["components"]["schemas"].keys() - new["components"]["schemas"].keys():
        yield f"The schema {name} is removed."


def _of_operation(where: str, old: Document, new: Document, was: Document, now: Document) -> Iterator[str]:
    sent, received = _Comparison(old, new, sent=True), _Comparison(old, new, sent=False)
    parameters, known = _parameters(now), _parameters(was)
    for key, parameter in known.items():
        name = f"{where}: parameter {parameter['name']}"
        if key not in parameters:
            yield f"{name} is removed."
            continue
        before, after = parameter["schema"], parameters[key]["schema"]
        if parameter["in"] == "query":
            if _is_list(before) and not _is_list(after):
                yield f"{name} must not be repeated any more."
            before, after = _in_query(before), _in_query(after)
        yield from sent.schemas(name, before, after)
    for key, parameter in parameters.items():
        if parameter.get("required") and not known.get(key, {}).get("required"):
            yield f"{where}: parameter {parameter['name']} is required."
    asked, asks = was.get("requestBody", {}), now.get("requestBody", {})
    if asks.get("required") and not asked.get("required"):
        yield f"{where}: the body is required."
    if asked:
        yield from sent.contents(f"{where}: body", asked, asks)
    for status, answer in was["responses"].items():
        if not status.startswith("2"):
            continue  # an error is a problem, with whatever status
        if status not in now["responses"]:
            yield f"{where}: the answer {status} is removed."
            continue
        yield from received.contents(f"{where}: answer {status}", answer, now["responses"][status])


def _is_list(schema: Document) -> bool:
    return any(option.get("type") == "array" for option in schema.get("anyOf", [schema]))


def _in_query(schema: Document) -> Document:
    """Return the schema of one value of a query parameter: no value is null, and a list is a repeated parameter."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return {"anyOf": [option["items"] if option.get("type") == "array" else option for option in options]}


def _parameters(operation: Document) -> dict[tuple[str, str], Document]:
    return {(each["in"], each["name"]): each for each in operation.get("parameters", ())}


@dataclass
class _Comparison:
    """Compares the schemas of what clients send, or of what they receive."""

    old: Document
    new: Document
    sent: bool

    def __post_init__(self) -> None:
        self._compared: set[tuple[str, str]] = set()

    def contents(self, where: str, was: Document, now: Document) -> Iterator[str]:
        """Compare bodies."""
        for media_type, content in was.get("content", {}).items():
            if media_type not in now.get("content", {}):
                yield f"{where}: {media_type} is removed."
            elif media_type == JSON:
                yield from self.schemas(where, content.get("schema", {}), now["content"][media_type].get("schema", {}))

    def schemas(self, where: str, was: Any, now: Any) -> Iterator[str]:
        """Compare schemas, and those that they refer to, once."""
        names = (str(was.get("$ref")), str(now.get("$ref")))
        if "$ref" in was and "$ref" in now:
            if names in self._compared:
                return
            self._compared.add(names)
        before, after = _kinds(_resolved(was, self.old)), _kinds(_resolved(now, self.new))
        if self.sent:
            lost = set() if "any" in after else before.keys() - after.keys()
            yield from (f"{where} must not be {_named(kind)} any more." for kind in lost)
        else:
            gained = set() if "any" in before else after.keys() - before.keys()
            yield from (f"{where} may be {_named(kind)}." for kind in gained)
        for kind in before.keys() & after.keys():
            yield from self._same_kind(where, before[kind], after[kind])

    def _same_kind(self, where: str, was: Document, now: Document) -> Iterator[str]:
        if self.sent:
            yield from _narrowed(where, was, now)
        yield from self._properties(where, was, now)
        for member in ("items", "additionalProperties"):
            if isinstance(was.get(member), dict) and isinstance(now.get(member), dict):
                yield from self.schemas(f"{where}[]", was[member], now[member])

    def _properties(self, where: str, was: Document, now: Document) -> Iterator[str]:
        before, after = was.get("properties", {}), now.get("properties", {})
        required, requires = set(was.get("required", ())), set(now.get("required", ()))
        for name, schema in before.items():
            if name in after:
                yield from self.schemas(f"{where}.{name}", schema, after[name])
            elif not self.sent or now.get("additionalProperties") is False:
                yield f"{where}.{name} is removed."
        if self.sent:
            yield from (f"{where}.{name} is required." for name in requires - required)
        else:
            yield from (f"{where}.{name} may be missing." for name in (required - requires) & after.keys())


def _narrowed(where: str, was: Document, now: Document) -> Iterator[str]:
    values, allowed = _values(was), _values(now)
    if allowed is not None and (values is None or not values <= allowed):
        lost = "other values" if values is None else ", ".join(sorted(map(str, values - allowed)))
        yield f"{where} must not be {lost} any more."
    for bound, larger_is_narrower in BOUNDS.items():
        if bound in now and (
            bound not in was or (now[bound] > was[bound] if larger_is_narrower else now[bound] < was[bound])
        ):
            yield f"{where} has a narrower {bound}: {now[bound]}."
    for name in ("pattern", "format"):
        if name in now and now[name] != was.get(name):
            yield f"{where} has another {name}: {now[name]}."
    if (
        now.get("additionalProperties") is False
        and was.get("additionalProperties") is not False
        and "properties" in was
    ):
        yield f"{where} must not have other members any more."


def _values(schema: Document) -> set[Any] | None:
    if "const" in schema:
        return {schema["const"]}
    return set(schema["enum"]) if "enum" in schema else None


def _resolved(schema: Any, document: Document) -> Document:
    while isinstance(schema, dict) and "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    options = schema.get("anyOf") or schema.get("oneOf")
    return {**schema, "anyOf": [_resolved(option, document) for option in options]} if options else schema


def _kinds(schema: Document) -> dict[str, Document]:
    """Return a schema's alternatives by type; the second one of a type is `TYPE#2`."""
    found: dict[str, Document] = {}
    for option in schema.get("anyOf", [schema]):
        if "anyOf" in option:
            alternatives = list(_kinds(option).values())
        else:
            types = option.get("type", "any")
            alternatives = [{**option, "type": kind} for kind in ([types] if isinstance(types, str) else types)]
        for alternative in alternatives:
            kind = alternative["type"]
            number = 1 + sum(name.partition("#")[0] == kind for name in found)
            found[kind if number == 1 else f"{kind}#{number}"] = alternative
    return found


def _named(kind: str) -> str:
    name, _, number = kind.partition("#")
    return f"of the type {name}" if not number else f"of {number} kinds of {name}"


def _without_texts(value: Any, *, names: bool = False) -> Any:
    """Return a document without titles, descriptions and examples.

    Args:
        names: the keys are names of properties, schemas or paths, which may be `title` too.
    """
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _without_texts(item, names=key in ("properties", "schemas", "paths", "content") and not names)
        for key, item in value.items()
        if names or key not in TEXTS
    }
    if not names and "responses" in kept:
        # A document is valid only with the descriptions of answers.
        kept["responses"] = {status: {"description": "", **answer} for status, answer in kept["responses"].items()}
    return kept


def main() -> None:
    """Write the document, unless it has changes that break clients."""
    new = current()
    found = breaking(json.loads(FILE.read_text()), new) if FILE.exists() else []
    for change in found:
        print(change)
    if found and "--breaking" not in sys.argv:
        sys.exit("These changes break clients. Take them back, or accept them: make api API=--breaking")
    FILE.write_text(as_text(new))


if __name__ == "__main__":
    main()
