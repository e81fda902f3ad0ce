"""`run_program`: the tool by which a model runs a program that calls the agent's tools.

The program runs in the sandbox. Each of its calls is a step of the task, made by this process, which has the secrets
and the connections. When the task must wait, the program's process ends; later the program runs again from its
beginning, and its journal reads the calls back that it has made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from shared.contracts.code_mode import RUN_PROGRAM, SEARCH_TOOLS, CodeMode, function_name
from shared.contracts.strict_json import JsonValue
from shared.database.connections import persistently
from shared.errors import FunctionError, NotConfigured
from shared.functions import security_events
from shared.functions.runner import get_sandbox
from shared.sandbox import Sandbox
from shared.sandbox.program import Program, ProgramLimits
from shared.sandbox.program_events import Asleep, Calls, Failed, Finished
from workers.code_mode import program_step
from workers.code_mode.calls import ProgramCalls
from workers.code_mode.program_step import OpenProgram
from workers.code_mode.result import error_of, value_of
from workers.code_mode.search import SearchTools
from workers.code_mode.source import source_of
from workers.code_mode.stubs import is_parameter, stub, summary
from workers.conversation import tokens_in
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools.base import Tool

INTRODUCTION = """\
Run a Python program that calls the functions below, and receive its result. Use it for all calls of these functions: \
several calls, loops and conditions belong in one program, and only its result comes back to you.

The program is the body of an async function: `await` and `return` may be at its top level. Return, or print, what you \
need to know, and no more. Call the functions with `await` and named arguments; calls that do not depend on each other \
with `asyncio.gather`. A call that fails raises `ToolError`. The standard library's modules that only compute can be \
imported; there are no files and no network. A failed program is not undone, so do not repeat the calls that it made.
"""
MORE = f"""\
More functions, which can be called in the same way. `{SEARCH_TOOLS}` returns their signatures:
"""
CODE = "The program, in Python."
DEPEND_ON_MACHINE = frozenset({"timeout", "cpu_limit", "memory_limit"})
"""Limits that a program may reach when it runs again, although it came further before."""


class ProgramTool:
    """The tool of one task.

    Args:
        tools: the tools that programs can call.
        journal: the task's.
        arranged: puts the keys of results in the order in which they are sent.
    """

    name = RUN_PROGRAM
    strict = False
    deferred = False
    # It runs alone. Its calls have their own effects.
    effect = "unsafe"
    # It takes the numbers of its steps from the task's journal while it runs.
    steps = 0

    def __init__(
        self, settings: CodeMode, tools: Sequence[Tool], journal: Journal, arranged: Callable[[JsonValue], JsonValue]
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.arranged = arranged
        described, others = _described(tools, settings)
        self.functions = {function_name(tool.name): tool for tool in tools}
        if others:
            self.functions[SEARCH_TOOLS] = SearchTools(tools)
        self.description = _description(described, others)
        self.input_schema: dict[str, Any] | None = {
            "type": "object",
            "properties": {"code": {"type": "string", "description": CODE}},
            "required": ["code"],
            "additionalProperties": False,
        }
        self.output_schema: dict[str, Any] | None = None

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Run the program, or read its end back.

        Raises:
            FunctionError: the program failed; the text is for the model.
            MinionError: the task cannot continue, or has to repeat a call.
        """
        facts = {"time": time.time(), "seed": secrets.token_hex(16)}
        try:
            program = program_step.begin(self.journal, self.name, arguments, facts)
        except FunctionError as ended:
            self.journal.skip_to(ended.detail.get("last_step", 0))
            raise
        if not isinstance(program, OpenProgram):
            return self._read_back(program)
        end = self._run(source_of(str(arguments["code"])), program, task)
        if isinstance(end, Suspended):
            return end
        return self._end(program, end)

    def _read_back(self, output: JsonValue) -> JsonValue:
        ended = output if isinstance(output, dict) else {"result": output}
        self.journal.skip_to(ended.get("last_step", 0))
        return _shown(ended)

    def _end(self, program: OpenProgram, end: dict[str, JsonValue] | FunctionError) -> JsonValue:
        last = program.calls.last_number
        if isinstance(end, FunctionError):
            end.detail["last_step"] = last
            program.end(end)
            raise end
        program.end(StepResult({**end, "last_step": last}))
        return _shown(end)

    def _run(
        self, code: str, begun: OpenProgram, task: ClaimedTask
    ) -> dict[str, JsonValue] | FunctionError | Suspended:
        calls = ProgramCalls(self.functions, task, begun, self.arranged)
        functions = {name: _parameters(tool) for name, tool in self.functions.items()}
        seed, now = str(begun.facts["seed"]), float(begun.facts["time"])
        with _confined().program(code, functions, seed=seed, now=now, limits=self._limits()) as program:
            try:
                end = _drive(program, calls)
            finally:
                used = StepResult(None, cpu_seconds=program.cpu_time, peak_memory_bytes=program.peak_memory)
                self.journal.used.add(used)
        if isinstance(end, Suspended):
            return end
        return self._failed(end, calls, begun) if isinstance(end, Failed) else value_of(end, self.settings)

    def _failed(self, end: Failed, calls: ProgramCalls, begun: OpenProgram) -> FunctionError:
        is_slower = end.fault.type in DEPEND_ON_MACHINE and begun.later_call() is not None
        if end.cause == "unavailable" or is_slower:
            # It is not the program's fault, and its step stays open.
            error = FunctionError(f"The program cannot run now: {end.fault.message}", reason=end.fault.type)
            error.retryable = True
            raise error
        if end.fault.type == "security":
            persistently(security_events.record_of_program, self.journal.task_id, end.fault)
        return error_of(end, calls.names, self.settings)

    def _limits(self) -> ProgramLimits:
        settings = self.settings
        return ProgramLimits(
            timeout=settings.timeout,
            memory=settings.memory_limit,
            calls=settings.max_calls,
            outstanding=settings.max_calls,
        )


def _drive(program: Program, calls: ProgramCalls) -> Finished | Failed | Suspended:
    """Run a program to its end, or until its task must wait."""
    event = program.start()
    while True:
        match event:
            case Calls():
                replies = calls.make(event)
                if isinstance(replies, Suspended):
                    return replies
                event = program.resume(replies)
            case Asleep(seconds):
                if (waits := calls.sleep(seconds)) is not None:
                    return waits
                event = program.resume()
            case Finished() | Failed():
                return event


def _confined() -> Sandbox:
    """Return the sandbox, which must confine a program whose author is a model.

    Raises:
        NotConfigured: it would not.
    """
    sandbox = get_sandbox()
    if sandbox.level == "insecure":
        raise NotConfigured(
            "A model's program is not run, because this machine's sandbox is at level insecure. `minion doctor` says "
            "what is missing."
        )
    return sandbox


def _parameters(tool: Tool) -> tuple[str, ...]:
    return tuple(name for name in (tool.input_schema or {}).get("properties") or () if is_parameter(name))


def _shown(ended: dict[str, JsonValue]) -> JsonValue:
    return {name: ended[name] for name in ("result", "printed") if name in ended}


def _described(tools: Sequence[Tool], settings: CodeMode) -> tuple[list[Tool], list[Tool]]:
    """Return the tools whose stubs fit into the description, in order, and the others."""
    left, described, others = settings.described_tokens, list[Tool](), list[Tool]()
    for tool in tools:
        left -= 0 if tool.deferred else tokens_in(stub(tool))
        (others if tool.deferred or left < 0 else described).append(tool)
    return described, others


def _description(described: Sequence[Tool], others: Sequence[Tool]) -> str:
    parts = [INTRODUCTION, *map(stub, described)]
    if others:
        parts += [stub(SearchTools(others), SEARCH_TOOLS), MORE + "\n".join(map(summary, others))]
    return "\n\n".join(part.strip() for part in parts)
