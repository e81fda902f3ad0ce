"""The host's handle on one child: its channel, its process, and the kernel's counters of its use."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from dataclasses import dataclass

_KB = 1024
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PEAK_SIZE = re.compile(rb"VmPeak:\s+(\d+) kB")
_PEAK_RESIDENT = re.compile(rb"VmHWM:\s+(\d+) kB")
_PRIVATE = re.compile(rb"RssAnon:\s+(\d+) kB")
_FILES = re.compile(rb"RssFile:\s+(\d+) kB")
_PID = re.compile(r"^Pid:\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """Resources that a call has used.

    Attributes:
        cpu_time: CPU seconds since it began.
        peak_memory: bytes of private memory added to the child at its peak. Pages of the interpreter's files do not
            count: all processes share them.
        peak_reserved: the same for address space.
        alive: whether the child was still there afterwards; otherwise its counters are meaningless.
    """

    cpu_time: float = 0.0
    peak_memory: int = 0
    peak_reserved: int = 0
    alive: bool = True


class ParkedChild:
    """One child, from parking to its end.

    The pid is found through the pidfd, and the status file is opened, while the child is parked: both keep
    referring to this process and no other, even if its pid is reused later.

    Args:
        number: the zygote's name for it.
        channel: the connection to it.
        pidfd: a handle on its process.
        fallback_size: bytes of address space to assume where `/proc` does not report them.
    """

    def __init__(self, number: int, channel: socket.socket, pidfd: int, fallback_size: int) -> None:
        self.number = number
        self.channel = channel
        self.pidfd = pidfd
        self._owner = os.getpid()
        self._closed = False
        self.address_space = self.data = fallback_size
        self._status: int | None = None
        self._statm: int | None = None
        self._clock: int | None = None
        self._resident = self._private = 0
        self._cpu_at_start = 0.0
        self._open_status()

    def _open_status(self) -> None:
        try:
            with open(f"/proc/self/fdinfo/{self.pidfd}") as facts:
                match = _PID.search(facts.read())
            if match is None:
                return
            self._statm = os.open(f"/proc/{match.group(1)}/statm", os.O_RDONLY | os.O_CLOEXEC)
            self._status = os.open(f"/proc/{match.group(1)}/status", os.O_RDONLY | os.O_CLOEXEC)
            self._clock = (~int(match.group(1)) << 3) | 2  # the kernel's number for a process's CPU clock
        except OSError:
            self._close_files()

    def begin(self) -> None:
        """Record the counters before the call."""
        if sizes := self._sizes():
            self.address_space, self._resident, files, data = sizes
            self.data = data or self.address_space
            self._private = max(self._resident - files, data)
        self._cpu_at_start = self._clock_time()

    def usage(self) -> Usage:
        """Return the call's use so far; zeros if the kernel does not report it, or no longer does."""
        status = self._read_status()
        resident = _kilobytes(_PEAK_RESIDENT, status)
        reserved = max(0, _kilobytes(_PEAK_SIZE, status) - self.address_space)
        # The kernel keeps no peak of private memory. Resident memory includes files that came in during the call, but
        # these were reserved before it. Only a function that unmaps files adds more private memory than it reserves.
        private = max(_kilobytes(_PRIVATE, status), resident - _kilobytes(_FILES, status)) - self._private
        return Usage(
            cpu_time=max(0.0, self._cpu() - self._cpu_at_start),
            peak_memory=max(0, private, min(resident - self._resident, reserved)),
            peak_reserved=reserved,
            # A process that is ending loses its memory first: its status no longer reports a size.
            alive=(resident > 0 or self._status is None) and not self.has_ended(0),
        )

    def cpu_time(self) -> float:
        """Return CPU seconds since `begin`."""
        return max(0.0, self._cpu() - self._cpu_at_start)

    def _cpu(self) -> float:
        seconds = self._clock_time()
        # A dead child's pid may have been reused by another process.
        return 0.0 if self.has_ended(0) else seconds

    def _clock_time(self) -> float:
        if self._clock is None:
            return 0.0
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0

    def _sizes(self) -> tuple[int, int, int, int] | None:
        """Return bytes of address space, resident memory, files in it, and writable private memory; None if unknown."""
        if self._statm is None:
            return None
        try:
            pages = [int(number) for number in os.pread(self._statm, 128, 0).split()]
            size, resident, files, _, _, data, _ = pages
        except (OSError, ValueError):
            return None
        return size * _PAGE, resident * _PAGE, files * _PAGE, data * _PAGE

    def _read_status(self) -> bytes:
        if self._status is None:
            return b""
        try:
            return os.pread(self._status, 4096, 0)
        except OSError:
            return b""

    def has_ended(self, patience: float) -> bool:
        """Return whether the process is gone, after waiting for at most `patience` seconds."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def kill(self) -> bool:
        """End the process now; return False if this process may not."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close all descriptors. May be repeated."""
        if self._closed:
            return
        self._closed = True
        self.channel.close()
        os.close(self.pidfd)
        self._close_files()

    def _close_files(self) -> None:
        for descriptor in (self._status, self._statm):
            if descriptor is not None:
                os.close(descriptor)
        self._status = self._statm = None

    def __del__(self) -> None:
        """Clean up: a time limit of the caller may strike between any two steps, and no child may be left behind."""
        if not self._closed:
            if os.getpid() == self._owner:
                self.kill()
            self.close()


def _kilobytes(pattern: re.Pattern[bytes], status: bytes) -> int:
    match = pattern.search(status)
    return int(match.group(1)) * _KB if match else 0
