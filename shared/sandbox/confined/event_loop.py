"""An event loop that needs no descriptor: it runs callbacks and sleeps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import Any


class Deadlock(BaseException):
    """Every coroutine waits for something that no timer will ever trigger."""


class _SleepingSelector:
    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock
        if timeout > 0:
            time.sleep(timeout)
        return []


class SleepingEventLoop(asyncio.BaseEventLoop):
    """asyncio without input and output.

    `run_in_executor` and `asyncio.to_thread` run the function immediately and in place: there are no threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = _SleepingSelector()

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: there are no such events."""

    def _write_to_self(self) -> None:
        """Do nothing: no other thread could wake the loop."""

    def run_in_executor(  # type: ignore[override]
        self, executor: concurrent.futures.Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call the function now and return a finished future."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class SleepingPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes `asyncio.run` and `asyncio.new_event_loop` use the sleeping loop."""

    _loop_factory = SleepingEventLoop


def run(awaitable: Any) -> Any:
    """Wait for any awaitable on a fresh loop.

    Raises:
        Deadlock: it would wait indefinitely.
    """

    async def wait() -> Any:
        return await awaitable

    loop = SleepingEventLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(wait())
    finally:
        loop.close()
