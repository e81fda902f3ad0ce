"""The zygote under real conditions: threads, forks, crashes, signals, exhaustion, many calls."""

from __future__ import annotations

import os
import queue
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from shared.sandbox import Outcome, Sandbox, SandboxRefused
from shared.sandbox.fork_server import ForkServer, ZygoteLost
from shared.sandbox.host import VALIDATION_TIMEOUT
from shared.sandbox.parked import ParkedChild
from tests.support.processes import wait_until

DOUBLE = "def f(x): return 2 * x"
SLEEP = "import time\ndef f(): time.sleep(30)"
ROOT = str(Path(__file__).resolve().parents[2])


def works(sandbox: Sandbox) -> bool:
    outcome = sandbox.call(DOUBLE, "f", {"x": 21})
    return bool(outcome.value == 42)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still exist; none if it has ended."""
    found: list[int] = []
    # Any of them may end between two reads.
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants(pid: int) -> set[int]:
    """Return all processes below one."""
    below = children(pid)
    return set(below).union(*map(descendants, below))


def await_end(pid: int) -> None:
    """Wait until a process, our child or not, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 20)[0], f"process {pid} lives on"
    finally:
        os.close(pidfd)


def test_nothing_starts_before_the_first_call() -> None:
    # In a separate process: another sandbox of this one may be preparing children.
    script = (
        "import os; from shared.sandbox import Sandbox; from tests.sandbox.test_lifecycle import descendants\n"
        "with Sandbox(): print(descendants(os.getpid()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(set())


def test_close_ends_all_processes_and_can_be_repeated() -> None:
    before = descendants(os.getpid())
    sandbox = Sandbox()
    assert works(sandbox)
    started = descendants(os.getpid()) - before
    assert started
    sandbox.close()
    sandbox.close()
    for pid in started:
        await_end(pid)
    assert works(sandbox)
    sandbox.close()


def test_process_that_waits_for_a_zygote_is_small() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        if "pid_namespace" not in sandbox.layers:
            pytest.skip("no process waits: the zygote is this process's child")
        assert isinstance(sandbox._server, ForkServer)
        waiter = sandbox._server.pid
        (zygote,) = children(waiter)
        wait_until(lambda: memory(waiter) < memory(zygote) / 2, "the waiting process is small")


def memory(pid: int) -> int:
    """Return the kilobytes of a process's own data, shared or not."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1])


def test_zygote_survives_the_thread_that_started_it() -> None:
    with Sandbox() as sandbox:
        thread = threading.Thread(target=works, args=(sandbox,))
        thread.start()
        thread.join()
        server = sandbox._server
        assert works(sandbox)
        assert sandbox._server is server


def test_many_threads_share_one_zygote() -> None:
    with Sandbox() as sandbox, ThreadPoolExecutor(16) as pool:
        outcomes = pool.map(lambda x: sandbox.call(DOUBLE, "f", {"x": x}).value, range(150))
        assert list(outcomes) == [2 * x for x in range(150)]


def test_forked_owner_gets_its_own_zygote() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        server = sandbox._server
        assert server is not None
        pid = os.fork()
        if pid == 0:
            fine = sandbox._server is None and works(sandbox) and sandbox._server is not server
            sandbox.close()
            os._exit(0 if fine else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert works(sandbox)
        assert sandbox._server is server


def test_killed_zygote_is_replaced() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        server = sandbox._server
        assert isinstance(server, ForkServer)
        below = descendants(server.pid)
        pid = zygote_below(server)
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        assert works(sandbox)
        assert sandbox._server is not server
        for child in below:
            await_end(child)


def test_dead_zygote_provides_no_children() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        server = sandbox._server
        assert isinstance(server, ForkServer)
        pid = zygote_below(server)
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        with pytest.raises(ZygoteLost, match="the zygote was killed"):
            server.take(time.monotonic() + 20)


def test_sigterm_to_all_processes_ends_no_call() -> None:
    """A service manager may send it to the whole worker, which then waits for the tasks that run."""
    with Sandbox() as sandbox:
        assert works(sandbox)
        assert isinstance(sandbox._server, ForkServer)
        child, thread, _ = in_thread(sandbox)
        server = sandbox._server
        for pid in {server.pid, zygote_of(sandbox)}:
            os.kill(pid, signal.SIGTERM)
        assert all(works(sandbox) for _ in range(20))
        assert sandbox._server is server
        assert not child.has_ended(0)
        child.kill()
        thread.join()


def zygote_of(sandbox: Sandbox) -> int:
    assert isinstance(sandbox._server, ForkServer)
    return zygote_below(sandbox._server)


def zygote_below(server: ForkServer) -> int:
    """Return the zygote's own pid: below the process that waits outside its pid namespace, if there is one."""
    return children(server.pid)[0] if "pid_namespace" in server.layers else server.pid


def in_thread(sandbox: Sandbox) -> tuple[ParkedChild, threading.Thread, list[Outcome]]:
    """Make a long call in a thread, and return its child once the child has the whole request."""
    outcomes: list[Outcome] = []
    under_way: queue.SimpleQueue[ParkedChild] = queue.SimpleQueue()

    def watch(child: ParkedChild, seconds: float) -> None:
        ForkServer.watch(server, child, seconds)
        # Not the child that compiles the function, before a second call.
        if seconds > VALIDATION_TIMEOUT:
            under_way.put(child)

    server = sandbox._server
    assert isinstance(server, ForkServer)
    thread = threading.Thread(target=lambda: outcomes.append(sandbox.call(SLEEP, "f", {}, timeout=60)))
    with patch.object(server, "watch", watch):
        thread.start()
        child = under_way.get()
    return child, thread, outcomes


def test_long_calls_do_not_delay_others() -> None:
    with Sandbox(pool=2) as sandbox:
        assert works(sandbox)
        holders = [in_thread(sandbox)[1] for _ in range(8)]
        assert works(sandbox)
        assert all(holder.is_alive() for holder in holders)
        sandbox.close()
        for holder in holders:
            holder.join()


def test_call_that_ended_with_its_zygote_can_be_retried() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        _, thread, outcomes = in_thread(sandbox)
        os.kill(zygote_of(sandbox), signal.SIGKILL)
        thread.join()
        assert outcomes[0].error is not None
        assert outcomes[0].error.type == "unavailable"
        assert "the zygote was killed" in outcomes[0].error.message
        assert works(sandbox)


def test_child_killed_from_outside_is_not_the_function_s_fault() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        child, thread, outcomes = in_thread(sandbox)
        child.kill()
        thread.join()
        assert outcomes[0].error is not None
        assert outcomes[0].error.type == "unavailable"
        assert "memory ran out" in outcomes[0].error.message
        assert works(sandbox)


def test_zygotes_killed_under_load_leave_nothing_behind() -> None:
    source = "import time\ndef f(x):\n    time.sleep(0.1)\n    return x"
    with Sandbox() as sandbox, ThreadPoolExecutor(20) as pool:
        assert works(sandbox)
        descriptors = len(os.listdir("/proc/self/fd"))
        ended: list[str] = []

        def call(x: int) -> None:
            outcome = sandbox.call(source, "f", {"x": x}, timeout=60)
            assert outcome.value == x if outcome.ok else outcome.error is not None
            ended.append(outcome.error.type if outcome.error else "ok")

        for _ in range(4):
            calls = [pool.submit(call, x) for x in range(25)]
            calls[0].result()
            # The thread that found the last one dead may be about to start another.
            if isinstance(server := sandbox._server, ForkServer):
                with suppress(ProcessLookupError, IndexError):
                    os.kill(zygote_below(server), signal.SIGKILL)
            for each in calls:
                each.result()
        assert set(ended) <= {"ok", "unavailable"}
        assert len(ended) == 100
        assert works(sandbox)
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 9


def test_stopped_zygote_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.sandbox.fork_server.CLOSE_PATIENCE", 0.2)
    before = descendants(os.getpid())
    with Sandbox() as sandbox:
        assert works(sandbox)
        processes = descendants(os.getpid()) - before
        os.kill(zygote_of(sandbox), signal.SIGSTOP)
    for pid in processes:
        await_end(pid)


def test_zygote_without_free_descriptors_continues() -> None:
    source = "import time\ndef f(x):\n    time.sleep(1)\n    return x"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 18
    with Sandbox() as sandbox, ThreadPoolExecutor(few) as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            assert works(sandbox)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server = sandbox._server
        # The zygote has inherited the limit, and keeps a descriptor of each child.
        outcomes = pool.map(lambda x: sandbox.call(source, "f", {"x": x}, timeout=60).value, range(few))
        assert list(outcomes) == list(range(few))
        assert sandbox._server is server


def test_child_may_die_of_any_signal() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        child, thread, outcomes = in_thread(sandbox)
        signal.pidfd_send_signal(child.pidfd, signal.SIGRTMIN + 6)
        thread.join()
        assert outcomes[0].error is not None
        assert outcomes[0].error.type == "crashed"


def test_fork_during_a_code_lookup_does_not_deadlock() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        with sandbox._codes._lock:
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                fine = works(sandbox)
                sandbox.close()
                os._exit(0 if fine else 1)
        assert os.waitpid(pid, 0)[1] == 0


CROWDED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from shared.sandbox import Sandbox
hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
error, limit = True, 0
while error:
    limit += 1
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    with Sandbox() as sandbox:
        if error := sandbox.call("def f(): pass", "f", {}).error:
            print(error.type, error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be a user with no other process")
def test_process_limit_is_named_in_every_error(public_copy: Path, public_python: str) -> None:
    alone = 59_999
    done = subprocess.run(
        [public_python, "-B", "-c", CROWDED, str(public_copy)],
        capture_output=True, text=True, env={}, cwd="/", user=alone, group=alone, extra_groups=[], check=False,
    )  # fmt: skip
    faults = done.stdout.splitlines()
    assert (done.returncode, bool(faults)) == (0, True), done.stderr
    for fault in faults:
        assert fault.startswith("unavailable")
        assert "`ulimit -u`" in fault


def test_fork_by_another_thread_does_not_delay_a_start() -> None:
    """A worker replaces its slots at any time. A slot must not keep what the start of a zygote waits for."""
    with patch.object(ForkServer, "_meet"), ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            start = pool.submit(ForkServer.start, (), {}, frozenset(), 0)
            slots: list[int] = []
            while not start.done() and len(slots) < 20:
                slots.append(os.fork())
                if slots[-1] == 0:
                    signal.pause()
                    os._exit(0)
            try:
                start.result(20).close()
            finally:
                for slot in slots:
                    os.kill(slot, signal.SIGKILL)
                    os.waitpid(slot, 0)


def test_killed_waiting_children_are_replaced() -> None:
    with Sandbox(pool=2) as sandbox:
        assert works(sandbox)
        assert isinstance(sandbox._server, ForkServer)
        zygotes = descendants(sandbox._server.pid)
        children = {pid for pid in zygotes if not descendants(pid)}
        for pid in children:
            # A child that compiled the function ends by itself.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await_end(pid)
        assert works(sandbox)


def test_newest_waiting_child_serves_the_next_call() -> None:
    """Under load the older ones stay a reserve, so that no child warms up in vain."""
    with Sandbox() as sandbox:
        assert works(sandbox)
        assert isinstance(sandbox._server, ForkServer)
        wait_until(lambda: len(parked_in(sandbox)) > 1, "children wait")
        newest = parked_in(sandbox)[-1]
        child = sandbox._server.take(time.monotonic() + 20)
        assert child.number >= newest
        sandbox._server.end(child)


def parked_in(sandbox: Sandbox) -> list[int]:
    assert isinstance(sandbox._server, ForkServer)
    return [child.number for child in sandbox._server._parked]


OWNER = """
import sys, os
sys.path.insert(0, sys.argv[1])
from shared.sandbox import Sandbox
sandbox = Sandbox()
assert sandbox.call("def f(): return 1", "f", {}).value == 1
print(sandbox._server.pid, flush=True)
%s
"""


def zygote_of_owner(last_words: str) -> tuple[subprocess.Popen[str], set[int]]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER % last_words, ROOT],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    outer = int(owner.stdout.readline())
    return owner, {outer, *descendants(outer)}


def test_stopped_zygote_ends_with_its_owner() -> None:
    owner, processes = zygote_of_owner("sys.stdin.read()")
    with owner:
        for pid in processes:
            if descendants(pid):
                os.kill(pid, signal.SIGSTOP)
                # A zygote without a pid namespace is its owner's own child, and would stay stopped.
                os.kill(min(processes), signal.SIGCONT)
        owner.kill()
    for pid in processes:
        await_end(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_owner(number: signal.Signals) -> None:
    owner, processes = zygote_of_owner("sys.stdin.read()")
    with owner:
        owner.send_signal(number)
    for pid in processes:
        await_end(pid)


def test_no_process_outlives_a_script_that_forgets_to_close() -> None:
    owner, processes = zygote_of_owner("")
    with owner:
        assert owner.wait() == 0
    for pid in processes:
        await_end(pid)


def test_no_process_outlives_an_owner_with_a_living_fork() -> None:
    owner, processes = zygote_of_owner("if os.fork() == 0: sys.stdin.read()\nos._exit(0)")
    with owner:
        owner.wait()
        for pid in processes:
            await_end(pid)


def test_descriptor_exhaustion_is_a_temporary_error() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        hoard: list[socket.socket] = []
        try:
            while True:
                hoard.append(socket.socket())
        except OSError:
            parked = [sandbox.call(DOUBLE, "f", {"x": 1}) for _ in range(6)]
            fresh = []
            for spare in range(4):
                # The calls above may have freed some.
                with suppress(OSError):
                    while True:
                        hoard.append(socket.socket())
                for _ in range(spare):
                    hoard.pop().close()
                with Sandbox() as late:
                    fresh.append(late.call(DOUBLE, "f", {"x": 1}))
        finally:
            for each in hoard:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert {outcome.error.type for outcome in parked if outcome.error} <= {"unavailable"}
        assert [outcome.error.type for outcome in fresh if outcome.error] == ["unavailable"] * 4
        assert works(sandbox)


def check_calls_leak_nothing(sandbox: Sandbox, calls: int) -> None:
    def state() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(descendants(os.getpid()))

    sources = [
        DOUBLE,
        "def f(x): raise ValueError(x)",
        "import os\ndef f(x): os._exit(3)",
        "def f(x): return [x] * 1000",
    ]
    for x in range(40):
        sandbox.call(sources[x % 4], "f", {"x": x}, check=False)
    before = state()
    for x in range(calls):
        sandbox.call(sources[x % 4], "f", {"x": x}, check=False)
    assert works(sandbox)
    after = state()
    assert after[0] <= before[0] + 9
    assert after[1] <= before[1] + 4


def zygote_memory(sandbox: Sandbox) -> int:
    """Return kilobytes of private memory of the zygote itself."""
    lines = Path(f"/proc/{zygote_of(sandbox)}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_hundreds_of_calls_leak_nothing() -> None:
    with Sandbox(preload=("os",)) as sandbox:
        check_calls_leak_nothing(sandbox, 400)


@pytest.mark.soak
def test_ten_thousand_calls_leak_nothing() -> None:
    with Sandbox(preload=("os",)) as sandbox:
        check_calls_leak_nothing(sandbox, 100)
        before = zygote_memory(sandbox)
        check_calls_leak_nothing(sandbox, 10_000)
        assert zygote_memory(sandbox) <= before + 2_000


def test_missing_layers_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.sandbox.levels.ESSENTIAL", frozenset({"seccomp", "a layer of tomorrow"}))
    with Sandbox() as sandbox, pytest.raises(SandboxRefused, match="a layer of tomorrow"):
        sandbox.call(DOUBLE, "f", {"x": 1})


def test_canary_that_escapes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.sandbox.selftest.failures", lambda *_: ["socket"])
    with Sandbox() as sandbox, pytest.raises(SandboxRefused, match="not stopped: socket"):
        sandbox.call(DOUBLE, "f", {"x": 1})


def test_insecure_development_needs_permission(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shared.sandbox.levels.unsupported", lambda: "no confinement is known for plan9")
    with Sandbox(preload=["acme"]) as sandbox:
        with pytest.raises(SandboxRefused, match="plan9"):
            sandbox.call(DOUBLE, "f", {"x": 1})
        monkeypatch.setenv("MINION_SANDBOX", "insecure-development")
        assert works(sandbox)
        assert sandbox.level == "insecure"
        assert "acme" in sandbox.failed_packages
        assert "FUNCTIONS RUN UNCONFINED" in caplog.text
        slow = sandbox.call("def f():\n    while True: pass", "f", {}, timeout=0.5)
        assert slow.error is not None
        assert slow.error.type == "timeout"
        greedy = sandbox.call("def f(): return len(bytearray(10**9))", "f", {})
        assert greedy.error is not None
        assert greedy.error.type == "memory_limit"
        assert sandbox.validate("def g(): pass", "f")[0].code == "no_entrypoint"
        assert sandbox.call("import os\ndef f(): os._exit(3)", "f", {}, check=False).error is not None


def test_caller_s_time_limit_leaves_a_working_sandbox() -> None:
    class SoftLimit(Exception):
        pass

    def strike(*_: object) -> None:
        raise SoftLimit

    with Sandbox() as sandbox:
        assert works(sandbox)
        previous = signal.signal(signal.SIGALRM, strike)
        try:
            for delay in (0.001, 0.01, 0.1):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(SoftLimit):
                    sandbox.call("import time\ndef f(): time.sleep(30)", "f", {}, timeout=30)
                assert works(sandbox)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def test_programs_of_the_host_inherit_no_channel() -> None:
    with Sandbox() as sandbox:
        assert works(sandbox)
        assert isinstance(sandbox._server, ForkServer)
        server = sandbox._server
        children = wait_until(lambda: list(server._parked), "a child waits for the next call")
        assert not any(os.get_inheritable(child.pidfd) for child in children)
        assert not any(child.channel.get_inheritable() for child in children)
