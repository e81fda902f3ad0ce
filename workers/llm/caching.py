"""Marks for the prompt cache, and how long their entries live.

The API caches the prompt up to each mark, in the order of tools, system and messages. For each mark it looks for the
longest entry that ends there, or up to 20 blocks before. There may be four marks. An entry lives for five minutes, or,
at a higher price, for an hour, from its last use.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any, Literal

from workers.llm.base import Block, ModelRequest

Messages = list[dict[str, Any]]
Lifetime = Literal["5m", "1h"]

MOST_MARKS = 4
LOOK_BACK = 20
"""Blocks before a mark in which the API looks for an entry, beside the one that has the mark."""
MARKABLE = frozenset({"text", "image", "document", "search_result", "tool_use", "tool_result", "compaction"})

# Factors of the price of input. (Some models read for less, which only makes a lost entry more expensive.)
WRITE_FOR_5_MINUTES = 1.25
WRITE_FOR_AN_HOUR = 2.0
READ = 0.1


def cheapest(new: float, cached: float, late: float) -> Lifetime:
    """Return the lifetime with which a prompt costs least, together with the next one that contains it.

    Args:
        new: size of the part that is written to the cache now, in any unit.
        cached: size of the part before it, which is read from the cache now.
        late: probability that the next turn begins after more than five minutes, and within an hour.
    """
    whole = cached + new
    five_minutes = WRITE_FOR_5_MINUTES * new + late * WRITE_FOR_5_MINUTES * whole + (1 - late) * READ * whole
    hour = WRITE_FOR_AN_HOUR * new + READ * whole
    return "1h" if hour < five_minutes else "5m"


def with_marks(arguments: dict[str, Any], request: ModelRequest) -> dict[str, Any]:
    """Return the arguments of a call with marks after the tools, the system prompt, the previous request and this one.

    A mark that is left over looks further back in the messages.
    """
    messages: Messages = arguments["messages"]
    end_of_previous = _end_of_previous(messages)
    lifetime = _lifetime_of_messages(messages, end_of_previous, request)
    # Other tasks of the agent read the beginning too, and the rest of a batch is answered up to a day later. An entry
    # that lives longer must come first.
    of_beginning = _mark("1h" if request.in_batch else lifetime)
    marked, marks = dict(arguments), 0
    if tools := arguments.get("tools"):
        marked["tools"], marks = _with_marked_tool(tools, of_beginning), marks + 1
    if system := arguments.get("system"):
        marked["system"], marks = [*system[:-1], {**system[-1], **of_beginning}], marks + 1
    places = _places(messages, end_of_previous, MOST_MARKS - marks)
    marked["messages"] = _with_marked_blocks(messages, places, _mark(lifetime))
    return marked


def _mark(lifetime: Lifetime) -> dict[str, Any]:
    longer = {} if lifetime == "5m" else {"ttl": lifetime}
    return {"cache_control": {"type": "ephemeral", **longer}}


def _lifetime_of_messages(messages: Messages, end_of_previous: int, request: ModelRequest) -> Lifetime:
    if request.lateness == 0:
        return "5m"
    cached, new = (len(json.dumps(part, ensure_ascii=False)) for part in _parted(messages, end_of_previous))
    beginning = len(request.system) + len(json.dumps([tool.input_schema for tool in request.tools]))
    return cheapest(new, cached + beginning if cached > len("[]") else 0, request.lateness)


def _parted(messages: Messages, end: int) -> tuple[Messages, Messages]:
    return messages[:end], messages[end:]


def _end_of_previous(messages: Messages) -> int:
    """Return the number of messages that the previous request had: those before the model's last reply."""
    replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return replies[-1] if replies else 0


def _with_marked_tool(tools: list[dict[str, Any]], mark: dict[str, Any]) -> list[dict[str, Any]]:
    """Mark the last tool that is part of the prompt: deferred ones are not, and must not have a mark."""
    last = max((place for place, tool in enumerate(tools) if not tool.get("defer_loading")), default=None)
    return [{**tool, **mark} if place == last else tool for place, tool in enumerate(tools)]


def _places(messages: Messages, end_of_previous: int, most: int) -> set[tuple[int, int]]:
    """Return the blocks to mark, as numbers of messages and of blocks in them: at the ends of this request and of the
    previous one, then further back in steps in which the API looks back.
    """
    blocks = [(number, place) for number, message in enumerate(messages) for place in range(_size(message))]
    markable = [index for index, place in enumerate(blocks) if _can_be_marked(messages, place)]
    before = sum(_size(message) for message in messages[:end_of_previous])
    chosen: list[int] = []
    wanted = len(blocks) - 1
    while len(chosen) < most and wanted >= 0:
        nearest = bisect_right(markable, wanted) - 1
        if nearest < 0:
            break
        if not chosen or markable[nearest] < chosen[-1]:
            chosen.append(markable[nearest])
        wanted = before - 1 if 0 < before <= wanted else wanted - LOOK_BACK
    return {blocks[index] for index in chosen}


def _size(message: dict[str, Any]) -> int:
    return 1 if isinstance(message["content"], str) else len(message["content"])


def _can_be_marked(messages: Messages, place: tuple[int, int]) -> bool:
    content = messages[place[0]]["content"]
    return isinstance(content, str) or content[place[1]]["type"] in MARKABLE


def _with_marked_blocks(messages: Messages, places: set[tuple[int, int]], mark: dict[str, Any]) -> Messages:
    marked = {number for number, _ in places}
    return [
        {**message, "content": _marked(message["content"], {at for each, at in places if each == number}, mark)}
        if number in marked
        else message
        for number, message in enumerate(messages)
    ]


def _marked(content: str | list[Block], places: set[int], mark: dict[str, Any]) -> list[Block]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{**block, **mark} if place in places else block for place, block in enumerate(blocks)]
