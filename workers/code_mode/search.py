"""`search_tools`: finds the functions of a program that are not described from the beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from shared.contracts.code_mode import SEARCH_TOOLS
from shared.contracts.strict_json import JsonValue
from workers.code_mode.stubs import stub
from workers.journal import Journal
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools.base import Tool

MOST_FOUND = 8
IN_NAME = 3
"""The weight of a word in a function's name, where one in its documentation has 1."""
_WORD = re.compile(r"[^\W_]+")


class SearchTools:
    """A tool of programs only. Its step records what was found, so a later release may find something else."""

    name = SEARCH_TOOLS
    description = (
        f"Find functions by words, and return the signatures of the best {MOST_FOUND}. Print the result to read it: "
        "the next program can call what it describes."
    )
    strict = False
    deferred = False
    effect = "pure"
    steps = 1

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.input_schema: dict[str, Any] | None = {
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": 1000}},
            "required": ["query"],
            "additionalProperties": False,
        }
        self.output_schema: dict[str, Any] | None = {"type": "string"}
        self._tools = tools

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Search as one pure step."""
        query = arguments["query"] if isinstance(arguments, dict) else ""

        def perform(_: int) -> StepResult:
            found = self.find(str(query))
            return StepResult("\n\n".join(map(stub, found)) or "No function matches. Try other words.")

        return journal.call("tool_call", self.name, arguments, perform, effect="pure", outside="nothing")

    def find(self, query: str) -> list[Tool]:
        """Return the tools that match a query, the best first."""
        wanted = {word.casefold() for word in _WORD.findall(query)}
        ranked = [(_score(tool, wanted), -position, tool) for position, tool in enumerate(self._tools)]
        best = sorted(ranked, key=lambda each: each[:2], reverse=True)[:MOST_FOUND]
        return [tool for score, _, tool in best if score]


def _score(tool: Tool, wanted: set[str]) -> int:
    name, text = _words(tool.name), _words(stub(tool))
    return sum(IN_NAME * _holds(name, word) + _holds(text, word) for word in wanted)


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _holds(words: set[str], wanted: str) -> bool:
    """Return whether one of the words is the wanted one, or another form of it."""
    shortest = max(3, len(wanted) - 2)
    return any(word == wanted or (len(wanted) > 3 and word.startswith(wanted[:shortest])) for word in words)
