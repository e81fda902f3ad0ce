"""Commands for tasks: submit, follow, tasks, show, why, cancel, signal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import typer

from minions import Client, Task, TaskSummary
from minions.wire import PAGE
from orchestrator import server_tools
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.following import print_lines, show_events
from orchestrator.commands.journal_views import name_of, read_history
from orchestrator.commands.output import (
    AS_JSON,
    console,
    indent,
    local_time,
    on_a_terminal,
    print_json,
    print_table,
    print_text,
    stderr,
    styled,
    zoned,
)
from orchestrator.commands.past import why_at
from orchestrator.commands.task_ids import TASK, TASKS, named, remember
from orchestrator.turn_notes import notes_of
from shared.contracts.strict_json import parse
from shared.contracts.visible_text import one_line
from shared.errors import FileFault
from shared.tasks.states import State

QUIET = typer.Option(False, "--quiet", "-q", help="Print only the new id; the default if the output is not a terminal.")
COLUMNS = ("id", "agent", "state", "capability", "attempts", "created", "finished")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, follow, tasks, show, why, cancel, signal, label):
        app.command()(command)


def submit(
    agent: str = typer.Argument(help="The agent's name; - routes by --message or --capability."),
    input: str | None = typer.Argument(
        None, help="The input as JSON, by default {}; @FILE reads a file, - standard input."
    ),
    message: list[str] = typer.Option([], "--message", "-m", help="Text for the agent, instead of an input."),
    capability: str | None = typer.Option(None, help="Run on this capability's queue."),
    wait: bool = typer.Option(False, "--wait", "-w", help="Wait for the outcome and print the output."),
    timeout: float | None = typer.Option(None, min=0, help="With --wait: the longest wait, in seconds."),
    following: bool = typer.Option(False, "--follow", "-f", help="Show what happens, then do as --wait."),
    idempotency_key: str | None = typer.Option(None, help="The same key and payload give the same task."),
    key: str | None = typer.Option(None, help="The tenant."),
    label: list[str] = typer.Option([], "--label", "-l", metavar="NAME=VALUE", help="A label; may be repeated."),
    priority: int | None = typer.Option(None, min=-100, max=100, help="A higher one runs sooner."),
    run_at: datetime | None = typer.Option(None, help="Not before this local time."),
    conversation_id: str | None = typer.Option(None, help="The conversation that the messages belong to."),
    unique_key: str | None = typer.Option(None, help="While a task holds this key, submitting returns that task."),
    unique_while: Literal["pending", "running"] | None = typer.Option(
        None, help="How long it holds the key: until it starts, or until it ends (default)."
    ),
    budget: str | None = typer.Option(None, help="What it may use: JSON such as '{\"dollars\": 0.5}'."),
    lane: Literal["direct", "batch", "auto"] | None = typer.Option(
        None, help="How its model calls are made: at once, in batches at half the price, or by the deadline."
    ),
    quiet: bool = QUIET,
    as_json: bool = AS_JSON,
) -> None:
    """Submit a task, and wait for its output if asked to."""
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout requires --wait")
    if input is not None and message:
        raise typer.BadParameter("give an input or --message, not both")
    if quiet and (wait or following or as_json):
        raise typer.BadParameter("--quiet prints only the id: it cannot be combined with --wait, --follow or --json")
    options: dict[str, Any] = {
        "capability": capability,
        "idempotency_key": idempotency_key,
        "key": key,
        "labels": labels_of(label) or None,
        "priority": priority,
        "run_at": zoned(run_at),
        "conversation_id": conversation_id,
        "unique_key": unique_key,
        "unique_while": unique_while,
        "budget": None if budget is None else read_input(budget),
        "lane": lane,
    }
    if message:
        options["messages"] = [{"role": "user", "content": text} for text in message]
    else:
        options["input"] = read_input("{}" if input is None else input)
    given = {name: value for name, value in options.items() if value is not None or name == "input"}
    with connect() as client:
        task = client.submit(None if agent == "-" else agent, **given)
        remember(task.id)
        if following:
            _follow(client, task.id, as_json)
            return
        if wait:
            task = client.wait(task, timeout=timeout)
    if wait:
        print_ended(task, as_json=as_json)
    else:
        print_submitted(task, quiet=quiet, as_json=as_json)


def follow(
    task_id: str = TASK,
    after: int = typer.Option(0, min=0, help="The id of the last event that was seen."),
    as_json: bool = typer.Option(False, "--json", help="Print each event as a line of JSON."),
) -> None:
    """Show what happens to a task, live, until it has ended."""
    with connect() as client:
        _follow(client, task_id, as_json, after)


def tasks(
    query: list[str] | None = typer.Argument(None, help="Filters, such as: agent:triage since:1d 'cost:>0.5'"),
    state: list[State] = typer.Option(
        [], "--state", "-s", metavar="STATE", help="Only tasks in this state; may be repeated."
    ),
    agent: str | None = typer.Option(None, "--agent", "-a", help="Only tasks of this agent."),
    capability: str | None = typer.Option(None, help="Only tasks of this capability."),
    key: str | None = typer.Option(None, help="Only tasks of this tenant."),
    label: list[str] = typer.Option([], "--label", "-l", metavar="NAME=VALUE", help="Only tasks with this label."),
    since: datetime | None = typer.Option(None, help="Only tasks created at this local time or later."),
    until: datetime | None = typer.Option(None, help="Only tasks created before this local time."),
    fingerprint: str | None = typer.Option(
        None, help="Only tasks that failed with this kind of error; see `minion dead-letters`."
    ),
    conversation: str | None = typer.Option(None, help="Only tasks of this conversation."),
    root: str | None = typer.Option(
        None, "--root", metavar="TASK", parser=named, help="Only this task and the tasks below it."
    ),
    outputs: bool = typer.Option(False, "--outputs", help="Show the outputs too."),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=100_000, help="How many tasks, the newest first."),
    as_json: bool = AS_JSON,
) -> None:
    """List tasks, the newest first."""
    with connect() as client:
        matching = client.tasks(
            " ".join(query) if query else None,
            state=state or None,
            agent=agent,
            capability=capability,
            key=key,
            labels=labels_of(label),
            created_after=zoned(since),
            created_before=zoned(until),
            error_fingerprint=fingerprint,
            conversation_id=conversation,
            root_id=root,
            outputs=outputs,
            page=min(limit, PAGE),
        )
        found = list(islice(matching, limit))
    if as_json:
        print_json([summary(task, outputs=outputs) for task in found])
        return
    columns = (*COLUMNS, "output") if outputs else COLUMNS
    print_table(columns, (_row(task, outputs=outputs) for task in found), empty="No tasks.")


def show(task_id: str = TASK, as_json: bool = AS_JSON) -> None:
    """Show a task with its steps and executions."""
    with connect() as client:
        task = client.get(task_id)
        steps, executions = list(client.steps(task)), list(client.executions(task))
    if as_json:
        print_json({**plain(task), "steps": steps, "executions": executions})
        return
    for name, value in {**plain(task), "messages": _outlined(task.messages)}.items():
        if value not in (None, {}, 0, False) or name in ("input", "output"):
            console.print(styled((f"{name:18}", "bold"), indent(_shorten(value), 18)))
    console.print()
    print_table(
        ("step", "kind", "name", "status", "output"),
        ((s["number"], s["kind"], name_of(s), _status(s), _shorten(s.get("output"), 60)) for s in steps),
        empty="No steps.",
    )
    for step in steps:
        if step["name"] == "router" and isinstance(step.get("output"), dict):
            console.print(f"Step {step['number']} chose {_decision(step['output'])}")
        for note in notes_of(step):
            console.print(f"Step {step['number']}: {note}")
        for line in _server_tool_uses(step.get("output")):
            console.print(f"Step {step['number']}: {line}")
    console.print()
    print_table(
        ("claim", "outcome", "worker", "started", "finished", "cpu s", "error"),
        (
            (
                e["claim"],
                e["outcome"],
                e["worker"],
                local_time(e["started_at"]),
                local_time(e["finished_at"]),
                None if e["cpu_seconds"] is None else round(e["cpu_seconds"], 3),
                message_of(e["error"]),
            )
            for e in executions
        ),
        empty="No executions.",
    )


def _outlined(messages: list[Any] | None) -> list[Any] | None:
    """Return messages with a short line for each image, document and other block."""
    from shared.contracts.content import outline

    return messages and [
        {**each, "content": outline(each["content"])} if isinstance(each, dict) and "content" in each else each
        for each in messages
    ]


def cancel(
    task_ids: list[str] = TASKS,
    reason: str | None = typer.Option(None, help="The reason, for the tasks' record."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Cancel tasks and everything below them."""
    with connect(actor) as client:
        ended = [client.cancel(task_id, reason) for task_id in task_ids]
    if as_json:
        print_json([plain(task) for task in ended])
        return
    for task in ended:
        console.print(f"{task.id} {task.state}" + (" (asked to stop)" if task.cancel_requested else ""))


def why(
    task_id: str = TASK,
    at: str | None = typer.Option(
        None, "--at", metavar="STEP|TIME", help="Why it was where it was at a step, or at a local time of the past."
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Show why a task is where it is, and what would let it continue."""
    with connect() as client:
        found = client.why(task_id) if at is None else why_at(read_history(client, task_id), at)
    if as_json:
        print_json(found)
    else:
        print_why(found)


def print_why(found: dict[str, Any]) -> None:
    """Print an explanation of the present, or of a moment of the past."""
    console.print(styled((f"{found['state']}: ", "bold"), one_line(found["sentence"])))
    for line in (found.get("todo"), *(f"Not known: {each}" for each in found.get("not_known", ()))):
        if line:
            console.print(one_line(line))


def label(
    task_id: str = TASK,
    labels: list[str] = typer.Argument(help="Labels: NAME=VALUE sets one, NAME= removes it.", metavar="NAME=VALUE..."),
    actor: str | None = ACTOR,
) -> None:
    """Set labels of a task; others stay."""
    with connect(actor) as client:
        task = client.label(task_id, changed_labels(labels))
    print_text(" ".join(f"{name}={value}" for name, value in task.labels.items()))


def signal(
    task_id: str = TASK,
    name: str = typer.Argument(help="The signal's name."),
    payload: str = typer.Argument("null", help="JSON that it carries; @FILE reads a file, - standard input."),
    as_json: bool = AS_JSON,
) -> None:
    """Send a signal to a task. It is kept until the task waits for it."""
    with connect() as client:
        task = client.signal(task_id, name, read_input(payload))
    if as_json:
        print_json(plain(task))
    else:
        console.print(f"{task.id} {task.state}")


def read_input(argument: str) -> Any:
    """Return the JSON in an argument: inline, `@FILE`, or - for standard input.

    Raises:
        FileFault: the file cannot be read.
        InvalidInput: the content is not JSON.
    """
    try:
        if argument == "-":
            return parse(sys.stdin.buffer.read(), what="The input")
        if argument.startswith("@"):
            return parse(Path(argument[1:]).read_bytes(), what=f"The file {argument[1:]}")
    except OSError as error:
        raise FileFault(f"{argument.removeprefix('@')} cannot be read: {error.strerror}.") from None
    return parse(argument, what="The input")


def changed_labels(written: list[str]) -> dict[str, str | None]:
    """Return the labels that arguments set, with None for those that they remove."""
    return {name: value or None for name, value in labels_of(written).items()}


def labels_of(pairs: list[str]) -> dict[str, str]:
    """Parse labels given as NAME=VALUE."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise typer.BadParameter(f"a label must be NAME=VALUE, not {wrong[0]!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _follow(client: Client, task_id: str, as_json: bool, after: int = 0) -> None:
    task = client.get(task_id)
    show = print_lines if as_json else show_events
    show(task.id, client.follow(task, after))
    ended = client.get(task)
    if not as_json:
        print_ended(ended, as_json=False)
    elif not ended.succeeded:
        raise typer.Exit(1)


def print_submitted(task: Task, *, quiet: bool, as_json: bool) -> None:
    """Print a new task: only its id for use in scripts (`TASK=$(minion submit …)`)."""
    if as_json:
        print_json(plain(task))
    elif quiet or not on_a_terminal():
        print_text(task.id)
    else:
        console.print(f"{task.id} {task.state}")


def print_ended(task: Task, *, as_json: bool) -> None:
    """Print the outcome of an awaited task. The exit code is 1 unless it succeeded."""
    if as_json:
        print_json(plain(task))
    elif task.succeeded:
        print_json(task.output)
    else:
        stderr.print(styled((f"Task {task.id} {task.state}: ", "bold red"), indent(message_of(task.error))))
    if not task.succeeded:
        raise typer.Exit(1)


def summary(task: TaskSummary, *, outputs: bool = False) -> dict[str, Any]:
    """Return a listed task as a dictionary; its output is included only if it was requested."""
    return {name: value for name, value in plain(task).items() if outputs or name != "output"}


def plain(task: Any) -> dict[str, Any]:
    """Return a task as a dictionary."""
    return {name: getattr(task, name) for name in _fields(task)}


def _fields(task: Any) -> list[str]:
    from dataclasses import fields

    return [field.name for field in fields(task)]


def _status(step: dict[str, Any]) -> str:
    if batch := (step["usage"] or {}).get("batch"):
        return f"{step['status']} (batch {batch})"
    if cached := (step["usage"] or {}).get("cached"):
        return f"{step['status']} (cached by step {cached['step']} of {cached['task_id']})"
    if approvals := step.get("approvals"):
        return f"{step['status']} ({_approvals(approvals)})"
    if not step.get("copied_from"):
        return str(step["status"])
    edited = ", edited" if "edited" in (step["usage"] or {}) else ""
    return f"{step['status']} (copied from {step['copied_from']}{edited})"


def _approvals(approvals: dict[str, Any]) -> str:
    by = ", ".join(each["by"] for each in approvals["by"])
    return f"{len(approvals['by'])} of {approvals['people']}, approved by {by}" if by else "not approved"


def _row(task: TaskSummary, *, outputs: bool) -> tuple[Any, ...]:
    row = (task.id, task.agent, task.state, task.capability, task.attempts, task.created_at, task.finished_at)
    return (*row, _shorten(task.output, 60)) if outputs else row


def _server_tool_uses(output: Any) -> Iterator[str]:
    """Yield what the API did by itself in a model call, one line each."""
    for use in server_tools.uses_in(output.get("content") if isinstance(output, dict) else None):
        answer = "" if use.answer is None else f" → {_shorten(use.answer, 200)}"
        yield one_line(f"{use.act}: {_shorten(use.asked, 300)}{' failed' if use.failed else ''}{answer}")


def _decision(chosen: dict[str, Any]) -> str:
    """Describe a router's choice, the method of deciding, and the scores of the other agents."""
    scores = ", ".join(f"{name} {score:g}" for name, score in (chosen.get("scores") or {}).items())
    why = chosen.get("reason") or chosen.get("not_by_model")
    return f"{chosen.get('agent')}, by {chosen.get('by', 'text')}: {scores}" + (f" ({why})" if why else "")


def message_of(error: dict[str, Any] | None) -> str:
    """Return the text of a task's error; empty if it has none."""
    return str((error or {}).get("message") or "")


def _shorten(value: Any, limit: int = 2000) -> str:
    import json

    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
