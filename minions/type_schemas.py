"""JSON Schemas of type hints: Pydantic models, dataclasses, TypedDicts, Annotated, Literal and the like.

Pydantic does the work and is imported at the first use: the client does not depend on it.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from minions.docstrings import parameter_descriptions
from minions.errors import InvalidDefinition, MinionsError, NotConfigured
from minions.results import GiveUp

if TYPE_CHECKING:
    from pydantic import TypeAdapter

JsonSchema = dict[str, Any]
Mode = Literal["validation", "serialization"]

CONTEXT = "context"
"""The parameter that receives the context of a call. It is no argument of the caller."""
BY_NAME = frozenset({inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})
JSON_TYPES = (str, int, float, bool, type(None), None, Any, list, dict)


def schema_of(given: Any, *, where: str, mode: Mode = "validation") -> JsonSchema | None:
    """Return a schema: of a type, or the given one. None and the hint `Any` have no schema.

    Args:
        given: a type hint, or a JSON Schema as a dictionary.
        where: the place, for the message.
        mode: `serialization` describes values that Pydantic writes, `validation` those that it reads.

    Raises:
        InvalidDefinition: the type has no schema.
        NotConfigured: Pydantic is not installed.
    """
    if given is None or given is Any:
        return None
    if isinstance(given, dict):
        return given
    return _schema(_adapter(given, where), where, mode)


class Parameters:
    """The parameters of a function, which a caller passes by name as an object of JSON."""

    def __init__(self, function: Callable[..., Any], *, where: str) -> None:
        self.function = function
        self.where = where
        self._all = inspect.signature(function).parameters

    @property
    def wants_context(self) -> bool:
        """True if the function has a parameter `context`."""
        return CONTEXT in self._all

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Type hints of the parameters and of `return`, as far as the function has them.

        Raises:
            InvalidDefinition: a hint names something that does not exist.
        """
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:
            fault = str(error).rstrip(".")
            raise InvalidDefinition(
                f"{self.where}: its type hints cannot be evaluated: {fault}. They must be names that exist at the top "
                "level of the module when it has been imported, or schemas must be given instead."
            ) from None

    def schema(self) -> JsonSchema:
        """Return the schema of the arguments, with the descriptions in the docstring.

        Raises:
            InvalidDefinition: a parameter cannot be an argument, or its type has no schema.
            NotConfigured: Pydantic is not installed.
        """
        schema = _schema(self._arguments, self.where, "validation")
        if schema.pop("title", None) is None:
            self._refuse("a parameter has the type Self, which only methods can have")
        described = parameter_descriptions(self.function)
        for name, part in schema.get("properties", {}).items():
            if name not in self._all:
                self._refuse(f"{name!r} is an alias. Remove it: an argument has the name of its parameter")
            if name in described:
                part.setdefault("description", described[name])
            default = self._all[name].default
            if default is not inspect.Parameter.empty:
                part["default"] = self._as_json(name, default)
        return schema

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the types of the parameters.

        Raises:
            GiveUp: Pydantic does not accept one of them.
        """
        from pydantic import ValidationError

        try:
            values: dict[str, Any] = self._arguments.validate_json(json.dumps(arguments))
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            listed = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:5])
            raise GiveUp(f"the arguments are not valid: {listed}") from None
        return values

    def require_json(self) -> None:
        """Check that values of JSON are values of all hints as they are, without a conversion.

        Raises:
            InvalidDefinition: names the hint that is not such a type.
        """
        for name, hint in self.hints.items():
            if name != CONTEXT and (wrong := _not_json(hint)):
                what = "its result" if name == "return" else f"the parameter {name!r}"
                raise InvalidDefinition(
                    f"{self.where}: {what} has the type {wrong}, but the sandbox passes JSON without conversion. Use "
                    "str, int, float, bool, None, list, dict, TypedDict, Literal or Any; a tool (`@minions.tool`) may "
                    "use any type."
                )

    @cached_property
    def _arguments(self) -> TypeAdapter[dict[str, Any]]:
        _require_pydantic(self.where)
        from pydantic import ConfigDict
        from typing_extensions import TypedDict  # Pydantic refuses that of `typing` before Python 3.12

        fields = {name: self._hint(name, each) for name, each in self._all.items() if name != CONTEXT}
        optional = {name for name in fields if self._all[name].default is not inspect.Parameter.empty}
        with _refusing(self.where):
            hints = {name: typing.NotRequired[hint] if name in optional else hint for name, hint in fields.items()}
            arguments: Any = TypedDict("Arguments", hints)  # type: ignore[misc]
        setattr(arguments, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - mypy knows no such attribute
        return _adapter(arguments, self.where)

    def _hint(self, name: str, parameter: inspect.Parameter) -> Any:
        if parameter.kind not in BY_NAME:
            self._refuse(f"the parameter {str(parameter).partition(':')[0]!r} cannot be passed by name. Remove it")
        if type(parameter.default).__name__ == "FieldInfo":
            self._refuse(f"the default of {name!r} is a Field. Write `{name}: Annotated[TYPE, Field(…)] = VALUE`")
        if name not in self.hints:
            self._refuse(f"the parameter {name!r} has no type hint. Add one (`Any` accepts all JSON)")
        return self.hints[name]

    def _as_json(self, name: str, default: Any) -> Any:
        from pydantic_core import to_jsonable_python

        try:
            value = to_jsonable_python(default)
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            return value
        except ValueError:
            self._refuse(f"the default of {name!r} is not JSON: {default!r}. Use None, and set it in the function")

    def _refuse(self, fault: str) -> NoReturn:
        raise InvalidDefinition(f"{self.where}: {fault}.")


def to_json(value: Any) -> Any:
    """Return a result as JSON: models, dataclasses, times and the like are written as Pydantic writes them."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def _not_json(hint: Any, within: tuple[Any, ...] = ()) -> str | None:
    """Return the part of a hint that is no type of JSON. `within`: the TypedDicts around it, which may be recursive."""
    origin, arguments = get_origin(hint), get_args(hint)
    if any(hint is each for each in (*JSON_TYPES, *within)):
        return None
    if origin is Literal:
        return next((f"Literal[{each!r}]" for each in arguments if type(each) not in JSON_TYPES), None)
    if origin is dict and arguments and _not_json(arguments[0]) is None and not _is_text(arguments[0]):
        return f"{hint} (in JSON, keys are strings)"
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        parts = arguments[:1]
    elif origin in (typing.Union, types.UnionType, list, dict):
        parts = arguments
    elif _is_typed_dict(hint):
        parts, within = tuple(typing.get_type_hints(hint, include_extras=True).values()), (*within, hint)
    else:
        return getattr(hint, "__name__", None) or str(hint)
    return next(filter(None, (_not_json(each, within) for each in parts)), None)


def _is_text(hint: Any) -> bool:
    if get_origin(hint) is typing.Annotated:
        hint = get_args(hint)[0]
    return hint in (str, Any) or (get_origin(hint) is Literal and all(isinstance(each, str) for each in get_args(hint)))


def _is_typed_dict(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, dict) and hasattr(hint, "__required_keys__")


def _schema(adapter: TypeAdapter[Any], where: str, mode: Mode) -> JsonSchema:
    from pydantic.json_schema import GenerateJsonSchema

    class AsWritten(GenerateJsonSchema):
        """Fields have only the titles that their authors gave them, and keywords have the order of a reader."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def sort(self, value: JsonSchema, parent_key: str | None = None) -> JsonSchema:
            return value

    with _refusing(where):
        return adapter.json_schema(mode=mode, schema_generator=AsWritten)


def _adapter(hint: Any, where: str) -> TypeAdapter[Any]:
    _require_pydantic(where)
    from pydantic import TypeAdapter

    with _refusing(where):
        return TypeAdapter(hint)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Report all exceptions: Pydantic raises many kinds for a wrong type, and runs the code of types."""
    try:
        yield
    except MinionsError:
        raise
    except Exception as error:
        fault = " ".join(str(getattr(error, "message", error)).split()).rstrip(".")
        raise InvalidDefinition(f"{where}: a type has no JSON Schema: {fault or type(error).__name__}.") from None


def _require_pydantic(where: str) -> None:
    try:
        import pydantic  # noqa: F401
    except ImportError:
        raise NotConfigured(
            f"{where}: schemas of type hints need Pydantic, which is not installed: `pip install "
            "'minions-client[pydantic]'`, or give `input_schema` and `output_schema` as dictionaries."
        ) from None
