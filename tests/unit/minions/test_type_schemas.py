"""Schemas of type hints, compared with what Pydantic itself accepts."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from typing_extensions import TypedDict

from minions.docstrings import description_of, parameter_descriptions
from minions.errors import InvalidDefinition
from minions.results import GiveUp
from minions.type_schemas import Parameters, schema_of
from shared.contracts.json_schema import check_dialect, check_schema, violations


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Item(BaseModel):
    """An item of an order."""

    model_config = ConfigDict(extra="forbid")
    sku: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d+$")]
    size: Size = Size.SMALL
    price: Decimal = Decimal("9.90")


@dataclasses.dataclass
class Address:
    city: str
    lines: list[str] = dataclasses.field(default_factory=list)


class Note(TypedDict):
    text: str
    pinned: NotRequired[bool]


def order(
    items: Annotated[list[Item], Field(min_length=1)],
    to: Address,
    kind: Literal["gift", "sale"] = "sale",
    note: Note | None = None,
    *,
    at: datetime | None = None,
    context: Any = None,
) -> Item:
    """Order items.

    They are sent at once.

    Args:
        items: what to send,
            at least one.
        to (Address): where to.
        kind: a gift has no invoice.

    Returns:
        the first item.
    """
    return items[0]


def parameters(function: Any) -> Parameters:
    return Parameters(function, where="function 'f'")


def test_parameters_have_descriptions_and_defaults():
    schema = parameters(order).schema()
    assert schema["required"] == ["items", "to"]
    assert [*schema["properties"]] == ["items", "to", "kind", "note", "at"]
    assert schema["properties"]["items"]["description"] == "what to send, at least one."
    assert schema["properties"]["kind"] == {
        "type": "string",
        "enum": ["gift", "sale"],
        "description": "a gift has no invoice.",
        "default": "sale",
    }
    assert schema["additionalProperties"] is False
    assert description_of(order) == "Order items.\n\nThey are sent at once."


def test_schema_of_every_kind_of_type_can_be_stored():
    schema = parameters(order).schema()
    check_schema(schema, where="order")
    check_dialect(schema, where="order")
    good = {"items": [{"sku": "ABC-1", "price": "3.50"}], "to": {"city": "Rome"}, "at": "2026-11-30T08:00:00Z"}
    assert violations(schema, good) == []
    assert violations(schema, {**good, "to": {}})
    read = parameters(order).read(good)
    assert read["items"] == [Item(sku="ABC-1", price=Decimal("3.50"))]
    assert (read["to"], read["at"].year) == (Address("Rome"), 2026)


def test_argument_that_pydantic_refuses_gives_up():
    with pytest.raises(GiveUp, match="items: List should have at least 1 item"):
        parameters(order).read({"items": [], "to": {"city": "Rome"}})


def test_sphinx_docstring_describes_parameters():
    def search(words: str, most: int) -> None:
        """Search.

        :param words: what to
            look for
        :param int most: results
        :returns: nothing
        """

    assert parameter_descriptions(search) == {"words": "what to look for", "most": "results"}
    assert description_of(search) == "Search."


def test_numpy_docstring_describes_parameters():
    def search(words: str, most: int, least: int) -> None:
        """Search.

        All shelves are searched.

        Parameters
        ----------
        words : str
            What to
            look for.
        most, least : int, optional
            Results.

        Returns
        -------
        None
            Nothing.
        """

    assert parameter_descriptions(search) == {"words": "What to look for.", "most": "Results.", "least": "Results."}
    assert description_of(search) == "Search.\n\nAll shelves are searched."


def test_description_of_a_field_wins_over_the_docstring():
    def search(words: Annotated[str, Field(description="of the field")]) -> None:
        """Search.

        Args:
            words: of the docstring
        """

    assert parameters(search).schema()["properties"]["words"]["description"] == "of the field"


def without_hint(a): ...
def with_stars(*a: int): ...
def with_field(a: int = Field(3)): ...
def unknown_hint(a: Unknown): ...  # type: ignore[name-defined]  # noqa: F821
def unserialisable(a: Any = object): ...
def not_a_number(a: float = float("nan")): ...
def bytes_of_no_text(a: bytes = b"\xff"): ...
def unknown_pattern(a: Annotated[str, Field(pattern="(?<=a)b")]): ...
def example_of_no_json(a: Annotated[int, Field(examples=[object])]): ...
def two_types(a: (int, str) = 1): ...  # type: ignore[syntax]
def own_type(a: Self): ...  # type: ignore[misc]
def alias(a: Annotated[int, Field(alias="other")]): ...
def callback(a: type[int] | Any = None, b: st.SearchStrategy[int] | None = None): ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (without_hint, "the parameter 'a' has no type hint. Add one"),
        (with_stars, r"the parameter '\*a' cannot be passed by name"),
        (with_field, r"Write `a: Annotated\[TYPE, Field\(…\)\] = VALUE`"),
        (unknown_hint, "its type hints cannot be evaluated: name 'Unknown' is not defined"),
        (unserialisable, "the default of 'a' is not JSON"),
        (callback, "function 'f': a type"),
        (not_a_number, "the default of 'a' is not JSON: nan"),
        (bytes_of_no_text, "the default of 'a' is not JSON"),
        (unknown_pattern, "a type has no JSON Schema: Error building .* look-around"),
        (example_of_no_json, "a type has no JSON Schema: Unable to serialize"),
        (two_types, "its type hints cannot be evaluated: Forward references must evaluate to types"),
        (own_type, "a parameter has the type Self"),
        (alias, "'other' is an alias"),
    ],
)
def test_unusable_parameter_is_refused_with_the_reason(function: Any, words: str):
    with pytest.raises(InvalidDefinition, match=words):
        parameters(function).schema()


class Dated(TypedDict):
    day: NotRequired[datetime]


class Linked(TypedDict):
    following: Linked | None


@pytest.mark.parametrize(
    "hint",
    [Item, list[Address], datetime, tuple[int, int], dict[str, set[int]], Size, Dated, dict[int, str],
     Literal[Size.LARGE], Annotated[set[int], {"unit": "days"}], [int]],
)  # fmt: skip
def test_sandbox_accepts_types_of_json_alone(hint: Any):
    def f(a): ...

    f.__annotations__ = {"a": hint}
    with pytest.raises(InvalidDefinition, match="the parameter 'a' has the type"):
        parameters(f).require_json()
    f.__annotations__ = {
        "a": list[dict[str, Note | int | Literal["x"] | None]],
        "b": Annotated[Linked, {}],
        "return": Any,
    }
    parameters(f).require_json()


def test_given_schema_is_left_as_it_is():
    assert schema_of({"type": "object"}, where="x") == {"type": "object"}
    assert schema_of(None, where="x") is None


# --- schemas and Pydantic agree -------------------------------------------------------------------------------------

PLAIN = st.one_of(
    st.just(int),
    st.just(float),
    st.just(str),
    st.just(bool),
    st.just(None),
    st.just(Any),
    st.sampled_from([Literal["a"], Literal["a", "b", "ab"]]),
    st.builds(lambda low, size: Annotated[int, Field(ge=low, lt=low + size)], st.integers(-3, 3), st.integers(1, 5)),
    st.builds(lambda low, size: Annotated[str, Field(min_length=low, max_length=low + size)], *[st.integers(0, 2)] * 2),
    st.just(Annotated[str, Field(pattern=r"^[ab]+$")]),
)


def _model(hints: list[Any], closed: bool, optional: bool) -> Any:
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in zip("abc", hints, strict=False)}
    if optional:
        fields["c"] = (hints[0], None)
    return create_model("Model", __config__=ConfigDict(extra="forbid" if closed else "ignore"), **fields)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda hint: list[hint]),
        inner.map(lambda hint: Annotated[list[hint], Field(max_length=2)]),
        inner.map(lambda hint: dict[str, hint]),
        st.tuples(inner, inner).map(lambda hints: hints[0] | hints[1] if None not in hints else hints[0]),
        st.builds(_model, st.lists(inner, min_size=1, max_size=2), st.booleans(), st.booleans()),
        st.lists(inner, min_size=2, max_size=2).map(
            lambda hints: dataclasses.make_dataclass("D", zip("ab", hints, strict=True))
        ),
    )


HINTS = st.recursive(PLAIN, _containers, max_leaves=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0, -1.25]) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


def accepts(hint: Any, value: Any, *, strict: bool) -> bool:
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=strict)
    except ValidationError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(hint=HINTS, values=st.lists(JSON, min_size=1, max_size=8))
def test_schema_lies_between_strict_and_lenient_validation(hint: Any, values: list[Any]):
    schema = {"properties": {"x": schema_of(hint, where="x") if hint is not None else {"type": "null"}}}
    schema["properties"]["x"] = schema["properties"]["x"] or {}
    if "$defs" in schema["properties"]["x"]:
        schema = {**schema, "$defs": schema["properties"]["x"].pop("$defs")}
    check_schema(schema, where="x")
    for value in values:
        valid = violations(schema, {"x": value}) == []
        assert valid or not accepts(hint, value, strict=True), (schema, value)
        assert not valid or accepts(hint, value, strict=False), (schema, value)
