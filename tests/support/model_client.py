"""This process's model client, talking to a local server of the Messages API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minions.testing import KEY, MessagesApi, messages_api
from shared.settings import get_settings
from workers.llm import accounts, anthropic
from workers.llm.chat import client


@contextmanager
def use_messages_api(api: MessagesApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[MessagesApi]:
    """Workers that are started, and this process's minion, talk to that server while the block runs."""
    with messages_api(api) as server, use_model_url(server.url, monkeypatch):
        yield server


@contextmanager
def use_model_url(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As above, with a server that runs already."""
    with monkeypatch.context() as patch:
        patch.setenv("ANTHROPIC_BASE_URL", url)
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        forget_model_client()
        yield
    forget_model_client()


def forget_model_client() -> None:
    """Close the clients, and forget the settings that they read from the environment."""
    anthropic.close_clients()
    client._lines.close()
    accounts.forget()
    get_settings.cache_clear()
