"""The `minion` command: every failure is one line and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import typer
from sqlalchemy.exc import OperationalError, ProgrammingError

from orchestrator import cli
from shared.secret_store import new_key

NOWHERE = {
    "MINION_API_URL": "http://127.0.0.1:1",
    "MINION_API_KEY": "key",
    "MINION_SECRET_KEY": new_key(),
    "TZ": "Asia/Tokyo",  # in that time zone, the first of January of the year 1 is before the calendar begins
}


def minion(*words: str | bytes, stdin: bytes = b"", closed: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command with a closed descriptor and without an API."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        input=None if closed == 0 else stdin,
        capture_output=True,
        env={**os.environ, **NOWHERE},
        timeout=60,
        preexec_fn=None if closed is None else lambda: os.close(closed),
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (("show", b"\xff"), b"", b"is not the id of a task"),
        (("show", "0123"), b"", b"'0123' is not the id of a task: it must be a whole id"),
        (("why", b"\xff"), b"", b"is not the id of a task"),
        (("pause", "agent", b"\xff"), b"", b"UTF-8"),
        (("tasks", "--agent", b"\xff"), b"", b"UTF-8"),
        (("submit", "X", "--run-at", "0001-01-01"), b"", b"too early"),
        (("replay", "--since", "0001-01-01"), b"", b"too early"),
        (("secrets", "set", "X"), b"\xff", b"base64"),
    ],
)
def test_unusable_argument_is_refused(words: tuple[str | bytes, ...], stdin: bytes, said: bytes) -> None:
    done = minion(*words, stdin=stdin)
    assert (done.returncode, done.stdout) == (65, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_descriptor_is_no_error(closed: int) -> None:
    done = minion("secrets", "key", closed=closed)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OperationalError("SELECT 1", {}, psycopg.OperationalError("the server closed the connection")),
            69,
            "The connection to the database was lost: the server closed",
        ),
        (ProgrammingError("SELECT 1", {}, psycopg.errors.UndefinedColumn("no such column")), 70, "no such column"),
        (OSError(errno.ENOSPC, "No space left on device", "x.jsonl"), 74, "No space left on device: 'x.jsonl'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 65, "invalid start byte"),
    ],
)
def test_every_error_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, said: str
) -> None:
    monkeypatch.setattr(cli, "app", _raising(error))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert said in capsys.readouterr().err


def test_unexpected_error_is_reported_as_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", _raising(LookupError("a bug \x1b]52;")))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 70
    assert "LookupError: a bug \\u001b]52;\nError: This is a bug in Minions." in capsys.readouterr().err


def test_ctrl_c_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.commands.tasks.connect", _raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", ["minion", "tasks"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("canecl",), "No such command 'canecl'. Did you mean 'cancel'? See `minion --help`."),
        (("agents", "lst"), "Did you mean 'list'? See `minion agents --help`."),
        (("tasks", "--limt", "3"), "No such option: --limt (Possible options: --limit). See `minion tasks --help`."),
        (("show",), "Missing argument 'TASK'. See `minion show --help`."),
        (("show", "01b20424", "--json", "b"), '{"error": {"type": "usage", "message": "Got unexpected extra argument'),
        (("tasks", "-n", "0"), "Input must be greater than or equal to 1. See `minion tasks --help`."),
        (("answer", "01b20424"), "give one of --result JSON, --again and --fail. See `minion answer --help`."),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["minion", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out, shown.err.count("\n")) == (2, "", 1), shown.err
    assert said in shown.err


def test_shells_complete_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_MINION_COMPLETE": "complete_bash", "COMP_WORDS": "minion dead", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    done = minion()
    assert (done.returncode, done.stdout.split()) == (0, [b"dead-letters"])


def _commands(group: Any, path: str = "minion") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


def test_every_command_has_a_one_sentence_help() -> None:
    wrong = {path: command.help for path, command in COMMANDS.items() if not (command.help or "").endswith(".")}
    assert wrong == {}


def test_every_command_is_in_a_group_of_the_help() -> None:
    groups = {name for name, _ in cli.GROUPS}
    assert {command.rich_help_panel for path, command in COMMANDS.items() if path.count(" ") == 1} == groups


def _raising(error: BaseException) -> Callable[..., None]:
    def run(**_: object) -> None:
        raise error

    return run
