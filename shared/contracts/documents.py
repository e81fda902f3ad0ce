"""Definitions of agents, tools and functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from shared.contracts import model_misfits, sampling, turn_settings
from shared.contracts.approval_policy import Approval, ApprovalPolicy
from shared.contracts.code_mode import RUN_PROGRAM, OptionalCodeMode, same_function
from shared.contracts.context_edits import ContextManagement
from shared.contracts.durations import Duration
from shared.contracts.json_schema import check_dialect, check_keywords, check_schema
from shared.contracts.key_order import KeyOrder, order_of, ordered
from shared.contracts.requests import Budget, Lane
from shared.contracts.server_tools import (
    API_TOOLS,
    RUN_BY_API,
    ApiTool,
    CodeExecution,
    Memory,
    ToolSearch,
    WebFetch,
    WebSearch,
    tool_search_misfit,
)
from shared.contracts.shares import Share
from shared.contracts.strict_json import check, digest
from shared.contracts.strict_model import Strict, faults_of
from shared.contracts.turn_settings import (
    FALLBACK_REASONS,
    Beta,
    FallbackReason,
    ServiceTier,
    Speed,
    StopSequence,
    ToolChoice,
    UserId,
)
from shared.errors import InvalidDefinition, InvalidInput, MinionError
from shared.outbound import checked_url
from shared.providers import ANTHROPIC, OWN_KEY, normal_name, split
from shared.secret_store import HEADER_VALUE, references

NAME = r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
CAPABILITY = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
RESERVED_QUEUES = frozenset({"celery", "minion.submit"})
DEFAULT_CAPABILITY = "default"
DEFAULT_ALLOWED_IMPORTS = ["json", "datetime", "math", "re", "collections", "itertools", "functools"]


def _without_model_keys(headers: dict[str, str]) -> dict[str, str]:
    for name in references(headers.values()):
        if name.startswith(OWN_KEY):
            raise ValueError(
                f"a header must not contain the secret {name!r}: it is a key for a provider of models, and sent to "
                "that provider alone"
            )
    return headers


Name = Annotated[str, StringConstraints(pattern=NAME)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Capability = Annotated[str, StringConstraints(pattern=CAPABILITY)]
ToolReference = Annotated[str, StringConstraints(pattern=NAME[:-1] + r"(@[1-9][0-9]{0,8})?$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]
HeaderValue = Annotated[str, StringConstraints(pattern=HEADER_VALUE, max_length=4000)]
Headers = Annotated[dict[HeaderName, HeaderValue], AfterValidator(_without_model_keys), Field(max_length=50)]
Effect = Literal["pure", "idempotent", "unsafe"]
JsonSchema = dict[str, Any]
SCHEMAS = ("input_schema", "output_schema")
NAMING = frozenset({"properties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
"""Keywords by which a schema names properties."""
OPENING = frozenset({"additionalProperties", "unevaluatedProperties"})
PROTOCOL_HEADERS = frozenset(
    {"accept", "accept-encoding", "content-type", "content-length", "connection", "host", "transfer-encoding"}
)
CONTEXT_AND_CACHE = "a function with requires_context must not be cached: its result depends on the task"


def _without_defaults(model: BaseModel, fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a serialised model without those of the named fields that have their defaults."""
    known = type(model).model_fields
    silent = {name for name in names if fields.get(name) == _default(known[name])}
    return {name: value for name, value in fields.items() if name not in silent}


def _default(field: FieldInfo) -> Any:
    """Return a field's default. `FieldInfo.get_default` would copy `sys.modules`, to inspect the factory each time."""
    return field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]


class AgentConfig(Strict):
    """Settings for running an agent. Times are seconds.

    Attributes:
        LATER: fields that the first release did not know. They are stored only if they differ from their defaults,
            so that its minions can read the others, and checksums do not change.
        OF_MODELS: fields beside sampling that only a model can honour.
    """

    LATER: ClassVar[tuple[str, ...]] = (
        "retry_curve",
        "retry_jitter",
        "retry_on",
        "no_retry_on",
        "approval",
        "thinking",
        "effort",
        "max_parallel",
        "budget",
        "router_model",
        "history_tokens",
        "top_k",
        *turn_settings.NAMES,
        "fallback_on",
        "fallback_after",
        "tool_search",
        "lane",
        "code_mode",
    )
    OF_MODELS: ClassVar[tuple[str, ...]] = ("thinking", "effort", *turn_settings.NAMES, "tool_search", "code_mode")

    capabilities: list[Capability] = Field(default_factory=lambda: [DEFAULT_CAPABILITY], min_length=1, max_length=20)
    max_chain_depth: int = Field(5, ge=1, le=50)
    chain_strategy: Literal["sequential", "parallel", "fallback", "router"] = "sequential"
    router_model: Annotated[str, AfterValidator(normal_name)] | None = Field(None, min_length=1, max_length=200)
    on_child_failure: Literal["fail", "collect"] = "fail"
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1, le=1_000_000)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_tokens: int = Field(4096, ge=1, le=1_000_000)
    max_turns: int = Field(20, ge=1, le=1000)
    soft_time_limit: int = Field(300, ge=1, le=86_400)
    time_limit: int = Field(330, ge=1, le=90_000)
    max_attempts: int = Field(3, ge=1, le=100)
    retry_backoff: float = Field(2.0, ge=0, le=3600)
    retry_backoff_max: float = Field(300.0, ge=0, le=86_400)
    retry_curve: Literal["exponential", "linear", "constant"] = "exponential"
    retry_jitter: float = Field(0.5, ge=0, le=1)
    retry_on: list[str] | None = Field(None, max_length=100)
    no_retry_on: list[str] = Field(default_factory=list, max_length=100)
    approval: Approval = False
    thinking: Literal["adaptive", "disabled"] | Annotated[int, Field(ge=1024, le=1_000_000)] | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    max_parallel: int = Field(1000, ge=1, le=10_000)
    tool_choice: ToolChoice | None = None
    stop_sequences: list[StopSequence] = Field(default_factory=list, max_length=100)
    service_tier: ServiceTier | None = None
    user_id: UserId | None = None
    betas: list[Beta] = Field(default_factory=list, max_length=20)
    fallback_models: list[ModelName] = Field(default_factory=list, max_length=5)
    fallback_on: list[FallbackReason] = Field(default_factory=lambda: [*FALLBACK_REASONS], min_length=1)
    fallback_after: Duration = "5m"
    speed: Speed | None = None
    context_management: ContextManagement | None = None
    task_budget: bool = False
    citations: bool = False
    tool_search: ToolSearch | None = None
    code_mode: OptionalCodeMode = None
    budget: Budget | None = None
    history_tokens: int = Field(50_000, ge=500, le=1_000_000)
    lane: Lane = "direct"

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), self.LATER)

    @field_validator("capabilities")
    @classmethod
    def _no_reserved_queue(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in RESERVED_QUEUES:
                raise ValueError(f"{name!r} is a queue that Minions uses itself; choose another name")
        if len(set(names)) != len(names):
            raise ValueError("a capability is listed twice")
        return names

    @model_validator(mode="before")
    @classmethod
    def _hard_limit_follows(cls, data: Any) -> Any:
        """Set the hard limit if only the soft one is given: 10 % later, at least 5 s."""
        if isinstance(data, dict) and "soft_time_limit" in data and "time_limit" not in data:
            soft = data["soft_time_limit"]
            if isinstance(soft, int) and not isinstance(soft, bool):
                return {**data, "time_limit": soft + max(5, soft // 10)}
        return data

    @model_validator(mode="after")
    def _limits_are_ordered(self) -> Self:
        if self.time_limit <= self.soft_time_limit:
            raise ValueError("time_limit (hard) must be more than soft_time_limit")
        return self

    @model_validator(mode="after")
    def _only_a_router_asks(self) -> Self:
        if self.router_model is not None and self.chain_strategy != "router":
            raise ValueError("router_model must come with chain_strategy: router")
        return self

    @model_validator(mode="after")
    def _fallback_has_models(self) -> Self:
        chosen = [name for name in ("fallback_on", "fallback_after") if name in self.model_fields_set]
        if chosen and not self.fallback_models:
            raise ValueError(f"{chosen[0]} must come with `fallback_models`")
        if len({*self.fallback_on}) != len(self.fallback_on):
            raise ValueError("fallback_on must name each reason once")
        return self

    @model_validator(mode="after")
    def _thinking_leaves_room(self) -> Self:
        if isinstance(self.thinking, int) and self.thinking >= self.max_tokens:
            raise ValueError("max_tokens includes the thinking: it must be more than `thinking`")
        if self.thinking not in (None, "disabled") and sampling.settings_to_send(self.sampling()):
            raise ValueError("a model that thinks must not have temperature, top_p or top_k")
        if self.thinking not in (None, "disabled") and self.tool_choice is not None and self.tool_choice.forces:
            raise ValueError("a model that thinks must not be forced to call a tool by tool_choice")
        return self

    def sampling(self) -> dict[str, float | None]:
        """Return the sampling settings by name."""
        return {name: getattr(self, name) for name in sampling.NEUTRAL}


class RelationDefinition(Strict):
    """An agent that this one delegates work to."""

    agent: Name
    for_each: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The field of the input that holds a list: one sub-task for each element of it.",
    )


class Evaluator(Strict):
    """An agent that judges a share of the tasks of another one, after they have succeeded.

    Its output must have a `score` between 0 and 1, and may have `passed` and `reason`.
    """

    agent: Name
    share: Share = "5%"
    max_per_hour: int = Field(100, ge=1, le=100_000)
    budget: Budget | None = None


class Definition(Strict):
    """Fields that agents, tools and functions share."""

    name: Name
    description: str = Field("", max_length=10_000)

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        check(self.model_dump(), what=f"The definition {self.name!r}")
        for where, schema in self._schemas():
            check_schema(schema, where=where)
        return self

    def check_dialect(self) -> None:
        """Refuse schemas with keywords of another draft, and conditions with unknown ones. `parse_definition` calls it
        for submitted definitions.

        Raises:
            InvalidDefinition: there is such a keyword.
        """
        for where, schema in self._schemas():
            check_dialect(schema, where=where)
        for where, condition in self._conditions():
            check_keywords(condition, where=where)

    def _schemas(self) -> Iterator[tuple[str, JsonSchema]]:
        """Yield the definition's schemas with their names in messages."""
        for field in SCHEMAS:
            if (schema := getattr(self, field, None)) is not None:
                yield f"{self.name!r}, {field}", schema
        yield from self._conditions()

    def _conditions(self) -> Iterator[tuple[str, JsonSchema]]:
        """Yield the conditions of the approval policy with their names in messages."""
        if (policy := self.approval_policy) is not None:
            for place, condition in policy.conditions():
                yield f"{self.name!r}, {place}", condition

    @property
    def approval_policy(self) -> ApprovalPolicy | None:
        """The policy by which a person must approve its calls; None if there is none."""
        return None

    def content(self) -> dict[str, Any]:
        """Return the definition as JSON, without `kind` and name: the checksum covers it and a version stores it."""
        return self.model_dump(mode="json", exclude={"kind", "name"})

    def key_order(self) -> KeyOrder | None:
        """Return the order of the keys in its schemas, in which models write; stored beside the content."""
        return order_of({field: getattr(self, field, None) for field in SCHEMAS})

    def checksum(self, **resolved: Any) -> str:
        """Return the SHA-256 of the content and of the versions that its references resolved to.

        Versions with the same checksum differ in their key order: minions of release 0.2 verify checksums without it.
        """
        return digest({"name": self.name, "content": self.content(), "resolved": resolved})


class AgentDefinition(Definition):
    """An agent: a model with a prompt and tools (type `agent`), or one function, tool or chain (type `function`)."""

    LATER: ClassVar[tuple[str, ...]] = ("evaluators",)

    kind: Literal["agent"] = "agent"
    type: Literal["agent", "function"] = "agent"
    model: str | None = Field(None, max_length=200)
    system_prompt: str = Field("", max_length=1_000_000)
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    tools: list[ToolReference] = Field(default_factory=list, max_length=128)
    function: ToolReference | None = None
    tool: ToolReference | None = None
    relations: list[RelationDefinition] = Field(default_factory=list, max_length=100)
    evaluators: list[Evaluator] = Field(default_factory=list, max_length=10)
    config: AgentConfig = Field(default_factory=AgentConfig)

    @model_validator(mode="after")
    def _evaluators_are_others(self) -> Self:
        names = [each.agent for each in self.evaluators]
        if self.name in names:
            raise ValueError("an agent must not evaluate itself")
        if len({*names}) != len(names):
            raise ValueError("evaluators must name each agent once")
        return self

    def content(self) -> dict[str, Any]:
        """Return the definition as JSON, without `kind` and name, and without later fields that are not used."""
        # Not by a serializer: Pydantic forgets what was raised in one below another, such as a time limit.
        return _without_defaults(self, super().content(), self.LATER)

    @field_validator("tools")
    @classmethod
    def _each_tool_once(cls, references: list[str]) -> list[str]:
        names = [reference.partition("@")[0] for reference in references]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the tool {min(twice)!r} is listed twice; a model knows a tool by its name")
        return references

    @model_validator(mode="after")
    def _type_fits(self) -> Self:
        (self._check_model_agent if self.type == "agent" else self._check_function_agent)()
        return self

    @property
    def approval_policy(self) -> ApprovalPolicy | None:
        """The policy by which a person must approve its input; None if there is none."""
        return self.config.approval if isinstance(self.config.approval, ApprovalPolicy) else None

    def inheriting(self, *pinned: Mapping[str, Any]) -> AgentDefinition:
        """Return the definition with schemas of the tool or function that it runs, nearest first, if it has none."""
        schemas = {
            name: next((one[name] for one in pinned if one.get(name) is not None), None)
            for name in SCHEMAS
            if getattr(self, name) is None
        }
        return self.model_copy(update=schemas)

    def _check_model_agent(self) -> None:
        self.model = normal_name(self.model or sampling.AUTO)
        if self.function or self.tool:
            raise ValueError(
                "an agent with a model must list what it may call under `tools`; "
                "`function` and `tool` are for type: function"
            )
        if split(self.model)[0] == ANTHROPIC:  # `definitions.provider_rules` knows the others.
            sampling.check(split(self.model)[1], self.config.sampling(), where=f"agent {self.name!r}")
        on_a_model = (*turn_settings.NAMES, "tool_search", "code_mode")
        set_here = [name for name in on_a_model if getattr(self.config, name)]
        if self.model == sampling.OFFLINE and set_here:
            raise ValueError(f"the model 'offline' cannot honour {', '.join(set_here)}")
        if self.model == sampling.OFFLINE and self.config.lane == "batch":
            raise ValueError("the offline planner answers at once: `lane: batch` must come with a language model")
        model_misfits.check(self.model, self.config)
        if self.config.citations and self.output_schema is not None:
            raise ValueError("an answer with an `output_schema` has no citations: remove it, or `citations`")
        if (choice := self.config.tool_choice) is not None:
            self._check_tool_choice(choice)
        if self.config.tool_search is not None:
            self._check_tool_search()
        if self.config.code_mode is not None:
            self._check_code_mode()
        if (edits := self.config.context_management) is not None:
            for name in edits.tool_names():
                if name not in self._tool_names() and not (self.config.code_mode and name == RUN_PROGRAM):
                    raise ValueError(f"context_management names {name!r}, which is not one of the agent's tools")

    def _check_tool_search(self) -> None:
        if not self.tools:
            raise ValueError("tool_search must come with `tools`")
        for model in (str(self.model), *self.config.fallback_models):
            if fault := tool_search_misfit(model):
                raise ValueError(f"tool_search: {fault}")

    def _check_code_mode(self) -> None:
        names = self._tool_names()
        if not names:
            raise ValueError("code_mode must come with `tools`, which its programs call")
        if self.config.tool_search is not None:
            raise ValueError("code_mode must not come with tool_search: its programs search by themselves")
        if RUN_PROGRAM in names:
            raise ValueError(f"the tool {RUN_PROGRAM!r} has the name of the one that code_mode offers: rename it")
        if alike := same_function(names):
            raise ValueError(
                f"in programs of code_mode, {alike[0]!r} and {alike[1]!r} would be one function: rename one of them"
            )

    def _tool_names(self) -> list[str]:
        return [reference.partition("@")[0] for reference in self.tools]

    def _check_tool_choice(self, choice: ToolChoice) -> None:
        names = self._tool_names() if self.config.code_mode is None else [RUN_PROGRAM]
        if not names:
            raise ValueError("tool_choice must come with `tools`")
        if choice.name is not None and choice.name not in names:
            raise ValueError(f"tool_choice names {choice.name!r}, which is not one of the agent's tools")

    def _check_function_agent(self) -> None:
        chosen = [name for name in ("function", "tool", "relations") if getattr(self, name)]
        if len(chosen) != 1:
            raise ValueError(
                "type: function must run exactly one of `function`, `tool` or `relations`"
                + (f", not {' and '.join(chosen)}" if chosen else "")
            )
        if self.model or self.tools:
            raise ValueError("type: function must not have `model` or `tools`")
        sent = sampling.settings_to_send(self.config.sampling())
        if sent:
            raise ValueError(f"type: function has no model that could honour {', '.join(sent)}")
        if chosen := [name for name in AgentConfig.OF_MODELS if getattr(self.config, name)]:
            raise ValueError(f"type: function has no model that could honour {', '.join(chosen)}")
        if self.config.lane != "direct" and self.config.router_model is None:
            raise ValueError("type: function has no model whose calls could wait for a batch: remove `lane`")

    @classmethod
    def from_arguments(cls, **arguments: Any) -> AgentDefinition:
        """Build a definition from keyword arguments; `config_data` and top-level settings form the config.

        Raises:
            InvalidDefinition: names each wrong argument.
        """
        config = arguments.pop("config_data", None) or {}
        if not isinstance(config, dict):
            raise InvalidDefinition(f"config_data must be a dictionary, not {type(config).__name__}.")
        config = dict(config)
        for name in AgentConfig.model_fields:
            if arguments.get(name) is not None:
                config[name] = arguments.pop(name)
            else:
                arguments.pop(name, None)
        for name in ("type", "model"):
            if name in config:
                arguments.setdefault(name, config.pop(name))
        given = {name: value for name, value in arguments.items() if value is not None}
        return parse_definition({"kind": "agent", **given, "config": config})  # type: ignore[return-value]


class HttpCall(Strict):
    """An HTTP request that a tool makes. Times are seconds.

    Arguments whose names are in braces in the URL are inserted there. Of the others, those in `query` become the query
    string, and the rest is the JSON body (without a body, the rest joins the query string). A header may contain
    `${secret:NAME}`.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(min_length=8, max_length=2000)
    query: list[Name] = Field(default_factory=list, max_length=50)
    headers: Headers = Field(default_factory=dict)
    result: str | None = Field(None, min_length=1, max_length=500)
    timeout: float = Field(30.0, gt=0, le=300)
    max_bytes: int = Field(1 << 20, ge=1, le=16 << 20)

    @field_validator("url")
    @classmethod
    def _host_is_fixed(cls, url: str) -> str:
        match = re.fullmatch(r"https?://([^/?#{}\s]+)([/?][^#\s]*)?", url)
        if match is None or "@" in match[1]:
            raise ValueError("a URL must begin with http:// or https:// and a host, which no argument may choose")
        if "${secret:" in url:
            raise ValueError("a URL must not contain secrets, which logs would show: put them into headers")
        try:
            checked_url(PLACEHOLDER.sub("x", url))
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return url

    @property
    def placeholders(self) -> list[str]:
        """Return the arguments that the URL names."""
        return PLACEHOLDER.findall(self.url)

    @property
    def has_body(self) -> bool:
        """Return whether arguments are sent as a JSON body."""
        return self.method in ("POST", "PUT", "PATCH")

    def closed(self, schema: JsonSchema | None) -> JsonSchema | None:
        """Return the schema, closed to arguments that neither it nor the request names, unless it says otherwise.

        The model sees it as it was stored: the hashes of running tasks' steps cover it.
        """
        if schema is None or not schema.keys() & NAMING or schema.keys() & OPENING:
            return schema
        named = dict.fromkeys([*self.placeholders, *self.query], True)
        return {**schema, "properties": named | schema.get("properties", {}), "unevaluatedProperties": False}


class McpAnnotations(Strict):
    """The annotations of an MCP server about a tool's effect. The names are the protocol's."""

    readOnlyHint: bool = False
    destructiveHint: bool = True
    idempotentHint: bool = False
    openWorldHint: bool = True

    @property
    def effect(self) -> Effect:
        """The effect of the tool, if the server is trusted."""
        return "pure" if self.readOnlyHint else "idempotent" if self.idempotentHint else "unsafe"


class McpCall(Strict):
    """A tool of an MCP server, as the server listed it when a person pulled it.

    Attributes:
        server: the `mcp_server` definition that names the server.
        tool: the server's name for the tool.
        listed: SHA-256 of what the server listed: name, title, description, schemas and annotations.
        trusted: the effect follows from the annotations, because the server is trusted.
    """

    server: ToolReference
    tool: str = Field(min_length=1, max_length=200)
    listed: str = Field(pattern=r"^[0-9a-f]{64}$")
    annotations: McpAnnotations = Field(default_factory=McpAnnotations)
    trusted: bool = False

    @property
    def effect(self) -> Effect:
        """The effect that follows from the annotations: `unsafe` unless the server is trusted."""
        return self.annotations.effect if self.trusted else "unsafe"


class ToolDefinition(Definition):
    """A tool that a model may call, or that a `type: function` agent runs."""

    LATER: ClassVar[tuple[str, ...]] = (
        "http",
        "mcp",
        "approval",
        "approval_timeout",
        "cache",
        "strict",
        "defer_loading",
        *API_TOOLS,
    )

    kind: Literal["tool"] = "tool"
    type: Literal["function", "agent", "builtin", "http", "mcp", "web_search", "web_fetch", "code_execution", "memory"]
    effect: Effect | None = None
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    function: ToolReference | None = None
    agent: Name | None = None
    builtin: str | None = Field(None, max_length=200)
    http: HttpCall | None = None
    mcp: McpCall | None = None
    web_search: WebSearch | None = None
    web_fetch: WebFetch | None = None
    code_execution: CodeExecution | None = None
    memory: Memory | None = None
    approval: Approval = False
    approval_timeout: float | None = Field(None, gt=0, le=31_622_400)
    cache: Duration | None = None
    strict: bool = False
    defer_loading: bool = False

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), self.LATER)

    @property
    def api_tool(self) -> ApiTool | None:
        """The settings of a tool that the API defines; None for all others."""
        tool: ApiTool | None = getattr(self, self.type) if self.type in API_TOOLS else None
        return tool

    @property
    def approval_policy(self) -> ApprovalPolicy | None:
        """The policy by which a person must approve its calls; None if there is none."""
        return self.approval if isinstance(self.approval, ApprovalPolicy) else None

    @field_validator("name")
    @classmethod
    def _name_suits_models(cls, name: str) -> str:
        # The Messages API's rule for tool names.
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ValueError(
                "a tool's name must have only letters, digits, _ and -, and at most 64 of them: models call it by "
                "that name"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _settings_may_be_left_out(cls, data: Any) -> Any:
        """Fill in the settings of a tool that the API runs: all of them have defaults."""
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind in RUN_BY_API and data.get(kind) is None:
            return {**data, kind: {}}
        return data

    @model_validator(mode="after")
    def _api_defines_it(self) -> Self:
        """Refuse settings that would be ignored, because the API defines the tool."""
        if self.type not in API_TOOLS:
            return self
        refused = ["description", "effect", "input_schema", "output_schema", "cache", "strict", "defer_loading"]
        if self.type in RUN_BY_API:
            refused += ["approval", "approval_timeout"]
        # A stored definition has the effect that follows from the type.
        given = [name for name in refused if getattr(self, name) and (name, self.effect) != ("effect", "idempotent")]
        if given:
            raise ValueError(f"a tool of type {self.type} must not have {', '.join(given)}: the API defines it")
        self.effect = "idempotent"
        return self

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        targets = [name for name in ("function", "agent", "builtin", "http", "mcp", *API_TOOLS) if getattr(self, name)]
        if targets != [self.type]:
            what = "its settings" if self.type in API_TOOLS else "the name of what it calls"
            raise ValueError(f"type: {self.type} needs `{self.type}:` with {what}, and no other target")
        if self.type == "function":
            if self.effect not in (None, "pure"):
                raise ValueError("a sandboxed function has no effect on the world: effect must be pure")
            self.effect = "pure"
        if self.http is not None and self.http.method == "GET":
            self.effect = self.effect or "idempotent"
        if self.mcp is not None:
            self.effect = self.effect or self.mcp.effect
        # A tool without a declared effect is treated as harmful.
        self.effect = self.effect or "unsafe"
        return self

    @model_validator(mode="after")
    def _only_pure_results_are_cached(self) -> Self:
        if self.cache is None:
            return self
        if self.type == "agent":
            raise ValueError(
                "a tool of type agent must not have `cache`: its call is a sub-task. Set `cache` in the function or "
                "tool that the agent runs"
            )
        if self.effect != "pure":
            raise ValueError(
                f"a tool with `cache` must declare `effect: pure`, and this one is {self.effect}: an earlier result "
                "would replace the effect of the call"
            )
        return self


def _checked_address(url: str) -> str:
    """Return an address that a definition may name."""
    if "${secret:" in url:
        raise ValueError("a URL must not contain secrets, which logs would show: put them into headers")
    try:
        checked_url(url)
    except InvalidInput as error:
        raise ValueError(error.message) from None
    return url


class McpOAuth(Strict):
    """Client credentials for an MCP server (OAuth 2.1).

    Attributes:
        issuer: the authorization server, whose metadata have the token endpoint.
        token_url: the token endpoint, for an authorization server without metadata.
        client_secret: `${secret:NAME}`.
        scope: scopes to ask for, separated by spaces.
        method: how the client shows its secret.
    """

    issuer: str | None = Field(None, min_length=8, max_length=2000)
    token_url: str | None = Field(None, min_length=8, max_length=2000)
    client_id: str = Field(min_length=1, max_length=500, pattern=r"^[\x20-\x7e]+$")
    client_secret: str = Field(max_length=200, pattern=r"^\$\{secret:[A-Za-z][A-Za-z0-9_.-]{0,99}\}$")
    scope: str | None = Field(
        None, max_length=2000, pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*$"
    )
    method: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"

    @field_validator("issuer", "token_url")
    @classmethod
    def _can_be_reached(cls, url: str | None) -> str | None:
        return url and _checked_address(url)

    @field_validator("client_secret")
    @classmethod
    def _is_no_key_of_a_model(cls, secret: str) -> str:
        _without_model_keys({"client_secret": secret})
        return secret

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        if (self.issuer is None) == (self.token_url is None):
            raise ValueError("oauth must have `issuer` or `token_url`, and not both")
        return self


class McpServerDefinition(Definition):
    """An MCP server, whose tools are pulled as tools of `type: mcp`. Times are seconds.

    A header may contain `${secret:NAME}`.

    Attributes:
        url: the address of a server that speaks streamable HTTP.
        stdio: the entry of `MINION_MCP_STDIO`, instead of an address: a program that the operators of workers allow.
        oauth: client credentials, to obtain a token for the address.
        trusted: effects of tools that are pulled follow from the server's annotations.
        timeout: limit of one call, with everything that it needs.
        max_bytes: limit of one message of the server.
    """

    kind: Literal["mcp_server"] = "mcp_server"
    url: str | None = Field(None, min_length=8, max_length=2000)
    stdio: Name | None = None
    headers: Headers = Field(default_factory=dict)
    oauth: McpOAuth | None = None
    trusted: bool = False
    timeout: float = Field(30.0, gt=0, le=300)
    max_bytes: int = Field(4 << 20, ge=1024, le=16 << 20)

    @field_validator("url")
    @classmethod
    def _can_be_reached(cls, url: str | None) -> str | None:
        return url and _checked_address(url)

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if (self.url is None) == (self.stdio is None):
            raise ValueError("an MCP server must have `url` or `stdio`, and not both")
        if self.stdio is not None and (self.headers or self.oauth):
            raise ValueError("an MCP server with `stdio` must not have `headers` or `oauth`: it is a process")
        if self.oauth is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("an MCP server with `oauth` must not have the header Authorization")
        return self

    @field_validator("headers")
    @classmethod
    def _leaves_the_protocol_alone(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() in PROTOCOL_HEADERS or name.lower().startswith("mcp-"):
                raise ValueError(f"the header {name!r} belongs to the protocol: remove it")
        return headers


class FunctionConfig(Strict):
    """Settings for running a function. Memory is MB, times are seconds."""

    version: str | None = Field(None, max_length=100)
    is_async: bool = False
    requires_context: bool = False
    memory_limit: int = Field(128, ge=8, le=16_384)
    timeout: float = Field(30.0, gt=0, le=3600)
    safe_mode: bool = True
    allowed_imports: list[str] = Field(default_factory=lambda: list(DEFAULT_ALLOWED_IMPORTS), max_length=200)

    @field_validator("allowed_imports")
    @classmethod
    def _module_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", name):
                raise ValueError(f"{name!r} is not the name of a module")
        return names


class FunctionDefinition(Definition):
    """A sandboxed Python function: its source, its entry point (by default the function's name), its contract."""

    kind: Literal["function"] = "function"
    code: str = Field(max_length=1_000_000)
    entrypoint: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    cache: Duration | None = None
    config: FunctionConfig = Field(default_factory=FunctionConfig)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, serialize(self), ("cache",))

    @model_validator(mode="after")
    def _cached_result_needs_no_context(self) -> Self:
        if self.cache is not None and self.config.requires_context:
            raise ValueError(CONTEXT_AND_CACHE)
        return self

    @model_validator(mode="after")
    def _entrypoint_is_a_name(self) -> Self:
        if self.entrypoint is None:
            if not self.name.isidentifier():
                raise ValueError(f"{self.name!r} is not a Python name: set `entrypoint:`")
            self.entrypoint = self.name
        return self


AnyDefinition = AgentDefinition | ToolDefinition | FunctionDefinition | McpServerDefinition
KINDS: dict[str, type[AnyDefinition]] = {
    "agent": AgentDefinition,
    "tool": ToolDefinition,
    "function": FunctionDefinition,
    "mcp_server": McpServerDefinition,
}
KNOWN_KINDS = "agent, tool, function or mcp_server"


class UnreadableDefinition(InvalidDefinition):
    """A stored definition has fields that this release does not know, because a later one wrote it."""

    code = "unreadable_definition"


def content_in_order(content: dict[str, Any], order: KeyOrder | None) -> dict[str, Any]:
    """Return the content of a stored definition, with the keys of its schemas in their order."""
    return {**content, **ordered({field: content.get(field) for field in SCHEMAS}, order)} if order else content


def stored_definition(kind: str, name: str, content: dict[str, Any], order: KeyOrder | None) -> Any:
    """Return a definition from a stored version.

    Raises:
        UnreadableDefinition: another release wrote it.
    """
    try:
        return KINDS[kind].model_validate({"name": name, **content_in_order(content, order)})
    except ValidationError as error:
        raise UnreadableDefinition(
            f"The stored {kind} {name!r} cannot be read by this release: {'; '.join(faults_of(error))}. "
            "Another release wrote it: use that one, or store the definition again."
        ) from None


def parse_definition(data: Any, *, where: str = "") -> AnyDefinition:
    """Parse a definition from plain data, such as a YAML document.

    Args:
        data: an object with `kind` and the fields of that kind.
        where: the file, for the message.

    Raises:
        InvalidDefinition: names the file, the definition and every error with its path.
    """
    place = f"{where}: " if where else ""
    if not isinstance(data, dict):
        raise InvalidDefinition(f"{place}a definition must be an object with `kind`, not {type(data).__name__}.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidDefinition(f"{place}`kind` must be {KNOWN_KINDS}, not {repr(kind)[:100]}.")
    try:
        definition = KINDS[kind].model_validate(data)
        definition.check_dialect()
        return definition
    except ValidationError as error:
        faults = faults_of(error)
        name = data.get("name")
        raise InvalidDefinition(
            f"{place}{kind} {str(name)[:100]!r} is not valid: " + "; ".join(faults) + ".", faults=faults
        ) from None
    except MinionError as error:
        raise InvalidDefinition(f"{place}{error.message}", **error.detail) from None
    except RecursionError:
        raise InvalidDefinition(f"{place}the definition is nested too deeply.") from None
