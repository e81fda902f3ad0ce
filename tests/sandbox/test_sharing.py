"""One zygote for several processes: each has children of its own, and none can harm those of another."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import pytest

from shared.sandbox import Outcome, Sandbox, SandboxRefused
from shared.sandbox.confined import wire
from shared.sandbox.fork_server import ForkServer
from shared.sandbox.keeper import Keeper
from shared.sandbox.parked import ParkedChild
from tests.sandbox.test_lifecycle import DOUBLE, SLEEP, await_end, children, descendants, in_thread, works
from tests.support.processes import wait_until

SLOW = "import time\ndef f(x):\n    time.sleep(x)\n    return x"


@pytest.fixture(scope="module")
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def sandbox(keeper: Keeper) -> Iterator[Sandbox]:
    with Sandbox(door=keeper.door) as sandbox:
        assert works(sandbox)
        assert is_shared(sandbox)
        yield sandbox


@pytest.fixture
def neighbour(keeper: Keeper) -> Iterator[Sandbox]:
    with Sandbox(door=keeper.door) as sandbox:
        assert works(sandbox)
        assert is_shared(sandbox)
        yield sandbox


def is_shared(sandbox: Sandbox) -> bool:
    return isinstance(sandbox._server, ForkServer) and sandbox._server._process is None


def pid_of(child: ParkedChild) -> int:
    assert child._clock is not None
    return ~(child._clock >> 3)


def zygote_of(child: ParkedChild) -> int:
    with open(f"/proc/{pid_of(child)}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def parked(sandbox: Sandbox) -> ParkedChild:
    """Return an idle child, which stays parked."""
    assert isinstance(sandbox._server, ForkServer)
    child = sandbox._server.take(time.monotonic() + 20)
    sandbox._server._parked.append(child)
    return child


def test_processes_share_one_zygote_and_its_self_test(sandbox: Sandbox, neighbour: Sandbox) -> None:
    with patch("shared.sandbox.selftest.failures", side_effect=AssertionError), Sandbox(door=sandbox._door) as third:
        assert works(third)
        assert third.level == sandbox.level
        assert third.layers == sandbox.layers
        assert len({zygote_of(parked(each)) for each in (sandbox, neighbour, third)}) == 1


def test_other_programs_cannot_join(keeper: Keeper) -> None:
    assert not keeper.door.entrance.get_inheritable()
    assert not keeper.door._outside.get_inheritable()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to see the descriptors of a confined process")
def test_children_have_no_way_to_the_others(sandbox: Sandbox, neighbour: Sandbox) -> None:
    child = pid_of(parked(sandbox))
    wait_until(lambda: os.listdir(f"/proc/{child}/fd") == ["0"], "its channel is its only descriptor")


@pytest.mark.parametrize("order", [wire.KILL, wire.WATCH, wire.STATUS])
def test_orders_concern_own_children_only(sandbox: Sandbox, neighbour: Sandbox, order: bytes) -> None:
    child, thread, outcomes = in_thread(neighbour)
    assert isinstance(sandbox._server, ForkServer)
    sandbox._server._order(order, child.number, -10.0)
    assert works(sandbox)
    assert not child.has_ended(0)
    child.kill()
    thread.join()
    assert outcomes[0].error is not None
    assert outcomes[0].error.type == "unavailable"


def test_children_of_a_killed_process_end_at_once_and_no_others(keeper: Keeper, neighbour: Sandbox) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            own = Sandbox(door=keeper.door)
            assert works(own)
            child, _, _ = in_thread(own)
            os.write(writing, f"{pid_of(child)} {pid_of(parked(own))}".encode())
            time.sleep(60)
        os._exit(1)
    orphans = [int(number) for number in os.read(reading, 100).split()]
    assert len(orphans) == 2
    outcomes: list[Outcome] = []
    call = threading.Thread(target=lambda: outcomes.append(neighbour.call(SLOW, "f", {"x": 0.5})))
    call.start()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for orphan in orphans:
        await_end(orphan)
    call.join()
    assert outcomes[0].value == 0.5
    assert works(neighbour)


def test_frozen_process_does_not_delay_others(keeper: Keeper, sandbox: Sandbox) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            own = Sandbox(door=keeper.door)
            assert works(own)
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(1)
    assert os.read(reading, 1) == b"x"
    os.kill(pid, signal.SIGSTOP)
    for _ in range(10):
        assert works(sandbox)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert works(sandbox)


def test_flood_of_one_process_does_not_keep_others_waiting(sandbox: Sandbox, neighbour: Sandbox) -> None:
    holders = [in_thread(neighbour) for _ in range(8)]
    assert works(sandbox)
    neighbour.close()
    for _, thread, outcomes in holders:
        thread.join()
        assert outcomes[0].error is not None
    assert works(sandbox)


def test_killed_zygote_is_replaced_for_all(sandbox: Sandbox, neighbour: Sandbox) -> None:
    zygote = zygote_of(parked(sandbox))
    _, thread, outcomes = in_thread(neighbour)
    os.kill(zygote, signal.SIGKILL)
    thread.join()
    assert outcomes[0].error is not None
    assert outcomes[0].error.type == "unavailable"
    assert works(sandbox)
    assert works(neighbour)
    assert is_shared(sandbox)
    assert is_shared(neighbour)
    assert zygote != zygote_of(parked(sandbox)) == zygote_of(parked(neighbour))


def test_frozen_zygote_is_replaced_by_separate_ones(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(door=keeper.door) as sandbox, Sandbox(door=keeper.door) as late:
        assert works(sandbox)
        assert is_shared(sandbox)
        zygote = zygote_of(parked(sandbox))
        monkeypatch.setattr("shared.sandbox.host.QUEUE_PATIENCE", 1)
        monkeypatch.setattr("shared.sandbox.host.JOIN_PATIENCE", 0.2)
        os.kill(zygote, signal.SIGSTOP)
        try:
            # The parked children serve the first calls.
            while is_shared(sandbox):
                assert works(sandbox)
            assert works(late)
            assert not is_shared(late)
        finally:
            os.kill(zygote, signal.SIGCONT)


def test_process_starts_its_own_zygote_if_none_can_be_shared(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shared.sandbox")
    with patch.object(Sandbox, "share", side_effect=SandboxRefused("not here")):
        refusing = Keeper()
        with Sandbox(door=refusing.door) as sandbox:
            assert works(sandbox)
            assert not is_shared(sandbox)
    assert "the zygote cannot be shared: not here" in caplog.messages
    assert "the shared zygote cannot be used: it admits no other process, or has ended" in caplog.messages


def test_zygote_ends_with_its_keeper() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException), Sandbox(door=Keeper().door) as sandbox:
            assert sandbox.call(DOUBLE, "f", {"x": 21}).value == 42
            os.write(writing, " ".join(map(str, descendants(os.getpid()))).encode())
            sandbox.call(SLEEP, "f", {}, timeout=60)
        os._exit(1)
    processes = os.read(reading, 1000).split()
    assert len(processes) > 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for process in processes:
        await_end(int(process))
    assert not children(pid)
