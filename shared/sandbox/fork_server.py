"""The host's side of the zygote: starts it, takes parked children from it, and asks how they ended.

Any thread may call. A dedicated thread reads the zygote's notices, so that a new child is prepared between two
calls and not in the middle of one.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from shared.sandbox.confined import shortage, wire
from shared.sandbox.door import Door
from shared.sandbox.parked import ParkedChild

START_PATIENCE = 30.0
"""Seconds in which a zygote must load and confine itself, not counting the packages."""
PACKAGE_PATIENCE = 120.0
"""Seconds in which a package must be imported. The largest take 20 on a busy machine."""

# The path is for `confined` alone: preloaded packages must not find this package's modules by short names.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]); from confined import openssl; openssl.leave_out(); "
    "from confined import boot; del sys.path[0]; boot.main()"
)
_EXPECTED_DESCRIPTORS = 2
SAME_HASHES = {"PYTHONHASHSEED": "0"}
"""Environment that gives every interpreter the same order of a set of strings: a program that is run again, on another
worker, must make the same calls. The price of `-s -P` in place of `-I`: there are no other variables to be ignored."""
CLOSE_PATIENCE = 5.0

_launching = threading.RLock()
"""Held while a zygote is started. A process that another thread forked in the middle would keep the descriptors open
whose end this one waits for, for as long as it lives."""
os.register_at_fork(before=_launching.acquire, after_in_parent=_launching.release, after_in_child=_launching.release)


class ZygoteLost(Exception):
    """The zygote ended, or does not answer."""


class ZygoteSilent(ZygoteLost):
    """The zygote does not answer, but has not ended either."""


class ZygoteRefused(Exception):
    """The zygote started but refuses to serve; the text says why."""


class PackageRefused(Exception):
    """The zygote cannot serve with a package; `name` and `reason` give details. Another one may serve without it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


def _environment() -> dict[str, str]:
    """Return only the variables that the dynamic loader may need. Local time is UTC, which needs no file."""
    names = [name for name in ("LD_LIBRARY_PATH",) if name in os.environ]
    return {"TZ": "UTC0", **SAME_HASHES, **{name: os.environ[name] for name in names}}


def _receive_with_descriptors(control: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one message. `socket.recv_fds` would let programs that the host starts inherit the descriptors."""
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(_EXPECTED_DESCRIPTORS * descriptors.itemsize)
    data, ancillary, _, _ = control.recvmsg(wire.MAX_CONTROL, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)


class ForkServer:
    """One running zygote: a separate one after `start`, or another process's after `join`.

    Args:
        pool: children to keep parked.
    """

    def __init__(self, pool: int) -> None:
        self._condition = threading.Condition()
        self._trouble: ZygoteLost | ZygoteRefused | PackageRefused | None = None
        self._loading: str | None = None
        self._parked: deque[ParkedChild] = deque()
        self._ended: dict[int, int] = {}
        self._taken: weakref.WeakSet[ParkedChild] = weakref.WeakSet()
        self._pool = pool
        self._coming = 0
        self._waiting = 0
        self._ready = False
        self._address_space = 0
        self.layers: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.failed: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise ZygoteLost(f"the zygote cannot be started: {error}") from None
        self._owner = os.getpid()
        arguments = (weakref.ref(self), self._control)
        self._reader = threading.Thread(target=_read_notices, args=arguments, name="sandbox", daemon=True)

    @classmethod
    def start(
        cls,
        preload: tuple[str, ...],
        failed: Mapping[str, str],
        without: frozenset[str],
        pool: int,
        entrance: socket.socket | None = None,
    ) -> Self:
        """Start a zygote.

        Args:
            preload: modules to import before confinement.
            failed: other modules, which are not available to functions, and why.
            without: layers to leave out (tests of single layers only).
            pool: children to keep parked.
            entrance: the socket through which other processes join, after `share`.

        Raises:
            ZygoteLost: it could not be started.
            ZygoteRefused: it refuses to serve.
            PackageRefused: it may serve without one of the modules.
        """
        shared = entrance.fileno() if entrance else None
        path = [os.path.abspath(entry) for entry in sys.path]
        settings = {
            "path": path, "host": os.getpid(), "preload": list(preload), "failed": dict(failed),
            "without": sorted(without), "entrance": shared,
        }  # fmt: skip
        with _launching:
            server = cls(pool)
            server._launch(() if shared is None else (shared,))
        server._meet(lambda: server._control.send(json.dumps(settings).encode()), START_PATIENCE)
        return server

    @classmethod
    def join(cls, door: Door, pool: int, patience: float) -> Self:
        """Use the zygote behind a door; it may have to be started first.

        Raises:
            ZygoteLost: it was not there within `patience` seconds.
        """
        server = cls(pool)
        try:
            door.enter(server._theirs)
        except OSError as error:
            server._control.close()
            raise ZygoteLost(f"the shared zygote cannot be reached: {error}") from None
        finally:
            server._theirs.close()
        server._meet(lambda: None, patience)
        return server

    def _launch(self, descriptors: tuple[int, ...]) -> None:
        control = self._theirs.fileno()
        command = [sys.executable, "-s", "-P", "-S", "-c", _BOOT, str(control), str(Path(__file__).parent)]
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=null, stdout=null, stderr=null, env=_environment(), cwd="/", close_fds=True,
                pass_fds=[control, *descriptors], start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._control.close()
            raise ZygoteLost(f"the zygote cannot be started: {shortage.of(error) or error}") from None
        finally:
            self._theirs.close()
        self.pid = self._process.pid

    def _meet(self, greet: Callable[[], object], patience: float) -> None:
        """Wait until the zygote is ready, and order the first children."""
        try:
            self._reader.start()
            greet()
            self._wait_until_ready(patience)
        except (RuntimeError, OSError) as error:
            self.close()
            raise ZygoteLost(f"the zygote cannot be started: {shortage.of(error) or error}") from None
        except (ZygoteLost, ZygoteRefused, PackageRefused):
            self.close()
            raise
        self._refill(self._pool)

    def _wait_until_ready(self, patience: float) -> None:
        """Wait for the zygote, and for each of its packages in turn."""
        while not self._ready:
            self._wait_for_news(self._loading, patience)

    def _wait_for_news(self, package: str | None, patience: float) -> None:
        patience = patience if package is None else PACKAGE_PATIENCE
        try:
            self._wait_until(lambda: self._ready or self._loading != package, time.monotonic() + patience)
        except ZygoteLost:
            if package is None:
                raise
            raise PackageRefused(package, f"its import did not end within {patience:g} s") from None

    # --- interface for callers ----------------------------------------------------------------------------

    def take(self, deadline: float) -> ParkedChild:
        """Return a parked child for one call, available before the monotonic `deadline`.

        Raises:
            ZygoteLost: there is none.
        """

        def grab() -> bool:
            if not grabbed and self._parked:
                grabbed.append(self._parked.pop())
                self._coming -= 1
            return bool(grabbed)

        grabbed: list[ParkedChild] = []
        self._check_zygote()
        with self._condition:
            self._waiting += 1
        try:
            # The last parked child is replaced immediately, so that long calls never keep others waiting.
            self._refill(self._waiting + min(1, self._pool))
            self._wait_until(grab, deadline)
        except BaseException:
            # A time limit of the caller may strike anywhere, even just after the child was found.
            for child in grabbed:
                self.end(child)
            raise
        finally:
            with self._condition:
                self._waiting -= 1
        self._taken.add(grabbed[0])
        return grabbed[0]

    def _check_zygote(self) -> None:
        """Refuse to use a zygote that has ended: its parked children are dead or about to be killed.

        Raises:
            ZygoteLost: it has ended.
        """
        if self._trouble is not None or _is_hung_up(self._control):
            self._await_trouble()

    def _refill(self, enough: int) -> None:
        """Order children until `enough` are parked or on their way."""
        with self._condition:
            missing = max(0, enough - self._coming)
            self._coming += missing
        if missing:
            self._order(wire.MORE, missing)

    def watch(self, child: ParkedChild, seconds: float) -> None:
        """Have the zygote kill the child if it is still there when `seconds` have passed."""
        with contextlib.suppress(ZygoteLost):
            self._order(wire.WATCH, child.number, seconds)

    def end(self, child: ParkedChild) -> None:
        """Kill the child if it still lives, release it, and order another."""
        killed = child.kill()
        child.close()
        self._taken.discard(child)
        with contextlib.suppress(ZygoteLost):
            if not killed:
                self._order(wire.KILL, child.number)
            # Not earlier: the fork would take the processor that the child needs. Not one by one: each time that the
            # zygote wakes, it copies pages that it shares with its latest child.
            if self._coming <= self._pool // 2:
                self._refill(self._pool)

    def status(self, child: ParkedChild, deadline: float) -> int:
        """Return the wait status with which a child ended.

        Raises:
            ZygoteLost: it has not ended in time, or its status is unknown.
        """
        self._order(wire.STATUS, child.number)
        self._wait_until(lambda: child.number in self._ended, deadline)
        with self._condition:
            return self._ended.pop(child.number)

    def share(self) -> None:
        """Let other processes join the zygote.

        Raises:
            ZygoteLost: it has ended.
        """
        self._order(wire.SHARE)

    def await_end(self) -> None:
        """Wait until a zygote that this process has started is gone."""
        assert self._process is not None
        self._process.wait()

    def close(self) -> None:
        """End the zygote and all its children, and wait until it is gone; leave it if it is another process's."""
        if os.getpid() != self._owner:
            self.disown()
            return
        self._fail(ZygoteLost("the zygote was closed"))
        self._wake_reader()
        if self._reader.ident is not None and self._reader is not threading.current_thread():
            self._reader.join(CLOSE_PATIENCE)
        self._let_go()
        if self._process is None:
            return
        try:
            self._process.wait(CLOSE_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def disown(self) -> None:
        """Release everything in a fork of the owner, without disturbing the owner's zygote."""
        self._trouble = ZygoteLost("the zygote belongs to another process")
        if self._process is not None:
            self._process.returncode = 0
        for child in list(self._taken):
            child.close()
        self._let_go()

    def __del__(self) -> None:
        # A fork of the owner shares the connection, and must not end it.
        if getattr(self, "_owner", None) == os.getpid():
            self._wake_reader()

    def _wake_reader(self) -> None:
        """Make the reader find the end of the connection: the descriptor must not be closed while it reads."""
        with contextlib.suppress(OSError, AttributeError):
            self._control.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        self._control.close()
        while self._parked:
            self._parked.pop().close()

    # --- the control socket -------------------------------------------------------------------------------

    def _order(self, order: bytes, number: int = 0, seconds: float = 0.0) -> None:
        try:
            self._control.send(wire.ORDER.pack(order, number, seconds))
        except OSError:
            self._await_trouble()

    def _await_trouble(self) -> None:
        """Wait for the reader to find the reason for a broken connection, which the zygote may have sent on it.

        Raises:
            ZygoteLost, ZygoteRefused: with the reason.
        """
        self._wait_until(lambda: False, time.monotonic() + CLOSE_PATIENCE)

    def _fail(self, trouble: ZygoteLost | ZygoteRefused | PackageRefused) -> None:
        """Notify all waiting threads of the failure."""
        with self._condition:
            self._trouble = self._trouble or trouble
            self._condition.notify_all()

    def _wait_until(self, happened: Callable[[], bool], deadline: float) -> None:
        with self._condition:
            while not happened():
                if self._trouble is not None:
                    raise type(self._trouble)(*self._trouble.args)
                if not self._condition.wait(deadline - time.monotonic()):
                    raise ZygoteSilent("the zygote does not answer")

    def read_notice(self) -> bool:
        """Handle one notice; return whether there may be more. For the reader only."""
        try:
            data, descriptors = _receive_with_descriptors(self._control)
        except ConnectionResetError:
            # The zygote ended with orders unread. Its earlier notices come next.
            return True
        except OSError as error:
            self._fail(ZygoteLost(f"the zygote is gone: {error}"))
            return False
        if not data:
            self._fail(self._reason_of_death())
            return False
        kind, number, value = wire.NOTICE.unpack_from(data)
        if kind == wire.PARKED:
            self._welcome(number, descriptors)
        elif kind == wire.FAILED:
            self._fail(ZygoteRefused(json.loads(data[wire.NOTICE.size :])["reason"]))
        elif kind == wire.REFUSED:
            self._fail(PackageRefused(**json.loads(data[wire.NOTICE.size :])))
        elif kind == wire.LOST:
            self._fail(ZygoteLost(json.loads(data[wire.NOTICE.size :])["reason"]))
        else:
            with self._condition:
                if kind == wire.ENDED:
                    self._ended[number] = value
                elif kind == wire.LOADING:
                    self._loading = json.loads(data[wire.NOTICE.size :])["name"]
                else:
                    self._learn(json.loads(data[wire.NOTICE.size :]))
                self._condition.notify_all()
        return True

    def _reason_of_death(self) -> ZygoteLost | PackageRefused:
        if self._loading is not None:
            return PackageRefused(self._loading, "the process that imported it ended; it crashes, or memory ran out")
        if self._process is None and not self._ready:
            return ZygoteLost("it admits no other process, or has ended")
        return ZygoteLost("the zygote was killed, perhaps because memory ran out")

    def _welcome(self, number: int, descriptors: list[int]) -> None:
        if len(descriptors) != _EXPECTED_DESCRIPTORS:
            for descriptor in descriptors:
                os.close(descriptor)
            self._fail(ZygoteLost("this process has no descriptors left"))
            return
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptors[0])
        channel.setblocking(False)
        child = ParkedChild(number, channel, descriptors[1], self._address_space)
        with self._condition:
            self._parked.append(child)
            self._condition.notify_all()

    def _learn(self, facts: dict[str, Any]) -> None:
        self.layers, self.notes, self.failed = tuple(facts["layers"]), tuple(facts["notes"]), facts["failed"]
        self._address_space = facts["address_space"]
        self._ready = True


def _is_hung_up(control: socket.socket) -> bool:
    """Return whether the other end of the connection is closed, or this one was closed by another thread."""
    poll = select.poll()
    try:
        poll.register(control, 0)
    except ValueError:
        return True
    return bool(poll.poll(0))


def _read_notices(server: weakref.ref[ForkServer], control: socket.socket) -> None:
    """Run the reader. It keeps nothing alive but the socket."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while poll.poll():
        living = server()
        if living is None or not living.read_notice():
            return
        del living
