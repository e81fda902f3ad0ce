"""Processor time and memory of processes, from /proc.

Processor time is in seconds, in user and kernel mode, with the children that have ended.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Stat:
    parent: int
    own: float
    ended_children: float


class Processes:
    """A snapshot of all processes. Two snapshots give the time that was spent between them."""

    def __init__(self) -> None:
        self._stats = dict(_read_all())
        self._children: dict[int, list[int]] = defaultdict(list)
        for pid, stat in self._stats.items():
            self._children[stat.parent].append(pid)

    def own(self, pid: int) -> float:
        """Return the seconds of one process, without its children."""
        stat = self._stats.get(pid)
        return stat.own if stat else 0.0

    def children(self, pid: int) -> list[int]:
        """Return the processes whose parent is this one."""
        return self._children[pid]

    def living(self, pid: int) -> Iterator[int]:
        """Yield a process and everything below it."""
        yield pid
        for child in self._children[pid]:
            yield from self.living(child)

    def tree(self, pid: int) -> float:
        """Return the seconds of a process and everything below it, with the processes that have ended."""
        return self.own(pid) + self.below(pid)

    def below(self, pid: int, among: Callable[[int], bool] = lambda pid: True) -> float:
        """Return the seconds of everything below a process: living, if `among` accepts it, and ended.

        A process that has ended counts for the process that waited for it.
        """
        waited = self._stats[pid].ended_children if pid in self._stats and among(pid) else 0.0
        return waited + sum(
            (self.own(child) if among(child) else 0.0) + self.below(child, among) for child in self._children[pid]
        )


@dataclass(frozen=True)
class Memory:
    """Memory of one process in bytes.

    Attributes:
        pss: the proportional set size: a page that n processes share counts as 1/n.
        private: pages that no other process maps.
    """

    pss: int = 0
    private: int = 0


def memory(pid: int) -> Memory:
    """Return the memory of a process, or none if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        size = {name: int(amount.split()[0]) << 10 for name, _, amount in (line.partition(":") for line in lines)}
        return Memory(size["Pss"], size["Private_Clean"] + size["Private_Dirty"])
    return Memory()


def tree_pss(pid: int) -> int:
    """Return the proportional set size of a process and everything below it, in bytes."""
    return sum(memory(each).pss for each in Processes().living(pid))


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes, or 0 if it has ended."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10
    return 0


def command_line(pid: int) -> str:
    """Return the command line of a process, or an empty text if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _read_all() -> Iterator[tuple[int, _Stat]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name of the program, in parentheses, may contain spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                user, system, ended_user, ended_system = (int(field) / TICKS for field in fields[11:15])
                yield int(entry.name), _Stat(int(fields[1]), user + system, ended_user + ended_system)
