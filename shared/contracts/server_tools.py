"""Tools that the API defines: those that it runs (searches, fetches, code) and the memory, which workers run.

Models know these tools by fixed names. Each has several versions; the one that is sent is the newest that the model
takes (https://platform.claude.com/docs/en/agents-and-tools/tool-use/tool-reference).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from shared.contracts.sampling import AUTO
from shared.contracts.strict_model import Strict

MODEL = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")
PREVIEW = "claude-mythos-preview"
Version = tuple[int, int]
# The first model of each family that takes a tool. Fable and Mythos take all of them.
FIRST: dict[str, Version] = {"opus": (4, 0), "sonnet": (4, 0), "haiku": (4, 5)}
FIRST_WITH_TOOL_SEARCH: dict[str, Version] = {"opus": (4, 5), "sonnet": (4, 5), "haiku": (4, 5)}
FIRST_WITH_FILTER: Version = (4, 6)
"""First models that filter what they find on the web by code, before they read it."""
FIRST_WITH_REPL: Version = (4, 5)

Domain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)+(/[\x21-\x7e]*)?$", max_length=500)]
Uses = Annotated[int, Field(ge=1, le=1000)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Settings(Strict):
    """Settings, of which only those that are set are stored, so that a release can read what a later one stores."""

    @model_serializer(mode="wrap")
    def _what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class ApiTool(Settings):
    """Settings of a tool that the API defines.

    Attributes:
        NAME: the name by which models call it.
        RUN_BY_API: the API runs it, within a model call.
    """

    NAME: ClassVar[str]
    RUN_BY_API: ClassVar[bool] = True

    def version(self, model: str) -> str:
        """Return the `type` of the newest version that a model takes."""
        raise NotImplementedError

    def misfit(self, model: str) -> str | None:
        """Return the reason why a model cannot honour this tool, or None. The one that `auto` selects is not known."""
        return None if model == AUTO or takes(model) else f"the model {model!r} is not known to take it"


class WebTool(ApiTool):
    """Settings that searches and fetches share.

    Attributes:
        max_uses: of one model call.
        max_uses_per_task: of all calls of a task; None: no limit.
        allowed_domains: the only domains, with or without a path.
        blocked_domains: these domains never.
        dynamic_filtering: the model filters what it finds by code, before it reads it; None: if it can.
        response_inclusion: `excluded`: results that code has filtered are not in the answer.
        NEED_FILTER: settings that only models which filter take.
    """

    NEED_FILTER: ClassVar[tuple[str, ...]] = ("dynamic_filtering", "response_inclusion")

    max_uses: Uses = 5
    max_uses_per_task: Annotated[int, Field(ge=1, le=100_000)] | None = None
    allowed_domains: list[Domain] | None = Field(None, min_length=1, max_length=1000)
    blocked_domains: list[Domain] | None = Field(None, min_length=1, max_length=1000)
    dynamic_filtering: bool | None = None
    response_inclusion: Literal["full", "excluded"] | None = None

    @model_validator(mode="after")
    def _one_list_of_domains(self) -> Self:
        if self.allowed_domains and self.blocked_domains:
            raise ValueError("allowed_domains and blocked_domains must not both be set")
        if self.response_inclusion and self.dynamic_filtering is False:
            raise ValueError("response_inclusion is about dynamic filtering, which is switched off")
        return self

    def misfit(self, model: str) -> str | None:
        """See `ApiTool`."""
        if fault := super().misfit(model):
            return fault
        if model != AUTO and not filters(model):
            needs = [name for name in self.NEED_FILTER if getattr(self, name)]
            if needs:
                return f"the model {model!r} cannot honour {', '.join(needs)}"
        return None


class UserLocation(Settings):
    """The user's approximate location."""

    city: str | None = Field(None, min_length=1, max_length=255)
    region: str | None = Field(None, min_length=1, max_length=255)
    country: str | None = Field(None, pattern=r"^[A-Z]{2}$")
    timezone: str | None = Field(None, min_length=1, max_length=255)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_dump():
            raise ValueError("user_location must have city, region, country or timezone")
        return self


class WebSearch(WebTool):
    """Searches on the web."""

    NAME: ClassVar[str] = "web_search"

    user_location: UserLocation | None = None

    def version(self, model: str) -> str:
        """See `ApiTool`."""
        return "web_search_20260318" if filters(model) else "web_search_20250305"


class ToolNames(Settings):
    """The results of these tools only, or of all others."""

    only: list[ToolName] | None = Field(None, min_length=1, max_length=128)
    all_but: list[ToolName] | None = Field(None, min_length=1, max_length=128)

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if (self.only is None) == (self.all_but is None):
            raise ValueError("must have `only` or `all_but`, with names of tools")
        return self


class UrlSources(Settings):
    """The sources of URLs that may be fetched; those that are left out are allowed."""

    user_input: Literal["all", "none"] | None = None
    client_tool_results: Literal["all", "none"] | ToolNames | None = None
    server_tool_results: Literal["all", "none"] | ToolNames | None = None


class WebFetch(WebTool):
    """Fetches of pages and PDF files whose URLs are in the conversation.

    Attributes:
        citations: the model cites what it fetched.
        max_content_tokens: of the text of one page, approximately.
        use_cache: whether a page may come from the API's cache; None: the API's default.
    """

    NAME: ClassVar[str] = "web_fetch"
    NEED_FILTER: ClassVar[tuple[str, ...]] = ("dynamic_filtering", "response_inclusion", "use_cache")

    citations: bool = False
    max_content_tokens: int = Field(25_000, ge=1, le=1_000_000)
    url_sources: UrlSources | None = None
    use_cache: bool | None = None

    def version(self, model: str) -> str:
        """See `ApiTool`."""
        return "web_fetch_20260318" if filters(model) else "web_fetch_20250910"

    def misfit(self, model: str) -> str | None:
        """See `ApiTool`. `use_cache: false` needs a newer version too."""
        if self.use_cache is False and model != AUTO and takes(model) and not filters(model):
            return f"the model {model!r} cannot honour use_cache"
        return super().misfit(model)


class CodeExecution(ApiTool):
    """Code that the model writes, run by the API in a container without a network."""

    NAME: ClassVar[str] = "code_execution"

    def version(self, model: str) -> str:
        """See `ApiTool`."""
        return "code_execution_20260521" if takes(model, first=FIRST_WITH_REPL) else "code_execution_20250825"


class Memory(ApiTool):
    """Files in which a model remembers things; this installation stores them.

    Attributes:
        per: a store for each conversation, for each tenant key, or for each agent.
        max_bytes: of all files of a store.
        max_file_bytes: of one file.
    """

    NAME: ClassVar[str] = "memory"
    RUN_BY_API: ClassVar[bool] = False

    per: Literal["conversation", "tenant", "agent"]
    max_bytes: int = Field(1_000_000, ge=1000, le=100_000_000)
    max_file_bytes: int = Field(100_000, ge=1000, le=10_000_000)

    def version(self, model: str) -> str:
        """See `ApiTool`."""
        return "memory_20250818"


class ToolSearch(Settings):
    """A search by which a model finds those of its tools that are not loaded from the beginning.

    Attributes:
        by: `bm25`: words; `regex`: patterns.
        loaded: the number of tools, from the first, that are loaded from the beginning. None: all without
            `defer_loading`.
    """

    by: Literal["bm25", "regex"] = "bm25"
    loaded: int | None = Field(None, ge=0, le=128)

    @property
    def name(self) -> str:
        """The name by which models call it."""
        return f"tool_search_tool_{self.by}"


API_TOOLS: dict[str, type[ApiTool]] = {tool.NAME: tool for tool in (WebSearch, WebFetch, CodeExecution, Memory)}
RUN_BY_API = frozenset(name for name, tool in API_TOOLS.items() if tool.RUN_BY_API)


def takes(model: str, *, first: dict[str, Version] | Version | None = None) -> bool:
    """Return whether a model is known to take a tool.

    Args:
        first: the first model of each family, or of all families, that does.
    """
    if model == PREVIEW:
        return True
    if (match := MODEL.fullmatch(model)) is None:
        return False
    table = FIRST if first is None else first
    least = table if isinstance(table, tuple) else table.get(match[1], (0, 0))
    return (int(match[2]), int(match[3] or 0)) >= least


def filters(model: str) -> bool:
    """Return whether a model filters what it finds on the web by code."""
    return takes(model, first=FIRST_WITH_FILTER)


def tool_search_misfit(model: str) -> str | None:
    """Return the reason why a model cannot search for its tools, or None."""
    if model == AUTO or takes(model, first=FIRST_WITH_TOOL_SEARCH):
        return None
    return f"the model {model!r} is not known to search for tools"
