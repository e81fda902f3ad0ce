"""The SDK's clients, one for each call."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import pytest

from workers.llm import clients
from workers.llm.clients import Clients, Lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The monotonic clock of the clients."""
    clock = Mock(return_value=0.0)
    monkeypatch.setattr(clients, "time", Mock(monotonic=clock))
    return clock


def test_each_call_has_its_own_client(clock: Mock) -> None:
    lent = Clients(Mock)
    with lent.lend() as first, lent.lend() as second:
        assert first is not second


def test_client_used_last_is_used_again(clock: Mock) -> None:
    lent = Clients(Mock)
    with lent.lend(), lent.lend() as inner:
        pass
    with lent.lend(), lent.lend() as last_but_one:
        assert last_but_one is inner


def test_idle_clients_are_closed_when_another_call_ends(clock: Mock) -> None:
    busy, idle = Mock(), Mock()
    lent = Clients(Mock(side_effect=[busy, idle]))
    with lent.lend():
        with lent.lend():
            pass
        clock.return_value = clients.IDLE_SECONDS
    idle.close.assert_called_once_with()
    busy.close.assert_not_called()
    with lent.lend() as again:
        assert again is busy


def test_client_of_a_failed_call_is_used_again(clock: Mock) -> None:
    lent = Clients(Mock)
    with pytest.raises(KeyError), lent.lend() as first:
        raise KeyError
    with lent.lend() as second:
        assert second is first


class Emptied(deque[Any]):
    """Idle clients of which another thread takes the last one after a look at them."""

    def __bool__(self) -> bool:
        return True


def test_clients_that_another_thread_has_taken_are_no_error(clock: Mock) -> None:
    lent = Clients(Mock)
    lent._idle = Emptied()
    with lent.lend():
        pass
    lent.close()
    assert not [*lent._idle]


def test_first_calls_at_the_same_time_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2, timeout=10)

    def new(lines: Any, account: Any) -> object:
        both.wait()
        return object()

    monkeypatch.setattr(Lines, "_new", new)
    account = Mock(identity=("a", "b", "c"))
    lines: Lines[Any] = Lines(Mock())
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lines.of, [account, account])
    assert first is second
