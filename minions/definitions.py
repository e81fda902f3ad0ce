"""Agents, tools and functions in Python: the same definitions as in YAML, with schemas from type hints.

    import minions

    @minions.function
    def plan_of(account: int) -> Literal["free", "team"]:
        \"""Look up the plan of an account.\"""
        return "free" if account % 2 else "team"

    desk = minions.Agent("desk", system_prompt="You answer tickets.", tools=[plan_of], input_schema=Ticket)

`minion apply shop.agents` stores what a module defines. Decorated functions can be called, and tested, as before.
Nothing is checked at the import of the module; type hints need Pydantic, which is imported when definitions are made.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, ClassVar, Generic, Literal, ParamSpec, TypeVar, cast, overload

from minions.docstrings import description_of
from minions.errors import InvalidDefinition
from minions.function_source import source_of
from minions.type_schemas import CONTEXT, Parameters, schema_of, to_json

Document = dict[str, Any]
Effect = Literal["pure", "idempotent", "unsafe"]
P = ParamSpec("P")
R = TypeVar("R")


class Declared:
    """An agent, a tool or a function that a module defines."""

    kind: ClassVar[str]
    name: str
    description: str | None = None

    def document(self) -> Document:
        """Return the definition as in a YAML file.

        Raises:
            InvalidDefinition: it cannot be made from the code.
            NotConfigured: it needs Pydantic, which is not installed.
        """
        raise NotImplementedError

    def uses(self) -> Iterator[Declared]:
        """Yield what it refers to directly."""
        yield from ()

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


class Tool(Declared):
    """A tool of any type, with the fields that YAML has: `Tool("news", type="web_search", web_search={"max_uses": 3})`.

    `function` and `agent` may be a declared function or agent, `input_schema` and `output_schema` types.
    """

    kind = "tool"

    def __init__(self, name: str, *, type: str, **fields: Any) -> None:
        self.name = name
        self.description = fields.get("description")
        self._fields = {"type": type, **fields}

    def document(self) -> Document:
        """Return the definition as in a YAML file."""
        return {"kind": self.kind, "name": self.name, **_plain(self._fields, f"tool {self.name!r}")}

    def uses(self) -> Iterator[Declared]:
        """Yield the function or agent that it calls."""
        yield from _declared_in(self._fields.values())


class Agent(Declared):
    """An agent, with the fields that YAML has. All others are settings of its `config`.

    Args:
        tools: what its model may call: tools, functions and agents of this module, or names. A function or an agent
            becomes a tool of the same name and description.
        function, tool, relations: of an agent of type `function`, which then needs no `type`.
        input_schema, output_schema: a type, or a JSON Schema as a dictionary.
        config: settings such as `{"max_turns": 4}`, which may also be keyword arguments: `max_turns=4`.
    """

    kind = "agent"

    def __init__(
        self,
        name: str,
        *,
        description: str | None = None,
        type: str | None = None,
        model: str | None = None,
        system_prompt: str | None = None,
        input_schema: Any = None,
        output_schema: Any = None,
        tools: Iterable[Declared | str] = (),
        function: Declared | str | None = None,
        tool: Declared | str | None = None,
        relations: Iterable[Declared | str | Mapping[str, Any]] = (),
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        self.description = description
        self._tools = [_as_tool(each) for each in tools]
        self._relations = [each if isinstance(each, Mapping) else {"agent": each} for each in relations]
        runs_code = function is not None or tool is not None or self._relations
        self._fields = {
            "description": description,
            "type": type or ("function" if runs_code else None),
            "model": model,
            "system_prompt": system_prompt,
            "input_schema": input_schema,
            "output_schema": output_schema,
            "tools": self._tools,
            "function": function,
            "tool": tool,
            "relations": self._relations,
            "config": {**(config or {}), **settings},
        }

    def document(self) -> Document:
        """Return the definition as in a YAML file."""
        return {"kind": self.kind, "name": self.name, **_plain(self._fields, f"agent {self.name!r}")}

    def uses(self) -> Iterator[Declared]:
        """Yield its tools, and the agents of its chain."""
        yield from _declared_in([*self._fields.values(), *self._tools])
        for relation in self._relations:
            yield from _declared_in(relation.values())


class _Decorated(Declared, Generic[P, R]):
    """A Python function with a definition. Calling it calls the function."""

    def __init__(self, function: Callable[P, R], name: str | None, fields: dict[str, Any]) -> None:
        self.name = str(name or getattr(function, "__name__", ""))
        self.place = f"{self.kind} {self.name!r}"
        self.function = _checked(function, self.place)
        given = fields["description"]
        self.description = description_of(function) if given is None else given
        self._fields = fields
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, here and now."""
        return cast(R, self.function(*args, **kwargs))

    @functools.cached_property
    def _parameters(self) -> Parameters:
        return Parameters(self.function, where=self.place)

    def _described(self) -> Document:
        return {"kind": self.kind, "name": self.name, "description": self.description}

    def _schemas(self, *, read: bool = False) -> Document:
        """Return the schemas: those of the type hints, or the given ones."""
        given, parameters = self._fields, self._parameters
        inputs, outputs = given.get("input_schema"), given.get("output_schema")
        if outputs is None:
            outputs = parameters.hints.get("return")
            outputs = {"type": "null"} if outputs is type(None) else outputs
        found = {
            "input_schema": parameters.schema() if inputs is None else schema_of(inputs, where=self.place),
            "output_schema": schema_of(
                outputs, where=f"{self.place}, its result", mode="validation" if read else "serialization"
            ),
        }
        return {name: schema for name, schema in found.items() if schema is not None}


class Function(_Decorated[P, R]):
    """A function that runs in the sandbox: see `minions.function`."""

    kind = "function"

    def document(self) -> Document:
        """Return the definition as in a YAML file, with the source of the function and of what it uses."""
        given = self._fields
        if given["input_schema"] is None:
            self._parameters.require_json()
        config = {**({"requires_context": True} if self._parameters.wants_context else {}), **given["config"]}
        fields = {
            **self._described(),
            "code": source_of(self.function, helper=_is_function, foreign=_foreign),
            "entrypoint": None if self.name == self.function.__name__ else self.function.__name__,
            **self._schemas(read=True),
            "cache": given["cache"],
            "config": config,
        }
        return {name: value for name, value in fields.items() if value not in (None, {}) or name.endswith("_schema")}


class BuiltinTool(_Decorated[P, R]):
    """A tool that runs in the process of the worker: see `minions.tool`."""

    kind = "tool"

    def document(self) -> Document:
        """Return the definition as in a YAML file."""
        settings = {name: value for name, value in self._fields["settings"].items() if value is not None}
        builtin = settings.pop("builtin", self.name)
        return {**self._described(), "type": "builtin", "builtin": builtin, **settings, **self._schemas()}

    @property
    def entry_point(self) -> tuple[str, str]:
        """The name and the value by which a package offers it to workers."""
        place = f"{self.function.__module__}:{self.function.__qualname__}"
        return str(self._fields["settings"].get("builtin") or self.name), place

    def run(self, arguments: Mapping[str, Any], context: Any) -> Any:
        """Make a call for a worker: convert the arguments to the types of the parameters, and the result to JSON.

        Raises:
            GiveUp: the arguments are not of these types.
        """
        values = dict(arguments) if self._fields.get("input_schema") else self._parameters.read(arguments)
        if self._parameters.wants_context:
            values[CONTEXT] = context
        function: Callable[..., Any] = self.function
        result = function(**values)
        return _awaited(result) if inspect.isawaitable(result) else to_json(result)


async def _awaited(result: Any) -> Any:
    return to_json(await result)


@overload
def function(function: Callable[P, R]) -> Function[P, R]: ...
@overload
def function(
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Any = None,
    output_schema: Any = None,
    cache: str | None = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Callable[[Callable[P, R]], Function[P, R]]: ...
def function(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Any = None,
    output_schema: Any = None,
    cache: str | None = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Declare a function that runs in the sandbox. Its source is stored, with what it uses of its module.

    Args:
        name: by default that of the function.
        description: by default the docstring, up to its first section.
        input_schema, output_schema: by default those of the type hints, which must be types of JSON.
        cache: how long its results may be used again, such as `1h`.
        config: settings such as `{"timeout": 5}`, which may also be keyword arguments: `timeout=5`.

    Raises:
        InvalidDefinition: it is a lambda, a method or a generator.
    """
    fields = {
        "description": description,
        "input_schema": input_schema,
        "output_schema": output_schema,
        "cache": cache,
        "config": {**(config or {}), **settings},
    }
    if function is None:
        return lambda decorated: Function(decorated, name, fields)
    return Function(function, name, fields)


@overload
def tool(function: Callable[P, R]) -> BuiltinTool[P, R]: ...
@overload
def tool(
    *,
    effect: Effect | None = None,
    name: str | None = None,
    description: str | None = None,
    input_schema: Any = None,
    output_schema: Any = None,
    **settings: Any,
) -> Callable[[Callable[P, R]], BuiltinTool[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    *,
    effect: Effect | None = None,
    name: str | None = None,
    description: str | None = None,
    input_schema: Any = None,
    output_schema: Any = None,
    **settings: Any,
) -> Any:
    """Declare a builtin tool, which runs in the process of the worker. The package offers it by an entry point of the
    group `minions.tools`: `send-mail = "shop.tools:send_mail"`.

    Args:
        effect: on the world; `unsafe` by default.
        name: by default that of the function.
        description: by default the docstring, up to its first section.
        input_schema, output_schema: by default those of the type hints.
        settings: other fields of a tool: `approval`, `approval_timeout`, `cache`, `strict`, `defer_loading`; `builtin`,
            the name of the entry point, if it is not that of the tool.

    Raises:
        InvalidDefinition: it is a lambda, a method or a generator.
    """
    fields = {
        "description": description,
        "input_schema": input_schema,
        "output_schema": output_schema,
        "settings": {"effect": effect, **settings},
    }
    if function is None:
        return lambda decorated: BuiltinTool(decorated, name, fields)
    return BuiltinTool(function, name, fields)


def documents_of(declared: Iterable[Declared]) -> list[Document]:
    """Return the definitions of all these, and of all that they refer to: functions, then tools, then agents.

    Raises:
        InvalidDefinition: one cannot be made from the code or is not JSON, or two different ones have the same name.
        NotConfigured: one needs Pydantic, which is not installed.
    """
    found: dict[tuple[str, str], Document] = {}
    for each in related(declared):
        document = each.document()
        _require_json(each, document)
        if found.setdefault((each.kind, each.name), document) != document:
            raise InvalidDefinition(f"There are two different definitions of {each.kind} {each.name!r}: rename one.")
    order = ("function", "tool", "agent")
    return sorted(found.values(), key=lambda document: order.index(document["kind"]))


def _require_json(declared: Declared, document: Document) -> None:
    try:
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDefinition(f"{declared.kind} {declared.name!r}: the definition is not JSON: {error}.") from None


def related(declared: Iterable[Declared]) -> list[Declared]:
    """Return all these and all that they refer to, each once."""
    found: dict[int, Declared] = {}
    waiting = [*declared]
    for each in waiting:  # grows
        if id(each) not in found:
            found[id(each)] = each
            waiting += each.uses()
    return [*found.values()]


def _checked(function: Any, place: str) -> FunctionType:
    """Return the function if it can be declared."""
    if isinstance(function, staticmethod | classmethod | property):
        raise InvalidDefinition(f"{place}: it is a method of a class. Move it to the top level of the module.")
    if not isinstance(function, FunctionType):
        raise InvalidDefinition(
            f"{place}: it must decorate a function, not {type(function).__name__}. No other decorator may be below it."
        )
    if function.__name__ == "<lambda>":
        raise InvalidDefinition(f"{place}: a lambda cannot be stored. Write it as `def`, with a name.")
    scope = function.__qualname__.rpartition(".")[0]
    if scope and not scope.endswith("<locals>"):
        raise InvalidDefinition(f"{place}: it is a method of a class. Move it to the top level of the module.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidDefinition(f"{place}: it is a generator. Return a list: a result is one value of JSON.")
    return function


def _as_tool(given: Declared | str) -> Declared | str:
    """Return the tool by which a model calls something."""
    if isinstance(given, Declared) and given.kind in ("function", "agent"):
        return Tool(given.name, description=given.description, type=given.kind, **{given.kind: given})
    return given


def _plain(fields: Mapping[str, Any], place: str) -> Document:
    """Return the fields that were given, with names in place of what is declared, and schemas in place of types."""
    plain: Document = {}
    for name, value in fields.items():
        if name in ("input_schema", "output_schema"):
            value = schema_of(value, where=f"{place}, {name}")
        elif isinstance(value, Declared):
            value = value.name
        elif isinstance(value, list):
            value = [_named(each) for each in value]
        if value is not None and (value not in ([], {}) or name.endswith("_schema")):
            plain[name] = value
    return plain


def _named(value: Any) -> Any:
    if isinstance(value, Declared):
        return value.name
    return {name: _named(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _declared_in(values: Iterable[Any]) -> Iterator[Declared]:
    yield from (value for value in values if isinstance(value, Declared))


def _is_function(value: Any) -> bool:
    return isinstance(value, Function)


def _foreign(value: Any) -> str | None:
    """Return why the source of a function in the sandbox cannot contain this; None if it can."""
    if isinstance(value, Declared) and not isinstance(value, Function):
        return f"which is the {value.kind} {value.name!r} and does not exist in the sandbox"
    return None
