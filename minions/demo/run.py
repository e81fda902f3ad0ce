"""The demo, start to end: audit, look, improve one function, replay what failed, report again."""

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
from minions.demo import AGENTS, UPGRADE, report
from minions.errors import WaitTimeout
from minions.task import FINAL, Task, TaskSummary

POLL = 0.3  # seconds

# audit-distribution, inspect-distribution, classify-licence, normalise-licence, judge-licence
TASKS_EACH = 5
# audit, list-distributions, audit-all, audit-report, summarise-audit, save-audit-data, write-audit-report
TASKS_BESIDES = 7


@dataclass
class Demo:
    """One run of the demo.

    Attributes:
        places: where to look afterwards: what it is, and its address.
        timeout: how long one wait may take, in seconds.
    """

    client: Client
    console: Console
    data_dir: Path
    apply: Callable[[Path], None]
    places: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 900.0

    def run(self) -> dict[str, Any]:
        """Audits, improves, audits again.

        Returns:
            what happened, as JSON: `{"ok", "tasks", "latency", "findings", "failed", "report", …}`.

        Raises:
            WaitTimeout: the tasks did not end in time; they go on.
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
        """Shows a progress bar until the task has ended."""
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
        """How many tasks have ended, the root included."""
        by_state = self.client.counts(root_id=root.id)["by_state"]
        return sum(number for state, number in by_state.items() if state in FINAL)

    def expected(self, root: Task) -> int | None:
        """How many tasks there will be, once it is known how many distributions there are."""
        listed = self.only(root, "list-distributions")
        if listed is None or listed.state != "succeeded":
            return None
        return len(listed.output["distributions"]) * TASKS_EACH + TASKS_BESIDES

    def looked_at(self, root: Task) -> dict[str, Any]:
        """Shows what the tasks did and what they found."""
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
        """The tasks of the distributions that could not be judged, with their input, which lists leave out."""
        tasks = self.client.tasks(root_id=root.id, agent="audit-distribution")
        return [self.client.get(task.id) for task in tasks if task.state != "succeeded"]

    def improved(self, root: Task, failed: list[Task]) -> dict[str, Any]:
        """Explains the failures, applies version 2 of the function, replays them and reports again.

        The whole `audit-distribution` is replayed: its result is what the report needs.
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
        """The results of the audit, with those of the replays in the place of the ones they replay."""
        everything = self.only(root, "audit-all")
        results = everything.output["results"] if everything else []
        return [_entry(ended[entry["task_id"]]) if entry["task_id"] in ended else entry for entry in results]

    def only(self, root: Task, agent: str) -> Task | None:
        """The one task of an agent below a root, with its output; None if there is none yet."""
        for task in self.client.tasks(root_id=root.id, agent=agent):
            return self.client.get(task.id)
        return None

    def report_of(self, saved: Task | None) -> str | None:
        """The HTML page of a saved audit, if there is one."""
        if saved is None or not saved.output:
            return None
        return str(report.folder(self.data_dir, saved.output["report"]) / report.HTML)

    def show_findings(self, findings: list[str]) -> None:
        """Prints the most surprising findings."""
        self.console.print("\nMost surprising", style="bold")
        for finding in findings:
            self.console.print(f"  • {finding}", markup=False)
        self.console.print()

    def show_places(self, result: dict[str, Any]) -> None:
        """Prints where to look."""
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
    """Runs the demo.

    Args:
        client: talks to a running system whose minions serve `inspect`, `classify` and `report`.
        console: what people read; with `as_json` only one JSON object is printed to it, at the end.
        data_dir: the data folder that the minions write to.
        apply: stores the definitions below a path, as `minion apply` does.
        places: what else to look at afterwards, by name: `{"API": "http://…", "Flower": "http://…"}`.
        as_json: print what happened for programs.
        timeout: how long one wait may take, in seconds.

    Returns:
        the exit code: 0 if the audit and its report are done, else 1.

    Raises:
        WaitTimeout: the tasks did not end in time; they go on.
    """
    shown = Console(quiet=True) if as_json else console
    result = Demo(client, shown, data_dir, apply, places or {}, timeout).run()
    if as_json:
        # Not print_json, which would colour it on a terminal and wrap it in a narrow one.
        console.out(json.dumps({**result, "places": dict(places or {})}, ensure_ascii=False), highlight=False)
    return 0 if result["ok"] else 1


def _by_capability(tasks: Iterable[TaskSummary]) -> dict[str, dict[str, int]]:
    """How many tasks stand where: `{capability: {state: number}}`."""
    counts: dict[str, Counter[str]] = {}
    for task in tasks:
        counts.setdefault(task.capability or "-", Counter())[task.state] += 1
    return {capability: dict(counts[capability]) for capability in sorted(counts)}


def _latency(tasks: Iterable[TaskSummary]) -> dict[str, dict[str, float]]:
    """Median and p95 from created to finished by capability, in seconds. Tasks that wait for others include that."""
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
    """The names of the distributions that failed, by the first sentence of the reason; the most frequent first."""
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
    """The message of the first cause, without what raised it."""
    cause = ((error or {}).get("cause") or {}).get("error") or error or {}
    return str(cause.get("message", "no reason is recorded")).split("ValueError: ")[-1]


def _entry(task: Task) -> dict[str, Any]:
    """A task as a parallel chain collects it."""
    entry = {"task_id": task.id, "agent": task.agent, "state": task.state}
    if task.state == "succeeded":
        return {**entry, "output": task.output}
    return {**entry, "input": task.input, "error": task.error or {"message": task.state}}


def _text(output: Any) -> str:
    """An agent's answer as text."""
    if isinstance(output, dict) and isinstance(output.get("content"), str):
        return str(output["content"])
    if output is None or isinstance(output, str):
        return output or ""
    return json.dumps(output, ensure_ascii=False)
