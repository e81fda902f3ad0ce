"""Memory that the children of the pool share with the worker's main process."""

from __future__ import annotations

import gc


def share_memory() -> None:
    """Prepare for the first fork: later collections, in this process or a child, leave the present objects alone.

    The garbage collector writes to every object that it examines. Each such page would be copied, once for each child.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
