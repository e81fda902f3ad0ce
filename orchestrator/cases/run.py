"""Running cases: each trial is a task, on the same workers as all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from minions import Client, Task
from minions.errors import InvalidInput
from orchestrator.cases import verdict
from orchestrator.cases.case import Case, Judge
from orchestrator.cases.recorder import recording_of
from shared import errors
from shared.contracts.recording import RecordedTask, parse_recording

Level = Literal["replay", "shadow", "judge"]
Progress = Callable[[int, int], None]
MOST_IN_FLIGHT = 50
JUDGE_MINUTES = 30
"""Time in which a judge must have answered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How cases are run.

    Attributes:
        agent, version: None: those of the recordings, and the active one.
        dollars: the most that all trials may use together; each gets an equal part.
    """

    level: Level
    agent: str | None = None
    version: int | None = None
    trials: int = 1
    allow_idempotent: bool = False
    dollars: float | None = None
    namespace: str | None = None

    @classmethod
    def target(cls, written: str | None) -> tuple[str | None, int | None]:
        """Return the agent and the version in `NAME` or `NAME@VERSION`.

        Raises:
            InvalidInput: it is something else.
        """
        if written is None:
            return None, None
        name, at, number = written.partition("@")
        if not name or (at and not (number.isdecimal() and len(number) < 10)):
            raise errors.InvalidInput(f"An agent's version must be written NAME@NUMBER, not {written!r}.")
        return name, int(number) if at else None


def run_cases(client: Client, cases: Sequence[Case], plan: Plan, progress: Progress) -> Iterator[dict[str, Any]]:
    """Submit all trials, and yield the result of each when it has ended.

    Args:
        progress: receives the number of ended trials, and of all.
    """
    trials = [(case, trial) for case in cases for trial in range(1, plan.trials + 1)]
    run_id = str(uuid4())
    pending: list[tuple[Case, int, Task | InvalidInput]] = []
    submitted = ended = 0
    progress(0, len(trials))
    while ended < len(trials):
        while submitted < len(trials) and len(pending) < MOST_IN_FLIGHT:
            case, trial = trials[submitted]
            pending.append((case, trial, _submit(client, case, trial, plan, run_id, len(trials))))
            submitted += 1
        case, trial, task = pending.pop(0)
        if isinstance(task, InvalidInput):
            yield _refused(case, trial, task, plan)
        else:
            yield _result(client, case, trial, client.wait(task), plan)
        ended += 1
        progress(ended, len(trials))


def _submit(client: Client, case: Case, trial: int, plan: Plan, run_id: str, trials: int) -> Task | InvalidInput:
    """Submit a trial, or return the reason why it is refused: the other cases are run in any case."""
    budget = None if plan.dollars is None else {"dollars": max(1e-6, plan.dollars / trials), "on_breach": "fail"}
    try:
        return client.submit_trial(
            case.task.model_dump(exclude_defaults=True),
            level="replay" if plan.level == "replay" else "shadow",
            agent=plan.agent,
            version=plan.version,
            allow_idempotent=plan.allow_idempotent,
            labels={"evaluation": run_id, "case": case.name, "level": plan.level, "trial": str(trial)},
            budget=budget,
            namespace=plan.namespace,
        )
    except InvalidInput as error:
        return error


def _refused(case: Case, trial: int, error: InvalidInput, plan: Plan) -> dict[str, Any]:
    return {
        "case": case.name,
        "trial": trial,
        "task": None,
        "agent": plan.agent or case.task.agent,
        "version": plan.version,
        "passed": False,
        "faults": [f"It was refused: {error.message}"],
        "state": None,
        "error": {"type": error.code, "message": error.message},
        "output": None,
        "usage": {"steps": 0, "tokens": 0, "dollars": 0.0, "seconds": 0.0},
        "judges": [],
        "steps": [],
    }


def _result(client: Client, case: Case, trial: int, task: Task, plan: Plan) -> dict[str, Any]:
    run = parse_recording(recording_of(client, task), what=f"The journal of task {task.id}")
    seconds = (task.finished_at - task.created_at).total_seconds() if task.finished_at else 0.0
    usage = verdict.usage_of(run, round(seconds, 3))
    faults = _faults(case, run, usage, plan.level)
    judged: list[dict[str, Any]] = []
    if plan.level == "judge" and not faults:
        judged = [_judge(client, case, judge, run, plan) for judge in case.expect.judges]
        faults = [f"{each['agent']} judged: {each['reason']}" for each in judged if not each["passed"]]
    return {
        "case": case.name,
        "trial": trial,
        "task": task.id,
        "agent": run.agent,
        "version": run.version,
        "passed": not faults,
        "faults": faults,
        "state": run.state,
        "error": run.error,
        "output": run.output,
        "usage": {
            "steps": usage.steps,
            "tokens": usage.tokens,
            "dollars": round(usage.dollars + sum(each["dollars"] for each in judged), 6),
            "seconds": usage.seconds,
        },
        "judges": judged,
        "steps": [
            {"kind": step.kind, "name": step.name, "request": step.task.input if step.task else step.request}
            for step in verdict.steps_in(run)
        ],
    }


def _faults(case: Case, run: RecordedTask, usage: verdict.Usage, level: Level) -> list[str]:
    if level == "replay":
        return verdict.of_replay(case, run)
    return verdict.of_shadow(case, run) if level == "shadow" else verdict.of_expectations(case.expect, run, usage)


def _judge(client: Client, case: Case, judge: Judge, run: RecordedTask, plan: Plan) -> dict[str, Any]:
    """Ask an agent about a run. One that gives no verdict has not passed it."""
    asked = {
        "question": judge.question,
        "input": case.task.input if case.task.messages is None else case.task.messages,
        "output": run.output,
        "calls": [
            {"tool": step.name, "arguments": verdict.arguments_of(step), "result": step.output, "error": step.error}
            for step in verdict.calls_of(run)
        ],
    }
    labels = {"evaluation": "judge", "case": case.name}
    namespace: dict[str, Any] = {} if plan.namespace is None else {"namespace": plan.namespace}
    deadline = datetime.now(UTC) + timedelta(minutes=JUDGE_MINUTES)
    task = client.wait(client.submit(judge.agent, asked, labels=labels, deadline=deadline, **namespace))
    dollars = sum(run["cost_microdollars"] for run in client.executions(task)) / 1e6
    output = task.output if isinstance(task.output, dict) else {}
    score, passed = output.get("score"), output.get("passed")
    if isinstance(score, int | float) and not isinstance(score, bool):
        passed = score >= judge.at_least
    reason = str(output.get("reason") or "")
    if not isinstance(passed, bool):
        reason = f"no verdict (task {task.id} is {task.state}): its output must have `passed` or `score`"
    return {
        "agent": judge.agent,
        "task": task.id,
        "passed": passed is True,
        "score": score,
        "reason": reason or "no reason given",
        "dollars": dollars,
    }
