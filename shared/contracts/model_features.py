"""Features of the Messages API that only some models have, as Anthropic documents them.

A model with an unknown name has none of them: an author must not believe that a setting is honoured that is not. (But
`thinking` and `effort` are refused only where they are known to fail.)
"""

from __future__ import annotations

import re

NAME = re.compile(r"claude-([a-z]+)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")

Version = tuple[int, int]

# https://platform.claude.com/docs/en/build-with-claude/fast-mode (Opus 4.8 lost it on 2026-11-30.)
FAST: dict[str, frozenset[Version]] = {
    "fable": frozenset({(5, 2)}),
    "mythos": frozenset({(5, 2)}),
    "opus": frozenset({(5, 0), (5, 5)}),
}
FAST_BY_BETA: dict[str, frozenset[Version]] = {"opus": frozenset({(5, 0)})}
FIRST_WITH_TASK_BUDGET = {"fable": (5, 0), "mythos": (5, 0), "opus": (4, 7), "sonnet": (5, 5), "haiku": (5, 5)}
"""https://platform.claude.com/docs/en/build-with-claude/task-budgets"""
FIRST_WITH_COMPACTION = {"fable": (5, 0), "mythos": (5, 0), "opus": (4, 6), "sonnet": (4, 6), "haiku": (5, 5)}
"""https://platform.claude.com/docs/en/build-with-claude/compaction-threshold"""
FIRST_WITH_CONTEXT_EDITS = {"fable": (5, 0), "mythos": (5, 0), "opus": (4, 0), "sonnet": (4, 0), "haiku": (4, 5)}
"""https://platform.claude.com/docs/en/build-with-claude/context-editing"""


# https://platform.claude.com/docs/en/build-with-claude/adaptive-thinking
FIRST_ADAPTIVE = {"opus": (4, 6), "sonnet": (4, 6), "haiku": (5, 0)}
FIRST_WITHOUT_BUDGET_TO_THINK = {"opus": (4, 7), "sonnet": (5, 0), "fable": (5, 0), "mythos": (5, 0)}
FIRST_THAT_ALWAYS_THINKS = {"fable": (5, 0), "mythos": (5, 0)}
# https://platform.claude.com/docs/en/build-with-claude/effort
FIRST_WITH_EFFORT = {"opus": (4, 5), "sonnet": (4, 6), "haiku": (5, 0)}
FIRST_WITH_HIGH_EFFORT = {
    "max": {"opus": (4, 6), "sonnet": (4, 6), "haiku": (5, 0)},
    "xhigh": {"opus": (4, 7), "sonnet": (5, 0), "haiku": (5, 0)},
}


def refuses_thinking(model: str, thinking: str | int) -> bool:
    """Return whether a model is known to refuse a setting of `thinking`. Unknown ones are not."""
    match thinking:
        case "adaptive":
            return _is_before(model, FIRST_ADAPTIVE)
        case "disabled":
            return _is_since(model, FIRST_THAT_ALWAYS_THINKS)
    return _is_since(model, FIRST_WITHOUT_BUDGET_TO_THINK)


def refuses_effort(model: str, effort: str) -> bool:
    """Return whether a model is known to refuse a setting of `effort`. Unknown ones are not."""
    return _is_before(model, FIRST_WITH_HIGH_EFFORT.get(effort, FIRST_WITH_EFFORT))


def can_be_fast(model: str) -> bool:
    """Return whether a model has `speed: fast`."""
    return _has(model, FAST)


def is_fast_by_beta(model: str) -> bool:
    """Return whether a model's `speed` needs a beta header."""
    return _has(model, FAST_BY_BETA)


def takes_task_budget(model: str) -> bool:
    """Return whether a model accepts `output_config.task_budget`."""
    return _is_since(model, FIRST_WITH_TASK_BUDGET)


def can_compact(model: str) -> bool:
    """Return whether the API can compact a model's conversations."""
    return _is_since(model, FIRST_WITH_COMPACTION)


def can_clear(model: str) -> bool:
    """Return whether the API can clear tool uses and thoughts from a model's conversations."""
    return _is_since(model, FIRST_WITH_CONTEXT_EDITS)


def _has(model: str, versions: dict[str, frozenset[Version]]) -> bool:
    family, version = _parts(model)
    return version in versions.get(family, ())


def _is_since(model: str, first: dict[str, Version]) -> bool:
    family, version = _parts(model)
    return family in first and version >= first[family]


def _is_before(model: str, first: dict[str, Version]) -> bool:
    family, version = _parts(model)
    return family in first and version < first[family]


def _parts(model: str) -> tuple[str, Version]:
    match = NAME.fullmatch(model)
    return (match[1], (int(match[2]), int(match[3] or 0))) if match else ("", (0, 0))
