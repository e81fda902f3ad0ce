"""The turns of an agent with its model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies

from minions.testing import code_execution, tool_search, web_fetch, web_search
from orchestrator.pages.conversation import turns_of
from shared.tasks import attachments


def call(number: int, messages: Any, content: Any, **more: Any) -> dict[str, Any]:
    output = None if content is None else {"content": content, "stop_reason": "end_turn"}
    asked = {"messages": messages}
    return {"number": number, "kind": "model_call", "input": asked, "output": output, "error": None, **more}


def test_turns_are_what_was_new() -> None:
    steps = [
        call(1, [{"role": "user", "content": "hello"}], [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "1", "name": "find", "input": {"q": 1}},
        ]),
        {"number": 2, "kind": "tool_call", "input": {"q": 1}, "output": {"found": 2}, "error": None},
        call(3, [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": '{"found": 2}'}]}],
             [{"type": "text", "text": "two"}]),
    ]  # fmt: skip
    said = [(turn["step"], turn["role"], [(b["kind"], b["value"]) for b in turn["blocks"]]) for turn in turns_of(steps)]
    assert said == [
        (1, "user", [("text", "hello")]),
        (1, "model", [("thought", "hm"), ("call", {"q": 1})]),
        (3, "user", [("result", {"found": 2})]),
        (3, "model", [("text", "two")]),
    ]


def test_what_the_api_ran_is_shown_as_what_it_is() -> None:
    content = [
        *web_search("boats", ("Boats", "https://a.example")),
        *web_search("ships", error="too_many_requests"),
        *web_fetch("https://a.example", "<script>alert(1)</script>"),
        *code_execution("python x.py", "2", files=("file_1",)),
        *tool_search("mail", "send_mail"),
    ]
    [turn] = turns_of([call(1, [], content)])
    assert [(each["kind"], each["title"], each["value"]) for each in turn["blocks"]] == [
        ("call", "Searches the web", "boats"),
        ("result", "Result", ["Boats: https://a.example"]),
        ("call", "Searches the web", "ships"),
        ("result", "Error of the API", "too_many_requests"),
        ("call", "Fetches a page", "https://a.example"),
        ("result", "Result", "<script>alert(1)</script>"),
        ("call", "Runs a command", "python x.py"),
        ("note", "Exit code 0", ""),
        ("result", "Output", "2"),
        ("result", "Files", ["file_1"]),
        ("call", "Searches for tools", "mail"),
        ("result", "Result", ["send_mail"]),
    ]


@pytest.mark.parametrize("name", ["web_search", "web_fetch", "bash_code_execution", "other", None])
@pytest.mark.parametrize("content", [None, "text", [1, {"url": 2}], {"content": 1}, {"tool_references": [1]}, {}])
def test_hostile_blocks_of_the_api_are_shown(name: Any, content: Any) -> None:
    blocks = [
        {"type": "server_tool_use", "id": 1, "name": name, "input": content},
        {"type": f"{name}_tool_result", "tool_use_id": 1, "content": content},
    ]
    [turn] = turns_of([call(1, [], blocks)])
    assert len(turn["blocks"]) == 2


def test_failed_call_shows_its_error() -> None:
    turns = turns_of([call(1, [], None, error={"message": "overloaded"})])
    assert turns[0]["role"] == "error"


@pytest.mark.parametrize(
    "step",
    [
        call(1, "text", "text"),
        call(1, [1, None, {}], [None, 1, {"type": 2}, {"type": "text", "text": {"a": 1}}]),
        call(1, [], {"type": "text", "text": "x"}),
        {**call(1, [], []), "input": "(masked)", "output": "(masked)"},
        {**call(1, [], []), "input": None, "output": [1]},
    ],
)
def test_unknown_forms_are_shown_as_they_are(step: dict[str, Any]) -> None:
    for turn in turns_of([step]):
        assert turn["blocks"] or step["output"] is not None


KEYS = ("type", "content", "source", "citations", "data", "media_type", "start_page_number", "end_page_number")
TYPES = ("text", "image", "document", "tool_result", "bash_code_execution_tool_result", "base64", "image/png")
ANY = strategies.recursive(
    strategies.none() | strategies.integers() | strategies.sampled_from(TYPES),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.sampled_from(KEYS), inner),
    max_leaves=12,
)


@given(ANY, ANY)
def test_reply_of_any_shape_is_shown(message: Any, content: Any) -> None:
    """An operator may edit the output of a step, and a provider may send what we do not know."""
    blocks = [{"type": kind, "text": "", "source": message, "citations": [content]} for kind in ("text", "image")]
    for reply in (content, [content], blocks):
        assert turns_of([call(1, message, reply), call(1, [{"role": "user", "content": message}], reply)])


def test_large_image_is_a_line() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * attachments.LARGE}}
    [turn] = turns_of([call(1, [], [image])])
    assert turn["blocks"][0]["kind"] == "text"
    assert len(turn["blocks"][0]["value"]) < 100


@pytest.mark.parametrize(
    ("url", "is_link"), [("https://a.example/b", True), ("javascript:alert(1)", False), (5, False)]
)
def test_citation_links_to_the_web_alone(url: Any, is_link: bool) -> None:
    [turn] = turns_of([call(1, [], [{"type": "text", "text": "so", "citations": [{"title": "B", "url": url}]}])])
    [citation] = turn["blocks"][0]["citations"]
    assert (citation["place"], citation["address"]) == (str(url), url if is_link else None)
