"""The address of the model's API."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from shared.settings import get_settings
from tests.support.model_client import use_model_url
from workers.llm import anthropic
from workers.llm.accounts import Account


def test_empty_address_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_model_url("", monkeypatch):
        provider = get_settings().known_providers()["anthropic"]
        client = anthropic._new_client(Account(provider, "sk", "the test"), Mock())
        assert client.base_url == "https://api.anthropic.com"
        client.close()
