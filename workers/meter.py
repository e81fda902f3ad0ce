"""CPU time and peak memory that one execution costs this process."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # proc(5): resets the peak resident set size


class Meter:
    """Measures from its creation. CPU time is this thread's; memory is the whole process's peak since then.

    If the system cannot reset the peak (macOS), memory is the process's peak since it started.
    """

    def __init__(self) -> None:
        self._began = time.thread_time()
        self._began_at = time.monotonic()
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._resettable = True
        except OSError:
            self._resettable = False

    def cpu_seconds(self) -> float:
        """CPU time of this thread since the meter was created."""
        return time.thread_time() - self._began

    def wall_seconds(self) -> float:
        """Wall-clock time since the meter was created."""
        return time.monotonic() - self._began_at

    def peak_memory_bytes(self) -> int:
        """The largest resident set of this process."""
        if self._resettable:
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
