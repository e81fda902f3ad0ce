"""What a client makes of each exchange with a server of the Chat Completions API, however it arrives and ends."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest

from shared.errors import ModelError, ModelUnavailable
from shared.providers import Provider
from tests.support.chat_exchanges import EXCHANGES, WAYS, check, joined
from tests.support.providers import PRICES
from tests.support.recorded_http import Recorded
from workers.llm.accounts import Account
from workers.llm.base import ModelReply
from workers.llm.chat import client
from workers.llm.failures import Failures

PROVIDER = Provider.model_validate({"name": "own", "kind": "openai", "url": "http://127.0.0.1/v1", "prices": PRICES})
FAILURES = Failures(Account(PROVIDER, None, "nothing"))


def body(response: Recorded) -> Iterator[bytes]:
    size = response.size or len(response.body) or 1
    for start in range(0, len(response.body), size):
        yield response.body[start : start + size]
    if response.cut:
        raise httpx2.ReadError("the connection was lost")


def reply_to(response: Recorded) -> ModelReply:
    received = httpx2.Response(response.status, headers=response.headers, content=body(response))
    answer = client._receive(received, lambda _: None, FAILURES)
    return client.ChatClient(PROVIDER)._reply(answer, "qwen3:8b", FAILURES)


@pytest.mark.parametrize("way", WAYS)
def test_exchange_gives_same_reply_however_it_arrives(way: str) -> None:
    for name, exchange in EXCHANGES.items():
        try:
            check(reply_to(WAYS[way](exchange)), exchange)
        except (AssertionError, ModelError) as error:
            raise AssertionError(f"{name}, {way}: {error}") from error


@pytest.mark.parametrize("name", ["OpenAI: text", "OpenAI: calls in turns", "OpenRouter: comments"])
@pytest.mark.parametrize("cut", [True, False], ids=["lost", "ended"])
def test_stream_cut_at_any_byte_is_whole_or_asked_again(name: str, cut: bool) -> None:
    exchange = EXCHANGES[name]
    whole = joined(exchange)
    for end in range(len(whole)):
        if b'"finish_reason": "' not in whole[:end]:
            with pytest.raises(ModelUnavailable) as caught:
                reply_to(Recorded(whole[:end], cut=cut))
            assert caught.value.detail["cost_unknown"] is True
        elif b'"finish_reason": "' in whole[: whole.rfind(b"\n\n", 0, end) + 1]:
            assert reply_to(Recorded(whole[:end], cut=cut)).stop_reason == exchange.stop


def test_client_runs_no_program_to_name_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.get_platform", lambda: pytest.fail("it asks the system"))
    openai._base_client.platform_headers.cache_clear()
    with client._new_client(FAILURES.account, None) as made:  # type: ignore[arg-type]
        assert made.platform_headers()["X-Stainless-OS"]


def test_answer_without_end_is_refused() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b": " + b"x" * 10_000_000 + b"\n\n"

    received = httpx2.Response(200, content=endless())
    with pytest.raises(ModelError, match="more than 100,000,000 bytes"):
        client._receive(received, lambda _: None, FAILURES)
