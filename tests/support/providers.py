"""Providers of models whose addresses are those of one local server, which speaks all of their wire formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minions.testing import KEY
from tests.support.model_client import forget_model_client

EVERYTHING = ["json_schema", "max_completion_tokens", "system_messages", "images", "documents"]
MODELS = {
    "anthropic": "claude-sonnet-5-5",
    "gateway": "gateway:claude-sonnet-5-5",
    "vertex": "vertex:claude-sonnet-4-5@20250929",
    "bedrock": "bedrock:anthropic.claude-sonnet-4-5",
    "foundry": "foundry:claude-sonnet-5-5",
    "openai": "openai:gpt-5",
    "own": "own:qwen3:8b",
}
"""A model of each provider: `own` is a server that speaks the Chat Completions API without OpenAI's features."""
CLAUDE = ("anthropic", "gateway", "vertex", "bedrock", "foundry")
PRICES = {"*": {"input": 2, "output": 10, "cached_input": 1}}


def configuration(url: str) -> dict[str, Any]:
    """Return the value of MINION_PROVIDERS."""
    return {
        "gateway": {"kind": "anthropic", "url": url, "prices": PRICES},
        "vertex": {"kind": "vertex", "url": f"{url}/v1", "project": "a-project", "region": "global"},
        "bedrock": {"kind": "bedrock", "url": f"{url}/anthropic", "region": "us-east-1"},
        "foundry": {"kind": "foundry", "url": f"{url}/anthropic"},
        "openai": {"kind": "openai", "url": f"{url}/v1", "features": EVERYTHING, "prices": PRICES},
        "own": {"kind": "openai", "url": f"{url}/v1", "prices": PRICES},
    }


@contextmanager
def use_providers(url: str, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str] | None = None) -> Iterator[None]:
    """This process's minion has these providers while the block runs, all with the key of the scripted server."""
    providers = configuration(url)
    with monkeypatch.context() as patch:
        patch.setenv("MINION_PROVIDERS", json.dumps(providers))
        patch.setenv("MINION_PROVIDER_KEYS", json.dumps(dict.fromkeys(providers, KEY) if keys is None else keys))
        forget_model_client()
        yield
    forget_model_client()
