"""The demo from start to end: audit, examine, improve one function, replay the failures, report again."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from minions.client import Client
from minions.errors import WaitTimeout
from minions.task import FINAL, Task, TaskSummary
from orchestrator.demo import AGENTS, UPGRADE, report

POLL = 0.3  # seconds

# audit-distribution, inspect-distribution, classify-licence, normalise-licence, judge-licence
TASKS_EACH = 5
# audit, list-distributions, audit-all, audit-report, summarise-audit, save-audit-data, write-audit-report
TASKS_BESIDES = 7


@dataclass
class Demo:
    """One run of the demo.

    Attributes:
        places: addresses to visit afterwards, by name.
        timeout: limit of each wait, in seconds.
    """

    client: Client
    console: Console
    data_dir: Path
    apply: Callable[[Path], None]
    places: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 900.0

    def run(self) -> dict[str, Any]:
        """Run the audit, improve a function, and run the audit again.

        Returns:
            The results as JSON: `{"ok", "tasks", "latency", "findings", "failed", "report", …}`.

        Raises:
            WaitTimeout: the tasks did not end in time; they continue.
        """
        self.apply(AGENTS)
        root = self.watch(self.client.submit("audit", {}))
        result = self.looked_at(root)
        failed = self.failed_distributions(root)
        if root.state == "succeeded" and failed:
            result |= self.improved(root, failed)
        self.show_places(result)
        return result

    def watch(self, root: Task) -> Task:
        """Show a progress bar until the task has ended."""
        columns = (TextColumn("Auditing"), BarColumn(), MofNCompleteColumn(), TextColumn("tasks"), TimeElapsedColumn())
        deadline = time.monotonic() + self.timeout
        total = None
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("audit", total=None)
            while not root.final:
                if time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"The audit is still {root.state} after {self.timeout:g} s; it continues as task {root.id}. "
                        "Is a minion running for each of inspect, classify and report?",
                        task=root,
                    )
                time.sleep(POLL)
                total = total or self.expected(root)
                progress.update(bar, completed=self.done(root), total=total)
                root = self.client.get(root.id)
            progress.update(bar, completed=self.done(root), total=self.done(root))
        return root

    def done(self, root: Task) -> int:
        """Return the number of ended tasks, including the root."""
        by_state = self.client.counts(root_id=root.id)["by_state"]
        return sum(number for state, number in by_state.items() if state in FINAL)

    def expected(self, root: Task) -> int | None:
        """Return the total number of tasks, once the number of distributions is known."""
        listed = self.only(root, "list-distributions")
        if listed is None or listed.state != "succeeded":
            return None
        return len(listed.output["distributions"]) * TASKS_EACH + TASKS_BESIDES

    def looked_at(self, root: Task) -> dict[str, Any]:
        """Show the executed tasks and their findings."""
        tasks = list(self.client.tasks(root_id=root.id))
        saved = self.only(root, "save-audit-data")
        result = {
            "ok": root.state == "succeeded",
            "root_id": root.id,
            "tasks": _by_capability(tasks),
            "latency": _latency(tasks),
            "findings": saved.output["findings"] if saved and saved.output else [],
            "report": self.report_of(saved),
            "commentary": _text(root.output),
        }
        self.console.print(_tasks_table(result["tasks"], result["latency"]))
        self.show_findings(result["findings"])
        if not result["ok"]:
            self.console.print(f"The audit {root.state}: {_message(root.error)}", markup=False)
        return result

    def failed_distributions(self, root: Task) -> list[Task]:
        """Return the tasks of the distributions without a verdict, with their input, which lists leave out."""
        tasks = self.client.tasks(root_id=root.id, agent="audit-distribution")
        return [self.client.get(task.id) for task in tasks if task.state != "succeeded"]

    def improved(self, root: Task, failed: list[Task]) -> dict[str, Any]:
        """Explain the failures, apply version 2 of the function, replay them and report again.

        The whole `audit-distribution` is replayed, because the report needs its result.
        """
        reasons = _reasons(failed)
        self.console.print(_reasons_table(reasons))
        self.console.print(
            "Version 2 of normalise_licence also reads licence texts. Applying it and replaying these tasks."
        )
        self.apply(UPGRADE)
        replays = {task.id: self.client.replay(task.id) for task in failed}
        ended = {task_id: self.client.wait(replay.id, self.timeout) for task_id, replay in replays.items()}
        again = self.client.submit("audit-report", {"results": self.merged(root, ended)})
        again = self.client.wait(again.id, self.timeout)
        saved = self.only(again, "save-audit-data")
        findings = saved.output["findings"] if saved and saved.output else []
        cured = sum(task.state == "succeeded" for task in ended.values())
        self.console.print(f"{cured} of {len(failed)} replayed tasks succeeded.")
        self.show_findings(findings)
        return {
            "ok": again.state == "succeeded",
            "failed": reasons,
            "replayed": len(failed),
            "cured": cured,
            "findings": findings,
            "first_report": self.report_of(self.only(root, "save-audit-data")),
            "report": self.report_of(saved),
            "commentary": _text(again.output),
        }

    def merged(self, root: Task, ended: Mapping[str, Task]) -> list[dict[str, Any]]:
        """Return the results of the audit, with those of the replays in place of the originals."""
        everything = self.only(root, "audit-all")
        results = everything.output["results"] if everything else []
        return [_entry(ended[entry["task_id"]]) if entry["task_id"] in ended else entry for entry in results]

    def only(self, root: Task, agent: str) -> Task | None:
        """Return the one task of an agent below a root, with its output; None if there is none yet."""
        for task in self.client.tasks(root_id=root.id, agent=agent):
            return self.client.get(task.id)
        return None

    def report_of(self, saved: Task | None) -> str | None:
        """Return the HTML page of a saved audit, if there is one."""
        if saved is None or not saved.output:
            return None
        return str(report.folder(self.data_dir, saved.output["report"]) / report.HTML)

    def show_findings(self, findings: list[str]) -> None:
        """Print the most surprising findings."""
        self.console.print("\nMost surprising", style="bold")
        for finding in findings:
            self.console.print(f"  • {finding}", markup=False)
        self.console.print()

    def show_places(self, result: dict[str, Any]) -> None:
        """Print the addresses."""
        if result["commentary"]:
            self.console.print("The reporting agent says", style="bold")
            self.console.print(f"  {result['commentary'][:800]}\n", markup=False)
        for what, place in {"Report": result["report"], **self.places}.items():
            self.console.print(Text.assemble((what, "bold"), f"  {place}"), soft_wrap=True)


def run(
    client: Client,
    *,
    console: Console,
    data_dir: Path,
    apply: Callable[[Path], None],
    places: Mapping[str, str] | None = None,
    as_json: bool = False,
    timeout: float = 900.0,
) -> int:
    """Run the demo.

    Args:
        client: client of a running system whose minions serve `inspect`, `classify` and `report`.
        console: output for people; with `as_json` it receives only one JSON object, at the end.
        data_dir: the data folder that the minions write to.
        apply: stores the definitions below a path, as `minion apply` does.
        places: other addresses to visit afterwards, by name: `{"API": "http://…", "Flower": "http://…"}`.
        as_json: print the results for programs.
        timeout: limit of each wait, in seconds.

    Returns:
        The exit code: 0 if the audit and its report are done, else 1.

    Raises:
        WaitTimeout: the tasks did not end in time; they continue.
    """
    shown = Console(quiet=True) if as_json else console
    result = Demo(client, shown, data_dir, apply, places or {}, timeout).run()
    if as_json:
        # Not print_json, which would add colours on a terminal and wrap lines in a narrow one.
        console.out(json.dumps({**result, "places": dict(places or {})}, ensure_ascii=False), highlight=False)
    return 0 if result["ok"] else 1


def _by_capability(tasks: Iterable[TaskSummary]) -> dict[str, dict[str, int]]:
    """Return the number of tasks: `{capability: {state: number}}`."""
    counts: dict[str, Counter[str]] = {}
    for task in tasks:
        counts.setdefault(task.capability or "-", Counter())[task.state] += 1
    return {capability: dict(counts[capability]) for capability in sorted(counts)}


def _latency(tasks: Iterable[TaskSummary]) -> dict[str, dict[str, float]]:
    """Return median and p95 from created to finished by capability, in seconds, including waits for other tasks."""
    seconds: dict[str, list[float]] = {}
    for task in tasks:
        if task.finished_at is not None:
            taken = (task.finished_at - task.created_at).total_seconds()
            seconds.setdefault(task.capability or "-", []).append(taken)
    return {name: {"median": statistics.median(taken), "p95": _p95(taken)} for name, taken in sorted(seconds.items())}


def _p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


def _tasks_table(tasks: Mapping[str, Mapping[str, int]], latency: Mapping[str, Mapping[str, float]]) -> Table:
    states = sorted({state for counts in tasks.values() for state in counts})
    table = Table("Capability", *states, "median", "p95", title="Tasks, and seconds from created to finished")
    for column in table.columns[1:]:
        column.justify = "right"
    for capability, counts in tasks.items():
        times = latency.get(capability, {})
        numbers = [str(counts.get(state, 0)) for state in states]
        table.add_row(capability, *numbers, *(f"{times[name]:.2f}" if times else "" for name in ("median", "p95")))
    return table


def _reasons(failed: Iterable[Task]) -> dict[str, list[str]]:
    """Return the names of failed distributions, by the first sentence of the reason; the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for task in failed:
        reason, _, _ = _message(task.error).partition(". ")
        reasons.setdefault(reason.rstrip("."), []).append(_name(task))
    return dict(sorted(reasons.items(), key=lambda group: -len(group[1])))


def _name(task: Task) -> str:
    return str(task.input.get("name")) if isinstance(task.input, dict) else task.id


def _reasons_table(reasons: Mapping[str, list[str]]) -> Table:
    table = Table("Why", "How many", "Which", title="Could not be judged")
    for reason, names in reasons.items():
        table.add_row(Text(reason), str(len(names)), Text(", ".join(sorted(names))))
    return table


def _message(error: dict[str, Any] | None) -> str:
    """Return the message of the first cause, without the name of the function that raised it."""
    cause = ((error or {}).get("cause") or {}).get("error") or error or {}
    return str(cause.get("message", "no reason is recorded")).split("ValueError: ")[-1]


def _entry(task: Task) -> dict[str, Any]:
    """Return a task in the form in which a parallel chain collects it."""
    entry = {"task_id": task.id, "agent": task.agent, "state": task.state}
    if task.state == "succeeded":
        return {**entry, "output": task.output}
    return {**entry, "input": task.input, "error": task.error or {"message": task.state}}


def _text(output: Any) -> str:
    """Return an agent's answer as text."""
    if isinstance(output, dict) and isinstance(output.get("content"), str):
        return str(output["content"])
    if output is None or isinstance(output, str):
        return output or ""
    return json.dumps(output, ensure_ascii=False)
