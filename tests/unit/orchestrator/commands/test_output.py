"""A terminal shows all output of commands, and does not obey it."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.panel import Panel

import orchestrator.commands
from minions import TaskEvent
from orchestrator import cli
from orchestrator.commands import output
from orchestrator.commands.following import print_lines, show_events
from orchestrator.commands.output import SafeConsole, console, print_json, print_table, print_text, stderr, styled
from shared.errors import InvalidInput

EVIL = "a\x1b]52;c;ZXZpbA==\x07\x9b2K\u202e\u2028\x7f\rError: \x08\x0bz"
SHOWN = "a\\u001b]52;c;ZXZpbA==\\u0007\\u009b2K\\u202e\\u2028\\u007f\\u000dError: \\u0008\\u000bz"  # as by `visible`
COMMANDS = sorted(Path(orchestrator.commands.__file__).parent.glob("*.py"))
# Colours, which Rich itself sends to a terminal.
OWN = re.compile(r"\x1b\[[0-9;]*m")


def events(text: str) -> list[TaskEvent]:
    streamed = [
        TaskEvent(id=None, type="step.text", data={"step": 1, "from": at, "text": character})
        for at, character in enumerate(text)
    ]
    error = {"step": 2, "kind": "tool_call", "name": text, "error": {"message": text}, "at": "2026-01-01T10:00:00Z"}
    return [*streamed, TaskEvent(id=1, type="step.failed", data=error)]


PRINTED: dict[str, Callable[[], object]] = {
    "text": lambda: console.print(EVIL),
    "styled text": lambda: console.print(styled((EVIL, "bold"), EVIL)),
    "a table": lambda: print_table([EVIL], [[EVIL], [[EVIL]]], empty=""),
    "an empty table": lambda: print_table(["x"], [], empty=EVIL),
    "anything that Rich renders": lambda: stderr.print(Panel(EVIL, title=EVIL)),
    "plain text": lambda: print_text(EVIL),
    "streamed text": lambda: show_events(EVIL, events(EVIL)),
    "an error": lambda: output.fail(InvalidInput(EVIL)),
}


@pytest.mark.parametrize("name", PRINTED)
def test_hidden_characters_are_shown_as_escapes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    PRINTED[name]()
    printed = "".join(capsys.readouterr())
    assert not re.search(r"[^\n\t\x20-\x7e\u2500-\u257f]", printed)
    assert "\\u001b" in printed


def test_streamed_text_is_escaped_piece_by_piece(capsys: pytest.CaptureFixture[str]) -> None:
    show_events("x", events(EVIL))
    assert capsys.readouterr().err.splitlines()[1] == f"│ {SHOWN}"


def test_forged_lines_are_indented_or_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.fail(InvalidInput("no\nError: forged"))
    show_events("x", [TaskEvent(id=1, type="task.failed", data={"error": {"message": "a\n10:00:00 succeeded"}})])
    *error, _, line = capsys.readouterr().err.splitlines()
    assert error == ["Error: no", "    Error: forged"]
    assert line.endswith("failed: a\\n10:00:00 succeeded")


@pytest.mark.parametrize("name", PRINTED)
def test_terminal_gets_only_our_own_colours(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in (console, stderr):
        monkeypatch.setattr(each, "_force_terminal", True)
        monkeypatch.setattr(each, "_color_system", SafeConsole()._color_system)
    PRINTED[name]()
    assert not re.search(r"[^\n\t\x20-\x7e\u2500-\u257f]", OWN.sub("", "".join(capsys.readouterr())))


def test_markup_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("[link=https://evil.example]x[/link] :smile: [/no]")
    assert capsys.readouterr().out == "[link=https://evil.example]x[/link] :smile: [/no]\n"


def test_json_is_safe_and_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({EVIL: [EVIL, "\ud800"]})
    print_lines(EVIL, events(EVIL)[-1:])
    printed = capsys.readouterr().out
    assert not re.search(r"[^\n\x20-\x7e]", printed)
    document, _, line = printed.partition("}\n")
    assert json.loads(document + "}") == {EVIL: [EVIL, "\ud800"]}
    assert json.loads(line)["data"]["name"] == EVIL


def test_json_error_is_safe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["minion", "show", "x", "--json"])
    output.fail(InvalidInput(EVIL, name=EVIL))
    printed = capsys.readouterr().err
    assert not re.search(r"[^\n\x20-\x7e]", printed)
    assert json.loads(printed)["error"] == {"type": "invalid_input", "message": EVIL, "name": EVIL}


@pytest.mark.parametrize("file", [*COMMANDS, Path(cli.__file__)], ids=lambda file: file.name)
def test_commands_print_through_one_module_only(file: Path) -> None:
    if file.name == "output.py":
        return
    names = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name | ast.ImportFrom)
    }
    banned = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write", "Console", "Text.assemble"}
    assert not names & banned
