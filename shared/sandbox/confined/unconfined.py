"""One call in a fresh interpreter, for development on systems that have no confinement.

    python -I -S -c "…; from confined import unconfined; unconfined.main()"

The channel is descriptor 0. Nothing but resource limits stands between the function and the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from . import child, event_loop


def main() -> None:
    """Serve one request."""
    asyncio.set_event_loop_policy(event_loop.SleepingPolicy())
    child.live_unconfined(_address_space())


def _address_space() -> int:
    """Bytes that the interpreter has taken already, where the system tells."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30
