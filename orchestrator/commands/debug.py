"""The debugger: walks the journal of a task step by step, and continues from a step with another output.

It is driven by plain lines, so it needs no full-screen terminal, and a script or a pipe can drive it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import typer

from minions import Client
from orchestrator.commands.attending import replay_and_compare
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.diff import print_comparison
from orchestrator.commands.journal_views import History, moment, name_of, place_of, read_history, view_of
from orchestrator.commands.output import AS_JSON, console, print_json, print_table, stderr, styled
from orchestrator.commands.past import why_at
from orchestrator.commands.prompting import json_from, read_commands
from orchestrator.commands.task_ids import TASK
from orchestrator.commands.tasks import message_of, print_why
from shared.contracts.visible_text import one_line
from shared.errors import InvalidInput

Part = Literal["summary", "request", "reply", "usage", "time", "all"]
HELP = """
n, Enter        next step
p               previous step
refresh         read the journal again; `n` after the last step of a running task does too
N               step N
f               first failure
l               list of the steps
request         what the model saw, or what the tool received
reply           what came back
usage           tokens, cost, and what is left of the budget
time            when it began and ended
all             all of these
why             where the task was at the beginning of this step
from            replay from this step, and compare
latest          the same with the agent's active version, if it asks for the same steps until here
edit [JSON]     replace this step's output (@FILE reads a file; nothing opens an editor), continue, and compare
diff            the last comparison again
q               quit
"""
BRIEF = 300


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(debug)


def debug(
    task_id: str = TASK,
    step: int | None = typer.Option(None, "--step", min=1, metavar="N", help="Show this step, and do not ask."),
    failure: bool = typer.Option(False, "--failure", help="Show the first step that failed, and do not ask."),
    show: Part | None = typer.Option(None, "--show", help="What to show of the step; by default a summary."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Walk a task's journal step by step: what the model saw, what came back, its cost; edit a step and continue."""
    if step is not None and failure:
        raise typer.BadParameter("give --step or --failure, not both")
    with connect(actor) as client:
        history = read_history(client, task_id)
        if step is not None or failure:
            _show_once(history, _failed_step(history) if failure else step, show or "summary", as_json=as_json)
        elif as_json or show is not None:
            raise typer.BadParameter("--json and --show need the step: --step N or --failure")
        else:
            Debugger(client, history).run()


class Debugger:
    """A walk through one journal. After a replay, it continues in the journal of the replay."""

    def __init__(self, client: Client, history: History) -> None:
        self.client = client
        self.compared: tuple[str, str] | None = None
        self.acts: dict[str, Callable[[], None]] = {
            "n": self._to_next,
            "p": self._to_previous,
            "refresh": self._refresh,
            "f": self._to_failure,
            "l": lambda: print_steps(self.history, self.number),
            "why": lambda: print_why(why_at(self.history, str(self.number))),
            "from": lambda: self._replay(from_step=self.number),
            "latest": lambda: self._replay(from_step=self.number, pinned=False),
            "diff": self._diff,
            "help": lambda: console.print(HELP.strip()),
        }
        self._begin(history)

    def run(self) -> None:
        """Read commands until the end of the input."""
        read_commands(self._prompt, lambda written: self.do(written or "n"), last=("q", "quit"))

    def do(self, written: str) -> None:
        """Do one command.

        Raises:
            MinionsError: it cannot be done.
        """
        word, _, rest = written.partition(" ")
        if word.isdecimal() and word.isascii():
            self._to(int(word[:9]))
        elif word in get_args(Part):
            print_part(self.history, self.number, word)
        elif word == "edit":
            self._edit(rest.strip())
        elif word in self.acts:
            self.acts[word]()
        else:
            raise InvalidInput(f"{word[:50]!r} is no command; `help` lists them.")

    def _begin(self, history: History) -> None:
        self.history = history
        first = history.steps[0]["number"] if history.steps else 0
        self.number = history.first_failure() or first
        print_head(history)
        if not history.steps:
            stderr.print("It has no steps yet.")
        else:
            stderr.print(
                "The first failure; `1` is the first step." if history.first_failure() else "Step by step: Enter."
            )
            print_part(history, self.number, "summary")

    def _prompt(self) -> str:
        return f"(step {self.number}/{len(self.history.steps)}, help) "

    def _to_next(self) -> None:
        if not self.history.task.final and not self._numbers_after():
            self._refresh()
        if not (after := self._numbers_after()):
            raise InvalidInput(f"There is no step after this one: the task is {self.history.task.state}.")
        self._to(after[0])

    def _to_previous(self) -> None:
        if not (before := [step["number"] for step in self.history.steps if step["number"] < self.number]):
            raise InvalidInput("There is no step before this one.")
        self._to(before[-1])

    def _numbers_after(self) -> list[int]:
        return [step["number"] for step in self.history.steps if step["number"] > self.number]

    def _refresh(self) -> None:
        known = len(self.history.steps)
        self.history = read_history(self.client, self.history.task.id)
        print_head(self.history)
        stderr.print(f"New steps: {len(self.history.steps) - known}.")

    def _to(self, number: int) -> None:
        self.history.step(number)
        self.number = number
        print_part(self.history, number, "summary")

    def _to_failure(self) -> None:
        self._to(_failed_step(self.history))

    def _edit(self, written: str) -> None:
        output = self.history.step(self.number)["output"]
        self._replay(from_step=self.number, edited_output=json_from(written, output))

    def _replay(self, **how: Any) -> None:
        before, number = self.history.task.id, self.number
        try:
            ended = replay_and_compare(self.client, before, **how)
        except KeyboardInterrupt:
            stderr.print("\nThe replay continues: `minion follow @last` shows it.")
            return
        self.compared = (before, ended.id)
        self._begin(read_history(self.client, ended.id))
        if any(step["number"] == number for step in self.history.steps):
            self.number = number

    def _diff(self) -> None:
        if self.compared is None:
            raise InvalidInput("Nothing was replayed yet: `from` or `edit` does.")
        print_comparison(self.client.diff(*self.compared))


def print_head(history: History) -> None:
    """Print the task in two lines."""
    task = history.task
    version = f" v{task.agent_version}" if task.agent_version else ""
    console.print(styled((f"task {task.id}", "bold"), one_line(f": {task.agent}{version}, {task.state}")))
    if task.error:
        console.print(one_line(_brief(message_of(task.error))))


def print_steps(history: History, current: int | None = None) -> None:
    """Print a line for each step, with a mark at the current one."""
    print_table(
        ("", "step", "kind", "name", "status", "output"),
        (
            (
                ">" if step["number"] == current else "",
                step["number"],
                step["kind"],
                name_of(step),
                step["status"],
                _brief(step["error"] or step["output"], 60),
            )
            for step in history.steps
        ),
        empty="No steps.",
    )


def print_part(history: History, number: int, part: str) -> None:
    """Print a part of a step for people.

    Raises:
        InvalidInput: there is no such step.
    """
    view = view_of(history, number)
    _print_title(history, view)
    parts = ("time", "usage", "request", "reply") if part == "all" else (part,)
    for each in parts:
        PRINTERS[each](view)


def _print_title(history: History, view: dict[str, Any]) -> None:
    step = view["step"]
    copied = f", copied from {step['copied_from']}" if step["copied_from"] else ""
    called = f", called in {place_of(step)}" if place_of(step) else ""
    console.print(
        styled(
            (one_line(f"Step {step['number']} of {len(history.steps)}: {step['kind']} {step['name']}"), "bold"),
            f", {step['status']} ({step['effect']}, claim {step['claim']}{copied}{called})",
        )
    )


def _print_summary(view: dict[str, Any]) -> None:
    _print_time(view)
    _print_usage(view)
    request = view["request"]
    asked = request["messages"][-1:] if "messages" in request else request.get("input", request.get("program"))
    _print_fields((("request", _brief(asked)), *((name, _brief(value)) for name, value in view["reply"].items())))
    for note in view["notes"]:
        console.print(f"  note: {one_line(note)}")


def _print_time(view: dict[str, Any]) -> None:
    time = view["time"]
    began = moment(time["started_at"])
    parts = [began.astimezone().isoformat(sep=" ", timespec="milliseconds") if began else "not begun"]
    parts.append("not finished" if time["seconds"] is None else f"{time['seconds']:.3f} s")
    if time["after_seconds"] is not None:
        parts.append(f"{time['after_seconds']:.3f} s after the task began")
    _print_fields((("time", ", ".join(parts)),))


def _print_usage(view: dict[str, Any]) -> None:
    used = view["usage"]
    tokens = {name: number for name, number in used["usage"].items() if name.endswith("tokens") and number}
    own = [f"{number:,} {name.replace('_', ' ')}" for name, number in tokens.items()]
    own.append(f"${used['cost_microdollars'] / 1e6:.6f}")
    limits = used["limits"] or {}
    so_far = [f"{_amount(name, value)}{_of(name, limits)}" for name, value in used["so_far"].items()]
    rest = [f"limit {_amount(name, limits[name])}" for name in limits if name not in used["so_far"]]
    _print_fields((("used", ", ".join(own)), ("so far", ", ".join([*so_far, *rest]))))


def _amount(name: str, value: float) -> str:
    return f"${value:.6f}" if name == "dollars" else f"{value:,} {name}"


def _of(name: str, limits: dict[str, Any]) -> str:
    return f" of {_amount(name, limits[name])}" if name in limits else ""


def _print_request(view: dict[str, Any]) -> None:
    request = dict(view["request"])
    messages, not_known = request.pop("messages", None), request.pop("not_known", ())
    for name, value in request.items():
        if value not in (None, []):
            _print_block(name, value)
    for message in messages or ():
        shown = message.get("content") if isinstance(message, dict) else message
        _print_block(f"[{message.get('role') if isinstance(message, dict) else 'message'}]", shown)
    for line in not_known:
        console.print(f"  not known: {one_line(line)}")


def _print_reply(view: dict[str, Any]) -> None:
    for name, value in view["reply"].items():
        _print_block(name, value)
    if not view["reply"]:
        console.print("  It has returned nothing yet.")


def _print_block(name: str, value: Any) -> None:
    """Print a value under its name, indented, so that no line of it can pass for one of ours."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    console.print(styled((f"  {one_line(name)}", "bold")))
    console.print(textwrap.indent(text, "  | ", lambda _: True))


def _print_fields(fields: Sequence[tuple[str, str]]) -> None:
    for name, value in fields:
        console.print(styled((f"  {name:8}", "bold"), one_line(value)))


PRINTERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "summary": _print_summary,
    "time": _print_time,
    "usage": _print_usage,
    "request": _print_request,
    "reply": _print_reply,
}


def _show_once(history: History, number: int | None, part: str, *, as_json: bool) -> None:
    assert number is not None
    if not as_json:
        print_part(history, number, part)
        return
    view = view_of(history, number)
    print_json(view if part in ("summary", "all") else {name: view[name] for name in ("task_id", "step", part)})


def _failed_step(history: History) -> int:
    """Return the first step that failed.

    Raises:
        InvalidInput: no step failed.
    """
    if (found := history.first_failure()) is None:
        error = f" The task itself {history.task.state}: {message_of(history.task.error)}" if history.task.error else ""
        raise InvalidInput(f"No step of task {history.task.id} failed.{error}")
    return found


def _brief(value: Any, limit: int = BRIEF) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
