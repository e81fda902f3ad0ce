"""Commands that record tasks, run agents against the recordings, and have ended tasks judged: record, eval."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.progress import Progress
from typer.core import TyperGroup

from minions import Client
from minions.errors import MinionsError
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import (
    AS_JSON,
    console,
    indent,
    interactive,
    print_json,
    print_table,
    print_text,
    stderr,
    styled,
)
from orchestrator.commands.task_ids import TASK, named
from shared.contracts.strict_json import canonical

if TYPE_CHECKING:
    from orchestrator.cases.report import Report, Usage

LONGEST_SHOWN = 2000


class _RunByDefault(TyperGroup):
    """`minion eval cases/` is `minion eval run cases/`."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command if the first argument does not."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [self.default, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


eval_app = typer.Typer(
    cls=_RunByDefault,
    help="Run an agent against recorded tasks: `minion eval cases/ --agent NAME@VERSION --level replay`.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(record)
    app.add_typer(eval_app, name="eval")


def record(
    task_id: str = TASK,
    name: str | None = typer.Option(None, help="The name of the case; by default the agent's and the task's."),
    redact: list[str] = typer.Option(
        [], "--redact", metavar="PATH", help="Replace the values at this JSON path, such as $..email; may be repeated."
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Write to this file, and large texts to files beside it."
    ),
) -> None:
    """Print a task that has ended as a case: its input, every step, and its outcome."""
    # Other commands start faster without what this needs.
    from orchestrator.cases import case_files
    from orchestrator.cases.recorder import record as record_task

    with connect() as client:
        case = record_task(client, named(task_id), name=name, redacted=redact)
    if out is None:
        print_text(case_files.text_of(case), end="")
    else:
        for file in case_files.save(case, out):
            stderr.print(f"Written: {file}")


@eval_app.command()
def run(
    paths: list[Path] = typer.Argument(help="Files with cases, or folders of them."),
    agent: str | None = typer.Option(
        None, "--agent", "-a", metavar="NAME@VERSION", help="By default that of each recording, in its active version."
    ),
    level: Literal["replay", "shadow", "judge"] = typer.Option(
        "replay", help="Nothing real; the real model with recorded tools; or that, judged by what the case expects."
    ),
    trials: int = typer.Option(1, min=1, max=100, help="How often each case is run."),
    allow_idempotent: bool = typer.Option(
        False, "--allow-idempotent", help="Make idempotent calls that were not recorded. Unsafe ones never are."
    ),
    dollars: float | None = typer.Option(
        None, min=0.000001, help="The most that all of it may cost; each trial gets an equal part."
    ),
    report: Path | None = typer.Option(None, help="Write the results to this file, for `minion eval compare`."),
    junit: Path | None = typer.Option(None, help="Write the results to this file, for a CI system."),
    namespace: str | None = typer.Option(None, help="The namespace of the agent."),
    as_json: bool = AS_JSON,
) -> None:
    """Run an agent against cases; the exit code is 1 if one does not pass."""
    from orchestrator.cases import case_files
    from orchestrator.cases.report import FORMAT, junit_of, parse_report, summary_of
    from orchestrator.cases.run import Plan, run_cases

    cases = case_files.load(paths)
    name, version = Plan.target(agent)
    plan = Plan(level, name, version, trials, allow_idempotent, dollars, namespace)
    with connect() as client, Progress(console=stderr, transient=True, disable=not interactive()) as bar:
        task = bar.add_task(level, total=None)
        results = list(run_cases(client, cases, plan, lambda done, of: bar.update(task, completed=done, total=of)))
        found = {
            "minions_report": FORMAT,
            "agent": agent or cases[0].task.agent,
            "level": level,
            "system_prompt": _prompt_of(client, results, namespace),
            "results": results,
        }
    parsed = parse_report(found, where="The report")
    found["summary"] = summary_of(parsed.results)
    if report is not None:
        case_files.write_json(report, found)
    if junit is not None:
        case_files.write_text(junit, junit_of(parsed))
    if as_json:
        print_json(found)
    else:
        _print(parsed)
    if not all(result.passed for result in parsed.results):
        raise typer.Exit(1)


@eval_app.command("compare")
def compare_reports(
    a: Path = typer.Argument(help="The report of the version before, as --report wrote it."),
    b: Path = typer.Argument(help="The report of the new version."),
    as_json: bool = AS_JSON,
) -> None:
    """Compare two reports; the exit code is 1 if a case passes less often in B, or is only in A."""
    from orchestrator.cases.case_files import read_json
    from orchestrator.cases.report import compare, parse_report

    found = compare(*(parse_report(read_json(file), where=str(file)) for file in (a, b)))
    if as_json:
        print_json(found)
    else:
        _print_comparison(found)
    if found["worse"]:
        raise typer.Exit(1)


@eval_app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of a case."""
    from orchestrator.cases.case import schema

    print_json(schema())


def _prompt_of(client: Client, results: Sequence[dict[str, Any]], namespace: str | None) -> str | None:
    """Return the prompt of the version that ran, if it is the active one and the key may see it."""
    from shared.access.roles import MASK

    try:
        agent = client.agent(results[0]["agent"], namespace=namespace)
    except MinionsError:
        return None
    prompt = agent["definition"].get("system_prompt") if agent["version"] == results[0]["version"] else None
    return None if prompt == MASK else prompt


def _print(report: Report) -> None:
    from orchestrator.cases.report import summary_of

    rows = [
        (result.case, result.trial, "passed" if result.passed else "failed", *_used(result.usage))
        for result in report.results
    ]
    print_table(("case", "trial", "verdict", "steps", "tokens", "cost", "seconds"), rows, empty="No cases.")
    for result in report.results:
        for fault in result.faults:
            console.print(styled(("\n" + result.case, "bold"), f": {indent(fault)}"))
    _print_summary(report.agent, summary_of(report.results))


def _used(usage: Usage) -> tuple[Any, ...]:
    return usage.steps, usage.tokens, f"${usage.dollars:.4f}", round(usage.seconds, 1)


def _print_summary(agent: str, found: dict[str, Any]) -> None:
    passed = f"{found['passed']} of {found['trials']} passed: {found['rate']:.0%}"
    interval = f"(95 % interval {found['low']:.0%} to {found['high']:.0%})"
    several = [f"pass^{k} {rate:.2f}" for k, rate in enumerate(found["pass_k"], 1) if k > 1]
    used = f"${found['dollars']:.4f}, {found['tokens']} tokens, median {found['median_seconds']:.1f} s"
    console.print()
    console.print(styled((agent, "bold"), f": {passed} {interval}; {', '.join([*several, used])}."))


def _print_comparison(found: dict[str, Any]) -> None:
    verdicts = [
        (case["case"], case["a"], case["b"], "worse" if case["worse"] else "better" if case["better"] else "")
        for case in found["cases"]
    ]
    print_table(("case", "A", "B", ""), verdicts, empty="The reports have no case in common.")
    for case in found["cases"]:
        if (case["worse"] or case["better"]) and case["difference"] is not None:
            _print_difference(case)
    for side in ("a", "b"):
        _print_summary(f"{side.upper()}: {found[side]['agent']}", found[side])
    if found["only_a"]:
        console.print(f"Only in A: {', '.join(found['only_a'])}.")
    if found["only_b"]:
        console.print(f"Only in B: {', '.join(found['only_b'])}.")


def _print_difference(case: dict[str, Any]) -> None:
    difference = case["difference"]
    console.print()
    console.print(styled((case["case"], "bold"), f" differs first in step {difference['step']}:"))
    for side in ("a", "b"):
        step = difference[side]
        shown = "no step" if step is None else f"{step['kind']} {step['name']}: {_short(step['request'])}"
        console.print(f"  {side.upper()}: {indent(shown)}")
    prompts = difference.get("system_prompts")
    if prompts and prompts[0] != prompts[1]:
        for side, prompt in zip("AB", prompts, strict=True):
            console.print(f"  Prompt of {side}: {indent(_short(prompt or '(unknown)'))}")
    for fault in case["faults"]:
        console.print(f"  {indent(fault)}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… (--json has all of it)"


@eval_app.command("tasks")
def judge_tasks(
    agent: str = typer.Option(..., help="The agent whose tasks are judged."),
    evaluator: str = typer.Option(..., help="The agent that judges: its output has a `score` between 0 and 1."),
    since: str = typer.Option(..., help="Tasks of this time until now: 1d, 12h."),
    dollars: float = typer.Option(..., help="At most, for all judging tasks together."),
    version: int | None = typer.Option(None, min=1, help="Only tasks of this version."),
    share: str | None = typer.Option(None, help="Only this share of the tasks: 10%."),
    limit: int = typer.Option(100, min=1, max=10_000, help="Judge at most this many tasks, the newest first."),
    namespace: str | None = typer.Option(None, help="The namespace of the agents."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Have succeeded tasks of an agent judged by another agent; `minion agents show` has the results."""
    begin = datetime.now(UTC) - timedelta(seconds=seconds_of(since, "--since"))
    with connect(actor) as client:
        chosen = client.evaluate(
            agent,
            evaluator,
            since=begin,
            dollars=dollars,
            version=version,
            share=share,
            limit=limit,
            namespace=namespace,
        )
    if as_json:
        print_json(chosen)
    elif not chosen["tasks"]:
        console.print(f"{agent} has no succeeded tasks of that time that {evaluator} has not judged.")
    else:
        console.print(
            f"{evaluator} judges {chosen['tasks']} tasks, for at most {chosen['dollars_per_task']:.6f} dollars each. "
            f"`minion agents show {agent}` shows the scores of each version, and why tasks have none."
        )
