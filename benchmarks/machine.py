"""What a run should say about the machine that it used."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared import __version__


def describe() -> dict[str, Any]:
    """Return the machine, the versions and the load before the run."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "minions": __version__,
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "processors": os.cpu_count(),
        "memory_gigabytes": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1e6, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _field(file: str, name: str) -> str | None:
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
