"""Marks for the prompt cache: their places, and how long the entries live."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from minions import testing
from workers.llm.base import ModelRequest, ToolSpec
from workers.llm.caching import LOOK_BACK, MOST_MARKS, READ, cheapest, with_marks

FOR_5_MINUTES = {"type": "ephemeral"}
FOR_AN_HOUR = {"type": "ephemeral", "ttl": "1h"}
MODEL = "claude-opus-5-5"
CALLS = [{"type": "tool_use", "id": str(number), "name": "f", "input": {}} for number in range(12)]
RESULTS = [{"type": "tool_result", "tool_use_id": str(number), "content": "1"} for number in range(12)]
THOUGHT = {"type": "thinking", "thinking": "x", "signature": "y"}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A deed."}}
TOOLS = [{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "input_schema": {"type": "object"}}]
SYSTEM = [{"type": "text", "text": "Be brief."}]


def sent(turns: Any, *, tools: Any = (), system: Any = (), **options: Any) -> dict[str, Any]:
    """Return the arguments of a request with marks."""
    messages = [{"role": role, "content": content} for role, content in turns]
    arguments: dict[str, Any] = {"model": MODEL, "messages": messages}
    arguments |= {name: given for name, given in (("tools", tools), ("system", system)) if given}
    specs = tuple(ToolSpec(tool["name"], "", {}) for tool in tools)
    marked = with_marks(arguments, ModelRequest(MODEL, "", messages, specs, 1, **options))
    assert testing._fault({**marked, "tools": tools}) is None
    return marked


def marks(messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return the places of the blocks with a mark: of messages, and of blocks in them."""
    return [
        (number, place)
        for number, message in enumerate(messages)
        for place, block in enumerate(message["content"])
        if isinstance(block, dict) and "cache_control" in block
    ]


@pytest.mark.parametrize(
    ("turns", "places"),
    [
        ([("user", "a")], [(0, 0)]),
        ([("user", "a"), ("assistant", CALLS), ("user", RESULTS)], [(0, 0), (2, 11)]),
        (
            [("user", "a"), ("assistant", CALLS), ("user", RESULTS), ("assistant", CALLS), ("user", RESULTS)],
            [(2, 11), (4, 11)],
        ),
        # One paused turn, then two.
        ([("user", "a"), ("assistant", "b")], [(0, 0), (1, 0)]),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], [(1, 0), (2, 0)]),
        # Thoughts cannot have a mark: the block before them has it.
        ([("user", "a"), ("assistant", [THOUGHT])], [(0, 0)]),
        ([("user", "a"), ("assistant", [{"type": "text", "text": "b"}, THOUGHT])], [(0, 0), (1, 0)]),
        ([("assistant", "a")], [(0, 0)]),
        ([("user", [{"type": "text", "text": "a"}, DOCUMENT])], [(0, 1)]),
    ],
)
def test_ends_of_this_request_and_the_previous_one_are_marked(turns: Any, places: Any) -> None:
    assert marks(sent(turns, tools=TOOLS, system=SYSTEM)["messages"]) == places


def test_all_four_marks_are_used() -> None:
    turns = [("user", "a"), ("assistant", CALLS), ("user", RESULTS)]
    request = sent(turns, tools=TOOLS, system=SYSTEM)
    assert [tool.get("cache_control") for tool in request["tools"]] == [None, FOR_5_MINUTES]
    assert [block["cache_control"] for block in request["system"]] == [FOR_5_MINUTES]
    assert len(marks(request["messages"])) == 2


def test_marks_that_are_left_over_look_further_back() -> None:
    """A conversation whose last task added 60 messages is found in the cache."""
    turns = [("user" if number % 2 == 0 else "assistant", "a") for number in range(101)]
    places = [number for number, _ in marks(sent(turns)["messages"])]
    assert places == [98 - 2 * LOOK_BACK, 98 - LOOK_BACK, 98, 100]


def test_deferred_tool_has_no_mark() -> None:
    deferred = [TOOLS[0], {**TOOLS[1], "defer_loading": True}]
    assert ["cache_control" in tool for tool in sent([("user", "a")], tools=deferred)["tools"]] == [True, False]


def test_each_request_marks_the_end_of_the_previous_one() -> None:
    """The cache that one turn writes is found by the next one, however many blocks are between."""
    turns = [("user", "a"), *[("assistant", CALLS), ("user", RESULTS)] * 5]
    requests = [sent(turns[:length], tools=TOOLS, system=SYSTEM) for length in range(1, len(turns) + 1, 2)]
    ends = [marks(request["messages"]) for request in requests]
    assert all(before[-1] in after for before, after in pairwise(ends))


@pytest.mark.parametrize(
    ("new", "cached", "late", "lifetime"),
    [
        (100, 0, 0.0, "5m"),
        (100, 0, 0.65, "5m"),
        (100, 0, 0.66, "1h"),
        (100, 0, 1.0, "1h"),
        # The longer the prompt that would be lost, the less probable the loss may be.
        (100, 900, 0.05, "5m"),
        (100, 900, 0.07, "1h"),
        (0, 0, 1.0, "5m"),
    ],
)
def test_lifetime_is_the_cheapest(new: float, cached: float, late: float, lifetime: str) -> None:
    assert cheapest(new, cached, late) == lifetime


@pytest.mark.parametrize("late", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_chosen_lifetime_costs_no_more_than_the_other(late: float) -> None:
    for new, cached in ((1, 0), (1, 1), (1, 20), (20, 1)):
        five = 1.25 * new + late * 1.25 * (new + cached) + (1 - late) * READ * (new + cached)
        hour = 2 * new + READ * (new + cached)
        assert min(five, hour) == (hour if cheapest(new, cached, late) == "1h" else five)


def test_prompt_lives_for_an_hour_if_the_next_turn_is_late() -> None:
    turns = [("user", "a"), ("assistant", CALLS), ("user", RESULTS)]
    late = sent(turns, tools=TOOLS, system=SYSTEM, lateness=1.0)
    found = [block["cache_control"] for _, block in testing._blocks(late) if "cache_control" in block]
    assert found == [FOR_AN_HOUR] * MOST_MARKS


def test_beginning_lives_longer_than_messages_in_a_batch() -> None:
    """Other requests of the batch read the beginning; a model without tools has no next turn."""
    request = sent([("user", "a")], system=SYSTEM, in_batch=True)
    assert request["system"][0]["cache_control"] == FOR_AN_HOUR
    assert request["messages"][0]["content"][0]["cache_control"] == FOR_5_MINUTES


def test_server_refuses_a_longer_mark_after_a_shorter_one() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": FOR_AN_HOUR}]}]
    system = [{"type": "text", "text": "a", "cache_control": FOR_5_MINUTES}]
    fault = testing._fault({"model": MODEL, "system": system, "messages": messages})
    assert fault is not None
    assert "must not come after" in fault
