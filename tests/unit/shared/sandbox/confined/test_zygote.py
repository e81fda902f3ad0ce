"""When the zygote wakes without an order."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shared.sandbox.confined import wire
from shared.sandbox.confined.child import Equipment
from shared.sandbox.confined.zygote import RETRY, TIDY, Client, Zygote


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.pidfd_open(os.getpid())
    with ours, theirs:
        yield Zygote(theirs, process, b"", None, Equipment(None, with_rlimits=False, orphans_live=False, hooks=()))
    os.close(process)


def host_of(zygote: Zygote) -> Client:
    return zygote._clients[0]


def seconds(zygote: Zygote) -> float | None:
    patience = zygote._patience()
    return None if patience is None else (patience - 1) / 1000


def test_it_looks_for_ended_children_once_after_the_last_order(zygote: Zygote) -> None:
    zygote._restless = True
    assert seconds(zygote) == pytest.approx(TIDY)
    zygote._restless = False
    assert seconds(zygote) is None


def test_it_retries_what_it_owes(zygote: Zygote) -> None:
    host_of(zygote).obey(wire.MORE, 2, 0.0)
    assert seconds(zygote) == pytest.approx(RETRY)


def test_it_waits_for_an_end_that_was_asked_for(zygote: Zygote) -> None:
    client = host_of(zygote)
    client._pids[7] = os.getpid()
    client.obey(wire.STATUS, 7, 0.0)
    assert seconds(zygote) == pytest.approx(RETRY)
    client.remove(7, 0)
    assert seconds(zygote) is None


def test_it_wakes_for_an_overdue_child(zygote: Zygote) -> None:
    client = host_of(zygote)
    client._pids[7] = os.getpid()
    client.obey(wire.WATCH, 7, -1.0)
    assert seconds(zygote) == pytest.approx(0, abs=0.01)
