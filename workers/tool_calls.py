"""The tool calls of one model turn: run in parallel if their effects allow, with results in order.

The numbers of their journal steps are assigned in the order of the request before any call starts, so that they are the
same when the task runs again, regardless of timing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from shared.contracts.json_schema import violations
from shared.contracts.strict_json import JsonValue
from shared.errors import FunctionError, InvalidInput, InvalidOutput, MinionError, ModelError, ToolError
from workers.journal import Journal
from workers.llm.base import INVALID_JSON
from workers.outcomes import OUTSIDE, Caller, Interrupted, Postponed, Suspended
from workers.task import ClaimedTask
from workers.tools.base import Tool
from workers.tools.blocks import blocks_in
from workers.tools.directives import begin_wait

MAX_RESULT = 200_000
"""Characters of a result: some 60,000 tokens of a model's context."""
MAX_AT_ONCE = 8
MAX_FAULTY_TURNS = 3
"""Limit of consecutive turns in which a model calls only unknown tools, or tools with invalid inputs."""

# Errors that are returned to the model, so that it can correct its call.
SHOWN_TO_MODEL = (InvalidInput, InvalidOutput, ToolError, FunctionError)
CallResult = JsonValue | Suspended | BaseException


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """One call that is ready to run, or the reason why it is invalid."""

    id: str
    arguments: JsonValue
    tool: Tool | None = None
    journal: Journal | None = None
    fault: InvalidInput | None = None

    @property
    def alone(self) -> bool:
        """True if it waits for the calls before it, and the calls after it wait for it."""
        return self.tool is not None and self.tool.effect == "unsafe"


class ToolCalls:
    """Makes a task's tool calls, turn by turn.

    Args:
        tools: the tools that the model knows, by name.
        arranged: puts the keys of results in the order in which they are sent.
    """

    def __init__(
        self,
        tools: dict[str, Tool],
        task: ClaimedTask,
        journal: Journal,
        arranged: Callable[[JsonValue], JsonValue],
    ) -> None:
        self.tools = tools
        self.task = task
        self.journal = journal
        self.arranged = arranged
        self._faulty_turns = 0

    def make(self, blocks: list[dict[str, Any]], limit: int | None = None) -> list[dict[str, Any]] | Suspended:
        """Return the results of all calls of one turn, in order. A tool's refusal is a result too.

        Args:
            blocks: the model's `tool_use` blocks.
            limit: the maximum number of calls; the calls after them get an error. None: no maximum.

        Raises:
            MinionError: the task cannot continue, or has to repeat a call.
        """
        calls = [self.prepare(block["id"], block["name"], block["input"]) for block in blocks[:limit]]
        calls += [_refuse_excess(block, len(calls)) for block in blocks[len(calls) :]]
        self._refuse_endless_faults(calls)
        outcomes = self.run(calls)
        if isinstance(outcomes, Suspended):
            return outcomes
        return [self._result_block(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]

    def run(self, calls: list[PreparedCall]) -> list[CallResult] | Suspended:
        """Return the results of calls, in order: values, and errors that their caller must receive.

        Raises:
            MinionError: the task cannot continue, or has to repeat a call.
        """
        outcomes = self._run_all(calls)
        if suspended := [outcome for outcome in outcomes if isinstance(outcome, Suspended)]:
            return Suspended(
                [child for each in suspended for child in each.children],
                [wait for each in suspended for wait in each.waits],
            )
        return outcomes

    def prepare(self, id: str, name: str, arguments: JsonValue, caller: Caller = OUTSIDE) -> PreparedCall:
        """Return a call that is ready to run. The numbers of its steps are the next ones.

        Args:
            caller: the place in a program that makes it.
        """
        tool = self.tools.get(name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            fault = InvalidInput(f"There is no tool named {name!r}; there are: {known}.")
        elif isinstance(arguments, dict) and [*arguments] == [INVALID_JSON]:
            fault = InvalidInput(f"The input of tool {tool.name!r} is not valid JSON.")
        elif faults := violations(tool.input_schema or {}, arguments):
            listed = "; ".join(f"{fault['path']}: {fault['message']}" for fault in faults)
            fault = InvalidInput(f"The input of tool {tool.name!r} does not match its schema: {listed}.")
        else:
            journal = self.journal.part(tool.steps)
            journal.caller = caller
            return PreparedCall(id, arguments, tool, journal)
        return PreparedCall(id, arguments, fault=fault)

    def _refuse_endless_faults(self, calls: list[PreparedCall]) -> None:
        self._faulty_turns = self._faulty_turns + 1 if all(call.fault for call in calls) else 0
        if self._faulty_turns > MAX_FAULTY_TURNS:
            raise ModelError(
                f"The model of {self.task.agent_name!r} called tools wrongly in {self._faulty_turns} turns in a row. "
                f"The last time: {calls[0].fault}"
            )

    def _run_all(self, calls: list[PreparedCall]) -> list[CallResult]:
        """Run the calls. After a call on which the task must wait or fail, no further batch begins."""
        outcomes: list[CallResult] = []
        for batch in _batches(calls):
            made = self._run_batch(batch)
            for outcome in made:
                if isinstance(outcome, BaseException) and not _is_for_the_model(outcome):
                    raise outcome
            if not _must_wait(made):
                # Waits that results request get their numbers here, when all of them are known.
                made = [self._begin_wait(call, outcome) for call, outcome in zip(batch, made, strict=True)]
            outcomes += made
            if _must_wait(made):
                break
        return outcomes

    def _run_batch(self, calls: list[PreparedCall]) -> list[CallResult]:
        if len(calls) == 1:
            return [self._run(calls[0])]
        # One of them may end long before the others.
        self.journal.commit()
        for call in calls:
            if call.journal is not None:
                call.journal.joins = False
        with self._threads(len(calls)) as threads:
            begun: list[Future[CallResult]] = [threads.submit(copy_context().run, self._run, call) for call in calls]
            return [each.result() for each in begun]

    @contextmanager
    def _threads(self, calls: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that are abandoned when the task is interrupted: their calls no longer own the journal."""
        threads = ThreadPoolExecutor(min(calls, MAX_AT_ONCE), thread_name_prefix="tool")
        try:
            yield threads
        except BaseException:
            self.journal.abandon()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, call: PreparedCall) -> CallResult:
        """A call's result, or the error that it raised."""
        if call.tool is None or call.journal is None:
            assert call.fault is not None
            return call.fault
        try:
            return call.tool.call(call.arguments, self.task, call.journal)
        except (MinionError, Postponed, Interrupted) as error:
            return error

    def _begin_wait(self, call: PreparedCall, outcome: CallResult) -> CallResult:
        if call.journal is None or isinstance(outcome, BaseException):
            return outcome
        self.journal.caller = call.journal.caller
        return begin_wait(outcome, self.journal)

    def _result_block(self, call: PreparedCall, outcome: CallResult) -> dict[str, Any]:
        """The block that answers a call."""
        result = {"type": "tool_result", "tool_use_id": call.id}
        try:
            blocks = None if isinstance(outcome, MinionError) else blocks_in(outcome, self.task)
        except MinionError as error:
            outcome = error
        if isinstance(outcome, MinionError):
            return {**result, "content": outcome.message, "is_error": True}
        content = json.dumps(self.arranged(outcome if blocks is None else blocks), ensure_ascii=False)
        if len(content) > MAX_RESULT:
            said = f"The result has {len(content):,} characters, and {MAX_RESULT:,} is the most. Ask for less of it."
            return {**result, "content": said, "is_error": True}
        return {**result, "content": content if blocks is None else blocks}


def _refuse_excess(block: dict[str, Any], limit: int) -> PreparedCall:
    return PreparedCall(
        block["id"], block["input"], fault=InvalidInput(f"Not called: {limit} calls are the most in one turn.")
    )


def _batches(calls: list[PreparedCall]) -> Iterator[list[PreparedCall]]:
    """Groups of calls that run in parallel; each batch waits for the previous one."""
    for alone, group in groupby(calls, key=lambda call: call.alone):
        together = list(group)
        yield from [[call] for call in together] if alone else [together]


def _must_wait(outcomes: list[CallResult]) -> bool:
    return any(isinstance(outcome, Suspended) for outcome in outcomes)


def _is_for_the_model(error: BaseException) -> bool:
    return isinstance(error, SHOWN_TO_MODEL) and not error.retryable
