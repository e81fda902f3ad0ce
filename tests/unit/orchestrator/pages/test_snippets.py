"""The ways to submit a task again."""

from __future__ import annotations

import ast
import json
import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.pages.snippets import LONGEST, snippets_of

BLOCKS = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}]}]
REQUEST: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(cookies=SimpleNamespace(origin="https://a"))))


def snippets(**task: Any) -> dict[str, str]:
    names = ("agent", "capability", "input", "messages", "key", "labels")
    return dict(snippets_of(REQUEST, {"id": "1", **dict.fromkeys(names), **task}))


@pytest.mark.parametrize(
    ("task", "command", "call"),
    [
        ({"agent": "a", "input": 0}, ["a", "0"], "client.submit('a', input=0)"),
        ({"agent": "a", "input": {"q": "it's"}}, ["a", '{"q": "it\'s"}'], "client.submit('a', input={'q': \"it's\"})"),
        (
            {"agent": "a", "messages": [{"role": "user", "content": "hi\nyou"}], "key": "k", "labels": {"e": "f g"}},
            ["a", "--message", "hi\nyou", "--key", "k", "--label", "e=f g"],
            "client.submit('a', messages=[{'role': 'user', 'content': 'hi\\nyou'}], key='k', labels={'e': 'f g'})",
        ),
        (
            {"capability": "c", "input": {}, "labels": {}},
            ["-", "{}", "--capability", "c"],
            "client.submit(capability='c', input={})",
        ),
    ],
)
def test_task_can_be_submitted_again(task: dict[str, Any], command: list[str], call: str) -> None:
    shown = snippets(**task)
    assert shlex.split(shown["Command line"].removesuffix("\nminion show 1")) == ["minion", "submit", *command]
    assert call in shown["Python"]
    ast.parse(shown["Python"])
    sent = json.loads(shlex.split(shown["curl"])[-1])
    assert sent == {name: value for name, value in task.items() if value not in (None, {}) or name == "input"}


def test_blocks_are_sent_with_curl_or_in_python() -> None:
    shown = snippets(agent="a", messages=BLOCKS)
    assert shown["Command line"].startswith("# `minion submit` sends texts of a user only.")
    assert f"messages={BLOCKS!r}" in shown["Python"]
    assert json.loads(shlex.split(shown["curl"])[-1])["messages"] == BLOCKS


@pytest.mark.parametrize("what", ["input", "messages"])
def test_large_contents_are_left_out(what: str) -> None:
    content: Any = "x" * LONGEST if what == "input" else [{"role": "user", "content": "x" * LONGEST}]
    for text in snippets(agent="a", **{what: content}).values():
        assert len(text) < 300
