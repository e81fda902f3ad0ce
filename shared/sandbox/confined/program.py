"""Runs one program: its top level on a loop whose events are the host's replies."""

from __future__ import annotations

import asyncio
import json
from types import ModuleType
from typing import Any

from . import clock, facades
from .calls import Exchange, Line, ProgramEventLoop, ToolError, as_completed
from .capture import Capture
from .program_source import FILENAME, MAIN
from .request import Request

RESULT = "result"
"""The variable whose value counts if the program returns none."""


class Program:
    """One program of a request.

    Args:
        request: its arguments are `functions` (parameters by name), `max_arguments`, `max_waiting`, `seed`, and
            `now`; a rehearsal passes null for `now`, and keeps the real clocks.
    """

    def __init__(self, request: Request, line: Line, capture: Capture) -> None:
        settings = json.loads(request.arguments)
        sizes = settings["max_arguments"], settings["max_waiting"]
        self._exchange = Exchange(line, capture, FILENAME, *sizes)
        self._functions = settings["functions"]
        if settings["now"] is not None:
            clock.install(settings["seed"], settings["now"])
            for module in (asyncio, facades.of(asyncio)):
                vars(module).update(run=self._run_inside, as_completed=as_completed)

    def furnish(self, module: ModuleType) -> None:
        """Put the functions into the program's module, and `asyncio`, with which programs call several at once."""
        names = vars(module)
        names |= {"ToolError": ToolError, "asyncio": facades.of(asyncio)}
        for name, parameters in self._functions.items():
            names[name] = self._exchange.function(name, parameters)

    def run(self, module: ModuleType) -> Any:
        """Run the loaded program to its end and return its value.

        Raises:
            NotAwaited: it ended without making one of its calls.
        """
        loop = ProgramEventLoop(self._exchange)
        asyncio.set_event_loop(loop)
        value = loop.run_until_complete(_value(vars(module)[MAIN]))
        self._exchange.check_end()
        return vars(module).get(RESULT) if value is None else value

    def _run_inside(self, main: Any, *, debug: bool | None = None) -> Any:
        """Replace `asyncio.run`, which programs write from habit: the loop runs already, so another one runs in it."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return ProgramEventLoop(self._exchange).run_until_complete(main)
        finally:
            asyncio._set_running_loop(outer)


async def _value(main: Any) -> Any:
    value = await main()
    return await value if hasattr(value, "__await__") else value
