"""The names of providers and models in spans."""

from __future__ import annotations

import pytest

from orchestrator.tracing.spans import _model_call
from tests.support.providers import MODELS, use_providers

ROW = dict.fromkeys(("usage", "stop_reason", "answered_by", "agent_name", "agent_version"))


@pytest.mark.parametrize(
    ("model", "provider", "own"),
    [
        (MODELS["anthropic"], "anthropic", "claude-sonnet-5-5"),
        (MODELS["vertex"], "gcp.vertex_ai", "claude-sonnet-4-5@20250929"),
        (MODELS["bedrock"], "aws.bedrock", "anthropic.claude-sonnet-4-5"),
        (MODELS["own"], "own", "qwen3:8b"),
        ("removed:x", "removed", "x"),
        ("offline", "minions", "offline"),
    ],
)
def test_span_has_the_names_of_provider_and_model(
    monkeypatch: pytest.MonkeyPatch, model: str, provider: str, own: str
) -> None:
    with use_providers("http://127.0.0.1:1", monkeypatch):
        found = _model_call({**ROW, "name": model})
    assert (found["gen_ai.provider.name"], found["gen_ai.request.model"]) == (provider, own)
