"""The address of the model's API."""

from __future__ import annotations

import pytest

from tests.support.model_client import use_model_url
from workers.llm import anthropic


def test_empty_address_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_model_url("", monkeypatch), anthropic._clients().lend() as client:
        assert client.base_url == "https://api.anthropic.com"
