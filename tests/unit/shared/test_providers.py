"""Providers of models as the operator configures them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from genai_prices import Usage

from shared.errors import NotConfigured
from shared.model_prices import has_price, price_of
from shared.providers import OPENAI_URL, Provider, claude_name, normal_name, split, unknown_provider
from shared.settings import get_settings
from tests.support.providers import EVERYTHING

OPENAI = {"kind": "openai"}


def configured(monkeypatch: pytest.MonkeyPatch, providers: Any, keys: Any = None) -> Any:
    """Return the settings of a process with these variables."""
    monkeypatch.setenv("MINION_PROVIDERS", providers if isinstance(providers, str) else json.dumps(providers))
    if keys is not None:
        monkeypatch.setenv("MINION_PROVIDER_KEYS", keys if isinstance(keys, str) else json.dumps(keys))
    return get_settings.__wrapped__()


def provider(**fields: Any) -> Provider:
    return Provider.model_validate({"name": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        (OPENAI, "https://api.openai.com/v1"),
        ({**OPENAI, "url": "http://ollama:11434/v1/"}, "http://ollama:11434/v1"),
        ({"kind": "vertex", "project": "p", "region": "global"}, "https://aiplatform.googleapis.com/v1"),
        ({"kind": "vertex", "project": "p", "region": "eu"}, "https://aiplatform.eu.rep.googleapis.com/v1"),
        ({"kind": "vertex", "project": "p", "region": "us-east5"}, "https://us-east5-aiplatform.googleapis.com/v1"),
        ({"kind": "bedrock", "region": "us-east-1"}, "https://bedrock-mantle.us-east-1.api.aws/anthropic"),
        ({"kind": "foundry", "resource": "r"}, "https://r.services.ai.azure.com/anthropic"),
        ({"kind": "anthropic", "url": "https://gateway.example.com"}, "https://gateway.example.com"),
    ],
)
def test_each_kind_has_its_address(fields: dict[str, Any], address: str) -> None:
    assert provider(**fields).address == address


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[]", "it must be a JSON object, like"),
        ("{", "it must be a JSON object, like"),
        ({"Open AI": OPENAI}, "the provider 'Open AI' must have a name of 1 to 40 lower-case letters"),
        ({"anthropic": OPENAI}, "the name 'anthropic' is taken"),
        ({"x": "openai"}, "the provider 'x' must be an object"),
        (
            {"x": {**OPENAI, "key": "sk-1"}},
            "the provider 'x' must not have a key here: put it into MINION_PROVIDER_KEYS",
        ),
        ({"x": {"kind": "open"}}, "the provider 'x': `kind`: Input must be 'anthropic'"),
        ({"x": {**OPENAI, "url": "ftp://h"}}, "the provider 'x': `url`: it must be an address that begins with http"),
        ({"x": {**OPENAI, "url": "https://u:p@h/v1"}}, "without a user, a query or a fragment"),
        ({"x": {**OPENAI, "region": "eu"}}, "the provider 'x': a provider of kind openai has no `region`"),
        ({"x": {"kind": "vertex", "region": "eu"}}, "the provider 'x': a provider of kind vertex must have `project`"),
        ({"x": {"kind": "anthropic"}}, "a provider of kind anthropic must have `url`"),
        ({"x": {"kind": "bedrock", "region": "a/b"}}, "`region`: it must have only lower-case letters, digits and -"),
        ({"x": {**OPENAI, "features": ["magic"]}}, "`features.0`: Input must be 'json_schema'"),
        ({"x": {**OPENAI, "prices": {"m": {"input": -1, "output": 0}}}}, "`prices.m.input`: Input must be greater"),
        ({"x": {**OPENAI, "colour": "red"}}, "`colour`: Extra inputs are not permitted"),
    ],
)
def test_invalid_configuration_is_explained(monkeypatch: pytest.MonkeyPatch, given: Any, message: str) -> None:
    with pytest.raises(NotConfigured) as refused:
        configured(monkeypatch, given)
    assert refused.value.message.startswith("The environment has invalid settings: MINION_PROVIDERS: ")
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("sk-secret", "it must be a JSON object of keys by provider"),
        ({"y": "sk-secret"}, "there is no provider 'y' in MINION_PROVIDERS, which has: x"),
        ({"anthropic": "sk-secret"}, "the key of 'anthropic' is ANTHROPIC_API_KEY"),
        ({"x": "sk-secret\n"}, "the key of 'x' must be printable ASCII without spaces and line breaks"),
        ({"x": ["sk-secret"]}, "the key of 'x' must be printable ASCII"),
    ],
)
def test_invalid_keys_are_not_quoted(monkeypatch: pytest.MonkeyPatch, keys: Any, message: str) -> None:
    with pytest.raises(NotConfigured) as refused:
        configured(monkeypatch, {"x": OPENAI}, keys)
    assert message in refused.value.message
    assert "secret" not in refused.value.message


def test_default_model_must_have_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_DEFAULT_MODEL", "openai:gpt-5")
    with pytest.raises(
        NotConfigured, match="MINION_DEFAULT_MODEL names the provider 'openai', which is not among them"
    ):
        configured(monkeypatch, "")
    assert configured(monkeypatch, {"openai": OPENAI}).default_model == "openai:gpt-5"


def test_key_belongs_to_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configured(monkeypatch, {"x": OPENAI, "y": OPENAI}, {"x": "sk-secret"})
    assert (settings.key_of("x"), settings.key_of("y")) == ("sk-secret", None)
    assert "sk-secret" not in repr(settings)


def test_features_of_openai_itself_are_known() -> None:
    own, openai = provider(**OPENAI, url="http://127.0.0.1/v1"), provider(**OPENAI)
    assert openai.address == OPENAI_URL
    assert [[each.has(feature) for feature in EVERYTHING] for each in (own, openai)] == [[False] * 5, [True] * 5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "provider_name", "own"),
    [
        ("claude-sonnet-5-5", "anthropic", "claude-sonnet-5-5"),
        ("ollama:qwen3:8b", "ollama", "qwen3:8b"),
        ("bedrock:anthropic.claude-x-v1:0", "bedrock", "anthropic.claude-x-v1:0"),
    ],
)
def test_model_name_begins_with_its_provider(model: str, provider_name: str, own: str) -> None:
    assert split(model) == (provider_name, own)


def test_model_of_anthropic_has_one_name() -> None:
    assert normal_name("anthropic:claude-sonnet-5-5") == "claude-sonnet-5-5"
    assert normal_name("anthropic:qwen3:8b") == "anthropic:qwen3:8b"
    with pytest.raises(ValueError, match="a model must have a name after `openai:`"):
        normal_name("openai: ")


@pytest.mark.parametrize(
    "own", ["anthropic.claude-sonnet-4-5", "us.anthropic.claude-sonnet-4-5-v1:0", "claude-sonnet-4-5"]
)
def test_claude_has_one_name_on_all_platforms(own: str) -> None:
    assert claude_name(own) == "claude-sonnet-4-5"


def test_unknown_provider_is_named_with_a_similar_one() -> None:
    said = unknown_provider("opnai:gpt-5", ["anthropic", "openai"])
    assert "Configured are: anthropic, openai. Did you mean openai:gpt-5?" in said


def test_operators_price_precedes_the_list() -> None:
    priced = provider(**OPENAI, prices={"gpt-5": {"input": 1, "output": 2, "cached_input": 0.5}, "*": FREE})
    used = Usage(input_tokens=3_000_000, output_tokens=1_000_000, cache_read_tokens=1_000_000)
    assert float(price_of(priced, "gpt-5", used)) == 2 * 1 + 0.5 + 2
    assert float(price_of(priced, "other", used)) == 0


FREE = {"input": 0, "output": 0}


def test_list_has_the_prices_of_known_addresses() -> None:
    openai, groq, own = (
        provider(**OPENAI, **url)
        for url in ({}, {"url": "https://api.groq.com/openai/v1"}, {"url": "http://10.0.0.1/v1"})
    )
    assert float(price_of(openai, "gpt-5", Usage(input_tokens=1_000_000))) == 1.25
    assert (has_price(groq, "qwen/qwen3-32b"), has_price(own, "gpt-5")) == (True, False)
    with pytest.raises(LookupError):
        price_of(own, "gpt-5", Usage(input_tokens=1))
