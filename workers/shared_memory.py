"""What the children of the prefork pool share with the worker's main process: its memory, and the sandbox's zygote."""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import cache

from billiard.util import get_pdeathsig
from sqlalchemy.orm import configure_mappers

from shared.functions.runner import share_sandbox


@cache
def share_memory() -> None:
    """Prepare for the first fork. Children created later, after a crash for example, share this memory too."""
    _load()
    share_sandbox()
    # The collector writes to every object that it examines, which copies the page for each child. It does not examine
    # frozen objects.
    gc.collect()
    gc.freeze()


def _load() -> None:
    """Load what each child would otherwise load for itself. Models are called in the lane, which is no child."""
    configure_mappers()
    with suppress(OSError):  # Not on Linux.
        get_pdeathsig()  # Each child begins with `set_pdeathsig`, for which billiard loads a parser of C.
