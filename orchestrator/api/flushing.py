"""Background thread of the API that writes what requests have only counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from shared.database.connections import reason
from shared.errors import Unavailable

log = structlog.get_logger(__name__)

SECONDS = 5.0


class Counted(Protocol):
    """Facts in memory that must be written."""

    def flush(self, *, everything: bool = False) -> None:
        """Write what is due.

        Args:
            everything: write all, because the process ends.

        Raises:
            SQLAlchemyError, Unavailable: the database is unavailable; the facts are kept.
        """


@contextmanager
def flushing(*counted: Counted) -> Iterator[None]:
    """Write what is due every few seconds while the block runs, and everything when it ends."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(SECONDS):
            for each in counted:
                _flush(each)

    thread = threading.Thread(target=run, name="flushing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        for each in counted:
            _flush(each, everything=True)


def _flush(counted: Counted, *, everything: bool = False) -> None:
    try:
        counted.flush(everything=everything)
    except (SQLAlchemyError, Unavailable) as error:
        log.warning("counts_not_written", what=type(counted).__name__, reason=reason(error))
