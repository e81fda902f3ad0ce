"""Program that finds pairs of JSON Schemas that no value matches.

`jsonschema_rs` takes more than a gigabyte or several seconds for some schemas of one kilobyte, and nothing interrupts
it. So it runs in this process, which is killed at its bounds. The lines that it has written by then are valid.

Arguments: the folders of packages. Input: `[[position, schema, other], …]`. Output: a line `[position, path]` for each
pair that no value matches, and more where the conflict is found deeper inside.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[1:]

import jsonschema_rs
from jsonschema_rs.canonical import AnyOfView, ObjectView, ReferenceView, Satisfiability, TypedGroupView

MAX_SECONDS = 1  # of processor time, for all pairs
MAX_MEMORY = 512 << 20
MAX_STEPS = 20
MAX_PATH = 1000  # a line is written as a whole, or not at all

Canonical = jsonschema_rs.CanonicalSchema


def places(one: Canonical, other: Canonical, path: str = "$", steps: int = MAX_STEPS) -> Iterator[str]:
    """Yield the paths at which no value matches both, each inside the one before; nothing if there may be a value."""
    if not steps or not excludes(one, other):
        return
    yield path
    first, second = _object(one), _object(other)
    if first is None or second is None:
        return
    for name in sorted({*first.required, *second.required}):
        inside = [*places(_property(first, name), _property(second, name), f"{path}.{name}", steps - 1)]
        if inside:
            yield from inside
            return


def excludes(one: Canonical, other: Canonical) -> bool:
    """Return whether it is certain that no value matches both."""
    return one.intersect(other).satisfiability() == Satisfiability.NO


def canonical(schema: Any) -> Canonical:
    """Return a schema in the library's form. Nothing is ever fetched."""
    return jsonschema_rs.canonicalize(
        schema, draft=jsonschema_rs.Draft202012, pattern_options=jsonschema_rs.RegexOptions(), offline=True
    )


def _object(schema: Canonical) -> ObjectView | None:
    """Return the rules of a schema for objects, if it has exactly one set of them."""
    for _ in range(MAX_STEPS):
        match schema.view():
            case ObjectView() as view:
                return view
            case TypedGroupView(body=inner):
                following = [inner]
            case AnyOfView(branches=branches):
                following = [branch for branch in branches if isinstance(branch.view(), ObjectView)]
            case ReferenceView(uri=uri):
                following = [target for target in [schema.definition(uri)] if target]
            case _:
                return None
        if len(following) != 1:
            return None
        schema = following[0]
    return None


def _property(rules: ObjectView, name: str) -> Canonical:
    """Return the schema of a property; one that allows everything if it has none."""
    if rules.property_names and excludes(rules.property_names, canonical({"const": name})):
        return canonical(False)
    other = None if rules.pattern_properties else rules.additional_properties
    return rules.properties.get(name) or other or canonical(True)


def main() -> None:
    """Write the results, as far as the bounds allow."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    with suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    for position, one, other in json.load(sys.stdin):
        with suppress(BaseException):  # a panic of the library is not an `Exception`
            for path in places(canonical(one), canonical(other)):
                print(json.dumps([position, path[:MAX_PATH]]), flush=True)


if __name__ == "__main__":
    main()
