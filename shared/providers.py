"""Providers of models: their names, addresses and features, as the operator configures them.

A model's name is `claude-…` for the Anthropic API, or `NAME:MODEL` for a provider in `MINION_PROVIDERS`. A definition
names providers, but only the operator chooses their addresses: a key is sent to the address that it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.errors import requirement

Kind = Literal["anthropic", "openai", "vertex", "bedrock", "foundry"]
Feature = Literal["json_schema", "max_completion_tokens", "system_messages", "images", "documents"]

ANTHROPIC = "anthropic"
"""Name of the provider that ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL configure."""
RESERVED = (ANTHROPIC, "offline", "auto")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
PART = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
"""Of a host: a region, a project, a resource."""
ANTHROPIC_URL = "https://api.anthropic.com"
OPENAI_URL = "https://api.openai.com/v1"
EVERY_MODEL = "*"
OWN_KEY = "provider."
"""A secret with the name of a provider after this is a namespace's own key for it."""
KEY_TEXT = re.compile(r"[\x21-\x7e]+")
NEEDED: dict[Kind, tuple[str, ...]] = {
    "anthropic": ("url",),
    "openai": (),
    "vertex": ("project", "region"),
    "bedrock": ("region",),
    "foundry": ("resource",),
}
"""Fields that each kind must have; an address replaces a resource."""
TAKEN: dict[Kind, tuple[str, ...]] = {
    "anthropic": ("url", "prices"),
    "openai": ("url", "prices", "features"),
    "vertex": ("url", "prices", "project", "region"),
    "bedrock": ("url", "prices", "region"),
    "foundry": ("url", "prices", "resource"),
}
# The names of Claude models in Amazon Bedrock: `anthropic.claude-…`, `us.anthropic.claude-…-v1:0`.
IN_BEDROCK = re.compile(r"(?:[a-z]+\.)?anthropic\.(claude-[a-z0-9.-]*?[a-z0-9])(?:-v\d+(?::\d+)?)?")


class _Setting(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Price(_Setting):
    """US dollars for a million tokens. `cached_input` is for input from the prompt cache: by default that of input."""

    input: float = Field(ge=0, le=1_000_000)
    output: float = Field(ge=0, le=1_000_000)
    cached_input: float | None = Field(None, ge=0, le=1_000_000)


class Provider(_Setting):
    """A provider of models.

    Attributes:
        url: base address of its API.
        region, project: of Google Cloud (`vertex`); the region of AWS (`bedrock`).
        resource: name of the resource in Azure (`foundry`).
        features: of a server that speaks the Chat Completions API (`openai`); None: what OpenAI's own has at its
            address, and none at another.
        prices: by model; `*` is for all others. A model without one has the price of the list of genai-prices.
    """

    name: str
    kind: Kind
    url: str | None = None
    region: str | None = None
    project: str | None = None
    resource: str | None = None
    features: tuple[Feature, ...] | None = None
    prices: dict[str, Price] = Field(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not _is_address(url):
            raise ValueError(
                "it must be an address that begins with http:// or https://, without a user, a query or a fragment"
            )
        return url and url.rstrip("/")

    @field_validator("region", "project", "resource")
    @classmethod
    def _is_a_part_of_an_address(cls, part: str | None) -> str | None:
        if part is not None and not PART.fullmatch(part):
            raise ValueError("it must have only lower-case letters, digits and -")
        return part

    @field_validator("features", mode="before")
    @classmethod
    def _from_a_list(cls, given: Any) -> Any:
        return tuple(given) if isinstance(given, list) else given

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        given = self.model_dump(exclude_none=True, exclude={"name", "kind"})
        needed = () if self.kind == "foundry" and self.url else NEEDED[self.kind]
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"a provider of kind {self.kind} must have `{missing[0]}`")
        if foreign := [name for name, value in given.items() if value and name not in TAKEN[self.kind]]:
            raise ValueError(f"a provider of kind {self.kind} has no `{foreign[0]}`")
        return self

    @property
    def address(self) -> str:
        """The base address of its API, to which its key belongs."""
        if self.url is not None:
            return self.url
        match self.kind:
            case "vertex":
                return _vertex_address(str(self.region))
            case "bedrock":
                return f"https://bedrock-mantle.{self.region}.api.aws/anthropic"
            case "foundry":
                return f"https://{self.resource}.services.ai.azure.com/anthropic"
            case "openai":
                return OPENAI_URL
        return ANTHROPIC_URL

    @property
    def is_claude(self) -> bool:
        """Return whether it speaks the Messages API."""
        return self.kind != "openai"

    @property
    def is_platform(self) -> bool:
        """Return whether it serves Claude with some of the features of the Anthropic API."""
        return self.kind in ("vertex", "bedrock", "foundry")

    @property
    def has_batches(self) -> bool:
        """Return whether the batch lane can use it."""
        return self.name == ANTHROPIC

    def has(self, feature: Feature) -> bool:
        """Return whether a server of the kind `openai` has a feature."""
        if self.features is None:
            return self.address == OPENAI_URL
        return feature in self.features

    def price(self, model: str) -> Price | None:
        """Return the operator's price of a model, if there is one."""
        return self.prices.get(model) or self.prices.get(EVERY_MODEL)

    @property
    def telemetry_name(self) -> str:
        """Its name in OpenTelemetry's GenAI conventions, which have names for the platforms of Claude."""
        match self.kind:
            case "vertex":
                return "gcp.vertex_ai"
            case "bedrock":
                return "aws.bedrock"
            case "anthropic" | "foundry":
                return "anthropic"
        return self.name


Providers = Mapping[str, Provider]


def anthropic_provider(base_url: str | None) -> Provider:
    """Return the provider that ANTHROPIC_BASE_URL configures. Its address is checked when it is used."""
    return Provider.model_construct(name=ANTHROPIC, kind="anthropic", url=base_url or ANTHROPIC_URL, prices={})


def normal_name(model: str) -> str:
    """Return the one name of a model: that of the Anthropic API needs no prefix.

    Raises:
        ValueError: there is no name after the colon.
    """
    name, own = split(model)
    if not own.strip():
        raise ValueError(f"a model must have a name after `{name}:`")
    return own if name == ANTHROPIC and ":" not in own else model


def split(model: str) -> tuple[str, str]:
    """Return the provider's name and the provider's own name of the model: `openai:qwen3` is `("openai", "qwen3")`."""
    name, colon, own = model.partition(":")
    return (name, own) if colon else (ANTHROPIC, model)


def own_name(model: str) -> str:
    """Return the name that the provider knows a model by."""
    return split(model)[1]


def claude_name(own: str) -> str:
    """Return the name by which the Anthropic API knows a model, given the name that its provider knows it by."""
    match = IN_BEDROCK.fullmatch(own)
    return match[1] if match else own


def unknown_provider(model: str, known: Iterable[str]) -> str:
    """Return the reason why a model cannot be used whose provider is not configured, and what to do."""
    name, own = split(model)
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}:{own[:100]}?" if near else ""
    return (
        f"the model {model[:200]!r} names the provider {name[:100]!r}, which is not configured. Configured are: "
        f"{', '.join(names)}.{hint} MINION_PROVIDERS configures more; a model of ANTHROPIC_BASE_URL whose name has a "
        f"colon is {ANTHROPIC}:{model[:200]}"
    )


def parse_providers(given: Any) -> dict[str, Provider]:
    """Return the providers in `MINION_PROVIDERS`: a JSON object of objects, by name.

    Raises:
        ValueError: says what is wrong, where, and what to do.
    """
    found = _object(given, 'it must be a JSON object, like {"ollama": {"kind": "openai", "url": "http://…/v1"}}')
    providers = {}
    for name, fields in found.items():
        if isinstance(fields, Provider):
            providers[name] = fields
            continue
        if not NAME.fullmatch(name):
            raise ValueError(
                f"the provider {name[:100]!r} must have a name of 1 to 40 lower-case letters, digits, _ and -, "
                "beginning with a letter"
            )
        if name in RESERVED:
            raise ValueError(f"the name {name!r} is taken: choose another one")
        if not isinstance(fields, dict):
            raise ValueError(f'the provider {name!r} must be an object, like {{"kind": "openai"}}')
        if {"key", "api_key"} & fields.keys():
            raise ValueError(f"the provider {name!r} must not have a key here: put it into MINION_PROVIDER_KEYS")
        try:
            providers[name] = Provider.model_validate({**fields, "name": name})
        except ValidationError as error:
            raise ValueError(f"the provider {name!r}: {_faults(error)}") from None
    return providers


def parse_keys(given: str, providers: Iterable[str]) -> dict[str, str]:
    """Return the keys in `MINION_PROVIDER_KEYS`: a JSON object of texts, by the name of the provider.

    Raises:
        ValueError: says what is wrong, without quoting a key.
    """
    found = _object(given, 'it must be a JSON object of keys by provider, like {"openai": "sk-…"}')
    known = sorted(providers)
    for name, key in found.items():
        if name == ANTHROPIC:
            raise ValueError("the key of 'anthropic' is ANTHROPIC_API_KEY")
        if name not in known:
            raise ValueError(
                f"there is no provider {name[:100]!r} in MINION_PROVIDERS, which has: {', '.join(known) or 'none'}"
            )
        if not isinstance(key, str) or not KEY_TEXT.fullmatch(key):
            raise ValueError(f"the key of {name!r} must be printable ASCII without spaces and line breaks")
    return found


def _object(given: Any, rule: str) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(rule)
    return value


def _faults(error: ValidationError) -> str:
    """Describe the faults without the values: a secret may be in the wrong place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    faults = [(".".join(map(str, fault["loc"])), requirement(fault["msg"])) for fault in found]
    return "; ".join(f"`{where}`: {what}" if where else what for where, what in faults)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port > 0)
            and not (parts.username or parts.password or parts.query or parts.fragment)
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _vertex_address(region: str) -> str:
    match region:
        case "global":
            return "https://aiplatform.googleapis.com/v1"
        case "us" | "eu":
            return f"https://aiplatform.{region}.rep.googleapis.com/v1"
    return f"https://{region}-aiplatform.googleapis.com/v1"
