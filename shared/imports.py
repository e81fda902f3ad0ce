"""Imports without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from examining what is loaded again and again: that is a quarter of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
