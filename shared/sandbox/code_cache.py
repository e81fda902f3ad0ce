"""Compiled code of functions that are called repeatedly.

Compiling costs more than most calls. The code is produced by a confined child that compiles and runs nothing, and is
only ever loaded by another child: to this process it is bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 16 << 20
MAX_SOURCES = 1_024


class CodeCache:
    """Compiled code by source; the least recently used is dropped first. Thread-safe.

    A source is compiled separately when it is called for the second time: a single call does not pay for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: OrderedDict[bytes, bytes | None] = OrderedDict()
        self._size = 0

    def get(self, source: bytes, compile_source: Callable[[], bytes | None]) -> bytes:
        """Return the code of a source, or nothing if it has to be compiled where it runs.

        Args:
            source: Python source.
            compile_source: returns the code; nothing if the source has none (the call will explain why); None if
                compiling could not be tried.
        """
        with self._lock:
            seen = source in self._codes
            code = self._codes.get(source)
            if seen:
                self._codes.move_to_end(source)
        if code is None:
            code = compile_source() if seen else None
            self._keep(source, code)
        return code or b""

    def _keep(self, source: bytes, code: bytes | None) -> None:
        with self._lock:
            self._forget(source)
            self._codes[source] = code
            self._size += len(source) + len(code or b"")
            while self._size > MAX_BYTES or len(self._codes) > MAX_SOURCES:
                self._forget(next(iter(self._codes)))

    def _forget(self, source: bytes) -> None:
        if source in self._codes:
            self._size -= len(source) + len(self._codes.pop(source) or b"")
