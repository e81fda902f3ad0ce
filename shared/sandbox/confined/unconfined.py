"""One call in a fresh interpreter, for development on systems that have no confinement.

    python -s -P -S -c "…; from confined import unconfined; unconfined.main()"

The channel is descriptor 0. Only resource limits protect the machine from the function.
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
    """Return the bytes that the interpreter already uses, if the system reports them."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30
