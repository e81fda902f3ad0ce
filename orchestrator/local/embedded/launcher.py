"""Starting a child that becomes another user, and that does not outlive this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from queue import SimpleQueue
from typing import IO

from orchestrator.local.embedded.system_user import SystemUser

# Runs as the child's first program and becomes the server. It starts as the current user and changes the user itself:
# `subprocess`'s own `user=` does not work here, because another user may not reach this interpreter. The death
# signal is set after that change, because the change clears it; `execv` keeps it.
_LAUNCHER = """\
import os, sys
owner, death_signal, uid, gid = map(int, sys.argv[1:5])
if sys.platform == "linux":
    import ctypes
    libc = ctypes.CDLL(None)
os.umask(0o077)
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(death_signal), *[ctypes.c_ulong(0)] * 3):
        sys.exit("cannot ask for a signal at the owner's death")
if os.getppid() != owner:
    sys.exit("the owner is gone already")
os.execv(sys.argv[5], sys.argv[5:])
"""


def launch(
    command: list[str],
    user: SystemUser | None,
    death_signal: signal.Signals,
    log: IO[bytes],
    lock: int,
) -> subprocess.Popen[bytes]:
    """Start `command` as `user`, in its own session: a terminal's Ctrl-C reaches only us, and we stop it in order.

    Args:
        command: an absolute path and arguments.
        user: None keeps the current user.
        death_signal: sent to the child when this process dies, on Linux. Elsewhere the child lives on.
        log: receives its output.
        lock: a descriptor that the child and all its children hold open.
    """
    identity = (os.getpid(), death_signal.value, user.uid if user else -1, user.gid if user else -1)
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, identity), *command]
    return _in_lasting_thread(
        lambda: subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            pass_fds=(lock,),
            start_new_session=True,
        )
    )


def _in_lasting_thread(popen: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a child in a thread that lives as long as the process.

    Linux sends the death signal when the *thread* that started a child ends. A caller's thread may be short-lived.
    """
    future: Future[subprocess.Popen[bytes]] = Future()

    def work() -> None:
        try:
            future.set_result(popen())
        except BaseException as error:
            future.set_exception(error)

    _lasting_thread(os.getpid()).put(work)
    return future.result()


@lru_cache(maxsize=1)
def _lasting_thread(pid: int) -> SimpleQueue[Callable[[], None]]:
    """Return the queue of this process's lasting thread; a forked child (another pid) gets its own."""
    calls: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve() -> None:
        while True:
            calls.get()()

    threading.Thread(target=serve, name=f"embedded-servers-{pid}", daemon=True).start()
    return calls


def _environment() -> dict[str, str]:
    """Return a minimal environment: no secrets, no PG* variables. An interpreter may need its library path."""
    library_paths = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **library_paths}
