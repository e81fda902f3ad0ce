"""Explaining why a task is in its state: one sentence for people, the facts for programs, and what to do.

`explain` always has an answer. It reads the same data as the dispatcher, the claim and the scheduler, so that the
answer is the reason and not a guess. It reads in several statements, so the cause may be gone before the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.access.roles import MASK
from shared.access.scope import own_name
from shared.contracts.key_order import in_order, ordered
from shared.tasks import approvals, batches, remote_calls, standing_budgets, stops
from shared.tasks.approvals import Awaited
from shared.tasks.budgets import describe
from shared.tasks.queries import get_task

DISPATCHER = "minions minion_pending"
"""`application_name` of the connection with which an orchestrator listens for pending tasks."""

NOW = text("SELECT now()")
# A task that has not begun is checked again when it is claimed: an earlier one may have become due since.
TURN = text(
    """
    SELECT e.id, e.agent_name AS agent, s.state, k.conversation_id AS conversation FROM tasks k
        JOIN task_status p ON p.task_id = k.id AND (p.rank = minion_parked() OR p.claim = 0),
        LATERAL minion_predecessor(k.id, k.namespace, k.conversation_id) AS first (id)
        JOIN tasks e ON e.id = first.id JOIN task_status s ON s.task_id = e.id
        WHERE k.id = :task AND k.parent_id IS NULL
    """
)
OBSTACLE = text(
    "SELECT minion_obstacle(s, true) FROM task_status s WHERE s.task_id = :task AND s.capability IS NOT NULL"
)
HOLD = text(
    """
    SELECT h.scope, h.name, h.until_at FROM rate_holds h JOIN task_status s ON s.namespace = h.namespace
        WHERE s.task_id = :task AND h.until_at > now()
          AND (h.scope = 'capability' AND h.name = s.capability OR h.scope = 'agent' AND h.name = s.agent_name
               OR h.scope = 'key' AND h.name = s.key)
        ORDER BY h.until_at DESC LIMIT 1
    """
)
SERVERS = text(
    """
    SELECT count(*) AS workers, COALESCE(sum(slots), 0) AS slots, COALESCE(sum(busy), 0) AS busy FROM workers
        WHERE status = 'online' AND last_seen > now() - :lease * interval '1 s' AND :capability = ANY (capabilities)
    """
)
LAST_SERVER = text(
    "SELECT name, status, last_seen FROM workers WHERE :capability = ANY (capabilities) ORDER BY last_seen DESC LIMIT 1"
)
# Counting stops at a number where the exact value no longer matters.
AHEAD = text(
    """
    SELECT count(*) FROM (
        SELECT 1 FROM task_status o JOIN task_status s ON s.task_id = :task
            WHERE o.state = 'pending' AND o.capability = s.capability AND o.rank < s.rank LIMIT 10000) AS ahead
    """
)
IN_FLIGHT = text("SELECT count(*) FROM task_status WHERE state = 'queued' AND capability = :capability")
ORCHESTRATORS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()"
)
WORKER = text("SELECT name, status, last_seen FROM workers WHERE id = :id")
# One transaction claims the tasks of a pack. Others of it may have ended.
CLAIMED_TOGETHER = text(
    "SELECT count(*) FROM task_status "
    "WHERE worker_id = :worker AND state = 'running' AND updated_at = :claimed AND task_id <> :task"
)
# Decisions for people come first, however many other steps are open, and a program after its calls.
OPEN_STEPS = text(
    """
    SELECT w.number, w.kind, w.name, w.effect, w.input, w.input_order, w.due_at, w.error, w.child_id,
           s.state AS child_state, minion_proposal(w) AS proposal, w.approvals, w.program, w.line,
           minion_asks(w) AS asks
        FROM steps w LEFT JOIN task_status s ON s.task_id = w.child_id
        WHERE w.task_id = :task AND w.status = 'started'
        ORDER BY w.effect <> 'unsafe', NOT COALESCE(w.kind = 'wait' AND w.input ? 'approval', minion_asks(w)),
                 w.program = w.number IS TRUE, w.number LIMIT 20
    """
)
LAST_ERROR = text(
    "SELECT error->>'message' FROM executions WHERE task_id = :task AND error IS NOT NULL ORDER BY claim DESC LIMIT 1"
)
LAST_STEP_ERROR = text(
    "SELECT error FROM steps WHERE task_id = :task AND status = 'failed' ORDER BY number DESC LIMIT 1"
)
BREACH = text(
    """
    SELECT minion_breach(k.budget_ids, e.error->'step') FROM task_status s
        JOIN tasks k ON k.id = s.task_id JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
        WHERE s.task_id = :task
    """
)
STANDING_BREACH = text(
    """
    SELECT minion_standing_breach(s.task_id, NULL, e.error->'step', clock_timestamp()) FROM task_status s
        JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim WHERE s.task_id = :task
    """
)
FROM_STEP = text("SELECT from_step FROM tasks WHERE id = :task AND from_step > 1")
MAX_ATTEMPTS = text("SELECT max_attempts FROM agent_versions WHERE id = :version")


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explanation of a task's state.

    Attributes:
        reason: for programs; `docs/why.md` lists the values.
        sentence: for people.
        todo: what would move the task on, if anything would.
        facts: the data behind the sentence.
    """

    task_id: UUID
    state: str
    reason: str
    sentence: str
    todo: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as the API shows it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _anything(connection: Connection, task: UUID) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Reader:
    """Rights of the reader of an explanation.

    Attributes:
        payloads: the reader may see what errors and proposals quote.
        reaches: returns whether the reader may see another task.
    """

    payloads: bool = True
    reaches: Callable[[Connection, UUID], bool] = _anything


EVERYTHING = Reader()


class _Case:
    """One task, and the queries about it."""

    def __init__(self, connection: Connection, task: dict[str, Any], lease: float, reader: Reader) -> None:
        self.reader = reader
        self.connection = connection
        self.task = task
        self.lease = lease
        self.now: datetime = connection.execute(NOW).scalar_one()

    def answer(self, reason: str, sentence: str, todo: str | None = None, /, **facts: Any) -> Explanation:
        return Explanation(self.task["id"], self.task["state"], reason, sentence, todo, facts)

    def one(self, statement: Any, **values: Any) -> Any:
        return self.connection.execute(statement, values).mappings().first()

    def scalar(self, statement: Any, **values: Any) -> Any:
        return self.connection.scalar(statement, values)

    def quoted(self, value: Any) -> Any:
        """Return something that may quote payloads, or the mask."""
        return value if value is None or self.reader.payloads else MASK

    def ago(self, moment: datetime) -> str:
        return duration((self.now - moment).total_seconds())

    def until(self, moment: datetime) -> str:
        return (
            f"until {moment.isoformat(timespec='seconds')} ({duration((moment - self.now).total_seconds())} from now)"
        )


def explain(
    connection: Connection,
    task_id: UUID,
    *,
    lease: float,
    reader: Reader = EVERYTHING,
    known: dict[str, Any] | None = None,
) -> Explanation:
    """Explain why the task is in its current state.

    Args:
        lease: seconds after which a worker without a heartbeat is lost.
        reader: what the explanation may say.
        known: the task, if it has just been read: it may be large.

    Raises:
        NotFound: there is no such task.
    """
    task = known or get_task(connection, task_id)
    case = _Case(connection, task, lease, reader)
    return _with_origin(case, _ANSWERS[task["state"]](case))


def _with_origin(case: _Case, answer: Explanation) -> Explanation:
    """Add to the answer for a replay from a step that the earlier steps are another task's."""
    first = case.scalar(FROM_STEP, task=answer.task_id)
    if first is None:
        return answer
    origin = {"replay_of": case.task["replay_of"], "from_step": first}
    sentence = f"{answer.sentence} (It continues from step {first}; the steps before it are copied from another task.)"
    return replace(answer, sentence=sentence, facts={**answer.facts, **origin})


def duration(seconds: float) -> str:
    """Format seconds for people."""
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _scheduled(case: _Case) -> Explanation:
    due = case.task["due_at"]
    return case.answer("scheduled", f"It was submitted for later: it waits {case.until(due)}.", due_at=due)


def _pending(case: _Case) -> Explanation:
    capability = case.task["capability"]
    if (blocked := _no_orchestrator(case)) is not None:
        return blocked
    if capability is None or case.task["agent_version_id"] is None:
        return case.answer("not_routed", "An orchestrator has not chosen its agent or checked its input yet.")
    for look in (_not_its_turn, _blocked_by_rule, _held_by_rate, _unserved):
        if (found := look(case)) is not None:
            return found
    ahead, queued = case.scalar(AHEAD, task=case.task["id"]), case.scalar(IN_FLIGHT, capability=capability)
    servers = case.one(SERVERS, capability=capability, lease=case.lease)
    facts = {"capability": capability, "ahead": ahead, "queued": queued, **servers}
    return case.answer(
        "in_line",
        f"It is in line for {capability!r} behind {ahead}{' or more' if ahead == 10_000 else ''} tasks; "
        f"{servers['busy']} of {servers['slots']} slots are busy, and {queued} tasks are on their way to them.",
        "More workers, or a higher priority, would bring it forward." if ahead else None,
        **facts,
    )


def _no_orchestrator(case: _Case) -> Explanation | None:
    if case.scalar(ORCHESTRATORS, name=DISPATCHER):
        return None
    return case.answer(
        "no_orchestrator",
        "No orchestrator is connected, so nothing is dispatched.",
        "Start one: `minion orchestrator`.",
    )


def _not_its_turn(case: _Case) -> Explanation | None:
    first = case.one(TURN, task=case.task["id"])
    if first is None:
        return None
    conversation = own_name(first["conversation"])
    if not case.reader.reaches(case.connection, first["id"]):
        return case.answer("turn", f"Another task of the conversation {conversation!r} comes before it.")
    return case.answer(
        "turn",
        f"The tasks of the conversation {conversation!r} run one after the other, and task {first['id']} of "
        f"{first['agent']} ({first['state']}) comes before it.",
        f"`minion why {first['id']}` shows what that task waits for.",
        **{**first, "conversation": conversation},
    )


def _blocked_by_rule(case: _Case) -> Explanation | None:
    obstacle = case.scalar(OBSTACLE, task=case.task["id"])
    if obstacle is None:
        return None
    if obstacle["kind"] == "turn":
        return _not_its_turn(case)
    what = f"The {obstacle['scope']} {obstacle['name']!r}"
    if obstacle["kind"] == "paused":
        because = f" ({obstacle['reason']})" if obstacle["reason"] else ""
        return case.answer(
            "paused",
            f"{what} has been paused since {obstacle['since']}{because}.",
            f"`minion resume {obstacle['scope']} {obstacle['name']}` lets its tasks start again.",
            **obstacle,
        )
    return case.answer(
        "limited",
        f"{what} runs {obstacle['running']} tasks, and its limit is {obstacle['limit']} at once.",
        f"It starts when one of them ends. `minion limits set {obstacle['scope']} {obstacle['name']}` changes that.",
        **obstacle,
    )


def _held_by_rate(case: _Case) -> Explanation | None:
    hold = case.one(HOLD, task=case.task["id"])
    if hold is None:
        return None
    sentence = (
        f"The {hold['scope']} {hold['name']!r} has reached its rate: none of its tasks start "
        f"{case.until(hold['until_at'])}."
    )
    return case.answer("rate_limited", sentence, None, **hold)


def _unserved(case: _Case) -> Explanation | None:
    capability = case.task["capability"]
    if case.one(SERVERS, capability=capability, lease=case.lease)["workers"]:
        return None
    last = case.one(LAST_SERVER, capability=capability)
    gone = ""
    if last:
        # A worker whose lease has expired counts as online until the orchestrator notices.
        status = "silent" if last["status"] == "online" else last["status"]
        gone = f" The last one, {last['name']}, is {status} and was last seen {case.ago(last['last_seen'])} ago."
    return case.answer(
        "unserved",
        f"No worker that serves {capability!r} is online.{gone}",
        f"Start one: `minion worker {capability}`.",
        capability=capability,
        last_worker=dict(last) if last else None,
    )


def _queued(case: _Case) -> Explanation:
    if (unserved := _unserved(case)) is not None:
        return unserved
    capability, since = case.task["capability"], case.task["queued_at"]
    servers = case.one(SERVERS, capability=capability, lease=case.lease)
    facts = {"capability": capability, "queued_at": since, **servers}
    if servers["busy"] < servers["slots"]:
        return case.answer(
            "on_its_way",
            f"Its message was sent {case.ago(since)} ago and a slot for {capability!r} is free. "
            "If the message was lost, it is sent again.",
            "If this lasts, check that the broker answers: `minion doctor`.",
            **facts,
        )
    return case.answer(
        "all_slots_busy",
        f"It has waited in the queue {capability!r} for {case.ago(since)}: all {servers['slots']} slots are busy.",
        "It starts when one of them is free; more workers would help.",
        **facts,
    )


def _running(case: _Case) -> Explanation:
    task = case.task
    worker = case.one(WORKER, id=task["worker_id"])
    silent = (case.now - worker["last_seen"]).total_seconds()
    step = case.one(OPEN_STEPS, task=task["id"])
    doing = f", in step {step['number']} ({step['kind']} {step['name']}{_caller(step)})" if step else ""
    facts = {"worker": worker["name"], "last_seen": worker["last_seen"], "claim": task["claim"]}
    if task["cancel_requested"]:
        return case.answer("stopping", f"It was cancelled; {worker['name']} has been asked to stop.", None, **facts)
    if silent > case.lease / 2:
        return case.answer(
            "worker_silent",
            f"It runs on {worker['name']}, whose last heartbeat was {duration(silent)} ago; after a lease of "
            f"{case.lease:g} s the worker counts as lost, and the task runs again elsewhere.",
            None,
            **facts,
        )
    claimed = {"worker": task["worker_id"], "claimed": task["updated_at"], "task": task["id"]}
    if step is None and (others := case.scalar(CLAIMED_TOGETHER, **claimed)):
        sentence = (
            f"{worker['name']} claimed it {case.ago(task['updated_at'])} ago in a pack, of which {others + 1} tasks "
            "have not ended. They run one after the other; if one takes long, the others run elsewhere."
        )
        return case.answer("running", sentence, None, step=None, pack=others + 1, **facts)
    sentence = f"It has been running on {worker['name']} for {case.ago(task['updated_at'])}{doing}."
    return case.answer("running", sentence, None, step=step["number"] if step else None, **facts)


def _waiting(case: _Case) -> Explanation:
    task = case.task
    rows = case.connection.execute(OPEN_STEPS, {"task": task["id"]}).mappings()
    waits = [in_order(row, "input") for row in rows if row["program"] != row["number"]]
    if task["wait_reason"] in ("approval", "answer"):
        return _waiting_for_a_person(case, waits)
    if task["wait_reason"] in ("subtask", "signal", "timer"):
        return _waiting_for_steps(case, waits)
    if task["wait_reason"] == "remote_task":
        return _waiting_for_servers(case)
    if task["wait_reason"] == "budget":
        return _waiting_for_budget(case)
    if task["wait_reason"] == "standing_budget":
        return _waiting_for_standing_budget(case)
    if task["wait_reason"] == "stopped":
        return _stopped(case)
    if task["wait_reason"] == "batch":
        return _waiting_for_batch(case)
    reason = "It asked to run again later"
    if task["wait_reason"] == "backoff":
        attempts_allowed = case.scalar(MAX_ATTEMPTS, version=task["agent_version_id"])
        error = case.quoted(case.scalar(LAST_ERROR, task=task["id"])) or "it failed"
        reason = f"Attempt {task['attempts']} of {attempts_allowed} failed ({error.rstrip('.')})"
    elif task["wait_reason"] == "model_unavailable":
        error = case.scalar(LAST_STEP_ERROR, task=task["id"]) or {}
        message = case.quoted(error.get("message")) or "The model is unavailable"
        reason = f"{message.rstrip('.')} (tried {error.get('tries', 1)} times)"
        if error.get("next_model"):
            return _waiting_with_a_successor(case, reason, error["next_model"], error["next_model_at"])
    elif task["wait_reason"] == "model_limit":
        error = case.scalar(LAST_STEP_ERROR, task=task["id"]) or {}
        message = case.quoted(error.get("message")) or "Its model is at its limit"
        return case.answer(
            "model_limit",
            f"{message}: it waits {case.until(task['due_at'])}.",
            "`minion limits` lists the limits; `minion limits set model NAME` changes one.",
            model=error.get("model"),
            due_at=task["due_at"],
        )
    elif task["wait_reason"] == "handed_back":
        reason = "Its worker handed it back"
    facts = {"due_at": task["due_at"], "attempts": task["attempts"]}
    return case.answer(task["wait_reason"], f"{reason}: it waits {case.until(task['due_at'])}.", None, **facts)


def _waiting_with_a_successor(case: _Case, reason: str, model: str, moment: str) -> Explanation:
    """Explain a wait for a model that another one replaces if it lasts."""
    due, at = case.task["due_at"], datetime.fromisoformat(moment)
    sentence = f"{reason}: it waits {case.until(due)}. If it stays so, {model} is asked {_moment(case, at)}."
    facts = {"due_at": due, "attempts": case.task["attempts"], "next_model": model, "next_model_at": at}
    return case.answer("model_unavailable", sentence, None, **facts)


def _waiting_for_budget(case: _Case) -> Explanation:
    breach = case.scalar(BREACH, task=case.task["id"])
    if breach is None:
        return case.answer("budget", "Its budget has room for its next step again: it continues in a moment.")
    if breach["then"] == "wait":
        sentence = f"{describe(breach)} It continues when those steps have ended and left room."
        return case.answer("budget", sentence, None, **breach)
    todo = f"`minion budget {breach['budget']} --add-{breach['what']} N` raises it; with --stop, the task fails."
    return case.answer("budget", describe(breach), todo, **breach)


def _waiting_for_standing_budget(case: _Case) -> Explanation:
    breach = case.scalar(STANDING_BREACH, task=case.task["id"])
    if breach is None:
        sentence = "The standing budget that it waited for has room again: it continues in a moment."
        return case.answer("standing_budget", sentence)
    sentence = f"{standing_budgets.describe(breach)} {standing_budgets.outlook(breach)}"
    return case.answer("standing_budget", sentence, standing_budgets.how_to_raise(breach), **breach)


def _waiting_for_batch(case: _Case) -> Explanation:
    call = batches.place_of(case.connection, case.task["id"])
    if call is None:
        return case.answer("batch", "The answer to its model call has arrived: it continues in a moment.")
    facts = {name: call[name] for name in ("step", "model", "attempt", "batch_id", "calls")}
    what = f"Its model call (step {call['step']})"
    if call["batch"] is None:
        return _waiting_for_its_batch(case, call, what, facts)
    trouble = f" {case.quoted(call['trouble']).rstrip('.')}." if call["trouble"] else ""
    next_look = f"the API is asked for it next {_moment(case, call['asked_at'])}"
    if call["batch_id"] is None:
        since = case.ago(call["tried_at"])
        sentence = (
            f"{what} is in a batch of {call['calls']} calls whose creation began {since} ago; {next_look}.{trouble}"
        )
        return case.answer("batch", sentence, None, **facts, since=call["tried_at"], due_at=call["asked_at"])
    sentence = (
        f"{what} has been in batch {call['batch_id']}, of {call['calls']} calls of {call['model']}, for "
        f"{case.ago(call['submitted_at'])}; {next_look}.{trouble}"
    )
    return case.answer("batch", sentence, None, **facts, since=call["submitted_at"], due_at=call["asked_at"])


def _waiting_for_its_batch(case: _Case, call: dict[str, Any], what: str, facts: dict[str, Any]) -> Explanation:
    """Explain a call that is in no batch: others are gathered, it was refused, or a stop holds it back."""
    since = f"{what} has waited {case.ago(call['created_at'])} for the next batch of {call['model']}"
    facts = {**facts, "since": call["created_at"], "due_at": call["due_at"]}
    if (stop := stops.stop_of(case.connection, case.task["id"])) is not None:
        sentence = f"{since}, and is not sent because {stops.describe(stop)}"
        return case.answer("batch", sentence, f"`{stops.how_to_lift(stop)}` lifts the stop.", **facts)
    if not call["error"]:
        return case.answer("batch", f"{since}, while calls are gathered for it.", None, **facts)
    error = case.quoted(call["error"]).rstrip(".")
    todo = "Set ANTHROPIC_API_KEY for the orchestrator." if "ANTHROPIC_API_KEY" in call["error"] else None
    return case.answer("batch", f"{since}: {error}. It is sent again {_moment(case, call['due_at'])}.", todo, **facts)


def _moment(case: _Case, due: datetime) -> str:
    return "in a moment" if due <= case.now else f"in {duration((due - case.now).total_seconds())}"


def _stopped(case: _Case) -> Explanation:
    stop = stops.stop_of(case.connection, case.task["id"])
    if stop is None:
        return case.answer("stopped", "The stop that held it has been lifted: it continues in a moment.")
    sentence = f"It waits before its next model call or unsafe effect, because {stops.describe(stop)}"
    return case.answer("stopped", sentence, f"`{stops.how_to_lift(stop)}` lifts the stop.", **stop)


def _waiting_for_a_person(case: _Case, waits: list[dict[str, Any]]) -> Explanation:
    task, reason = case.task, case.task["wait_reason"]
    step = next(filter(_is_interrupted if reason == "answer" else _is_proposed, waits), None)
    if step is None:
        return case.answer(reason, "The decision that it waited for has just been made: it continues in a moment.")
    facts = {
        "waits": [_plain(wait) for wait in waits],
        "step": step["number"],
        "name": step["name"],
        "proposal": step["proposal"],
    }
    if reason == "answer":
        how = f" ({case.quoted(step['error']['message']).rstrip('.')})" if step["error"] else ""
        return case.answer(
            "answer",
            f"Step {step['number']} ({step['name']}{_caller(step)}) was interrupted{how} and is unsafe to repeat: a "
            "person must say whether it happened.",
            f"`minion answer {task['id']}` with --result JSON, --again or --fail.",
            **facts,
            request=case.quoted(step["input"]),
        )
    if step["asks"]:
        return _waiting_for_answers(case, step, facts)
    return _waiting_for_approval(case, step, facts)


def _waiting_for_approval(case: _Case, step: dict[str, Any], facts: dict[str, Any]) -> Explanation:
    task = case.task["id"]
    edited = (step["approvals"] or {}).get("edited")
    approval = case.quoted(_edited_arguments(step) if edited else step["input"]["approval"])
    proposed = json.dumps(approval, ensure_ascii=False)
    limit = f", {case.until(step['due_at'])}" if step["due_at"] else ""
    awaited = approvals.awaited(case.connection, task, step["number"])
    who, more, facts = _deciders(case, awaited, facts)
    return case.answer(
        "approval",
        f"{who} must approve step {step['number']}, {step['name']} with {proposed[:500]}{limit} (proposal "
        f"{step['proposal']}{', edited by an approver' if edited else ''}{_caller(step)}).{more}",
        f"`minion approve {task}` or `minion reject {task} --reason TEXT`.",
        **facts,
        proposed=approval,
    )


def _waiting_for_answers(case: _Case, step: dict[str, Any], facts: dict[str, Any]) -> Explanation:
    """Explain a call whose server asks a person something, before or while it works on it."""
    task = case.task["id"]
    asked = remote_calls.form_of(case.connection, task, step["number"])
    if asked is None:
        return case.answer("approval", "The answer that it waited for has just been given: it continues in a moment.")
    message = case.quoted(asked.message)
    who, more, facts = _deciders(case, approvals.awaited(case.connection, task, step["number"]), facts)
    return case.answer(
        "approval",
        f"The MCP server {asked.server!r} asks for input for step {step['number']} ({step['name']}{_caller(step)}): "
        f"{message!r}. {who} must answer (proposal {step['proposal']}).{more}",
        f"`minion approve {task} --edit JSON` answers, and `minion reject {task}` declines.",
        **facts,
        server=asked.server,
        question=message,
        schema=case.quoted(asked.schema),
        proposed=case.quoted(asked.proposed),
    )


def _deciders(case: _Case, awaited: Awaited | None, facts: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return who must decide, a sentence about them, and the facts with theirs."""
    if awaited is None:
        return "A person", "", facts
    who = "A person" if awaited.people == 1 else f"{awaited.people} people with different keys"
    more = {
        "people": awaited.people,
        "approvers": awaited.approvers,
        "approved_by": _given(case, awaited),
        "missing_keys": awaited.missing,
    }
    return who, f" {_approvers(awaited)}", {**facts, **more}


def _edited_arguments(step: dict[str, Any]) -> Any:
    return ordered(step["approvals"]["arguments"], step["approvals"]["order"])


def _approvers(awaited: Awaited) -> str:
    """Return who may approve, and who has."""
    by = ", ".join(each["by"] for each in awaited.given)
    given = f"{len(awaited.given)} of {awaited.people}, approved by {by}. " if by else ""
    return f"{given}May approve: {awaited.approvers}.{_missing(awaited)}"


def _missing(awaited: Awaited) -> str:
    if not awaited.missing:
        return ""
    stuck = " So too few keys may approve it: create the missing ones, or cancel the task." if awaited.is_stuck else ""
    return f" No active key named {' or '.join(awaited.missing)} may decide about it.{stuck}"


def _given(case: _Case, awaited: Awaited) -> list[dict[str, Any]]:
    return [{"by": each["by"], "at": each["at"], "reason": case.quoted(each.get("reason"))} for each in awaited.given]


def _caller(step: dict[str, Any]) -> str:
    """Return the place in a program that made a call, to follow other facts; empty if no program did."""
    if step["program"] is None or step["program"] == step["number"]:
        return ""
    line = f"line {step['line']} of " if step["line"] is not None else ""
    return f", called in {line}the program of step {step['program']}"


def _is_interrupted(step: dict[str, Any]) -> bool:
    return bool(step["effect"] == "unsafe")


def _is_proposed(step: dict[str, Any]) -> bool:
    return bool(step["asks"]) or (step["kind"] == "wait" and "approval" in step["input"])


def _waiting_for_servers(case: _Case) -> Explanation:
    """Explain a wait for tasks of MCP servers."""
    places = remote_calls.places_of(case.connection, case.task["id"])
    if not places:
        return case.answer("remote_task", "The server that it waited for has finished: it continues in a moment.")
    first, *others = places
    said = f" ({case.quoted(first['message'])!r})" if first["message"] else ""
    since = case.ago(first["changed_at"])
    doing = (
        f"will receive the answer that a person gave {since} ago"
        if first["is_answered"]
        else f"has been working for {since}{said}"
    )
    trouble = ""
    if first["error"]:
        away = f" for {case.ago(first['failing_since'])}" if first["failing_since"] else ""
        trouble = f" It could not be asked{away}: {case.quoted(first['error']).rstrip('.')}."
    more = f" Steps that wait like this: {len(others)} more." if others else ""
    sentence = (
        f"Step {first['number']} ({first['name']}{_caller(first)}) waits for task {first['remote_id']} of the MCP "
        f"server {first['server']!r}, which {doing}. It is polled next {_moment(case, first['due_at'])}.{trouble}{more}"
    )
    facts = {
        "step": first["number"],
        "server": first["server"],
        "remote_task": first["remote_id"],
        "remote_state": first["state"],
        "message": case.quoted(first["message"]),
        "since": first["changed_at"],
        "due_at": first["due_at"],
        "expires_at": first["expires_at"],
        "open_waits": case.task["open_waits"],
    }
    return case.answer("remote_task", sentence, None, **facts)


def _waiting_for_steps(case: _Case, waits: list[dict[str, Any]]) -> Explanation:
    children = [wait for wait in waits if wait["kind"] == "subtask"]
    signals = [wait for wait in waits if wait["kind"] == "wait" and (wait["input"] or {}).get("signal")]
    timers = [wait for wait in waits if wait["kind"] == "wait" and wait["due_at"] and wait not in signals]
    parts = [
        f"sub-task {each['child_id']} of {each['name']} ({each['child_state']}{_caller(each)})" for each in children[:3]
    ]
    if len(children) > 3:
        parts.append(f"{case.task['open_waits'] - 3} more")
    parts += [
        f"the signal {each['name']!r}" + (f" {case.until(each['due_at'])}" if each["due_at"] else "") + _caller(each)
        for each in signals
    ]
    parts += [f"a timer {case.until(each['due_at'])}{_caller(each)}" for each in timers]
    todo = None
    if signals:
        todo = f"`minion signal {case.task['id']} {signals[0]['name']}` sends it."
    elif children:
        todo = f"`minion why {children[0]['child_id']}` shows what that task waits for."
    facts = {"open_waits": case.task["open_waits"], "waits": [_plain(wait) for wait in waits]}
    return case.answer(case.task["wait_reason"], f"It waits for {', '.join(parts) or 'nothing more'}.", todo, **facts)


def _plain(wait: dict[str, Any]) -> dict[str, Any]:
    signal = (wait["input"] or {}).get("signal") if wait["kind"] == "wait" else None
    shown = {name: wait[name] for name in ("number", "kind", "name", "due_at", "child_id", "child_state")}
    if wait["program"] is not None:
        shown |= {"program": wait["program"], "line": wait["line"]}
    return {**shown, "signal": signal}


def _ended(case: _Case) -> Explanation:
    task, error = case.task, case.task["error"] or {}
    when = f"{case.ago(task['finished_at'])} ago"
    if task["state"] == "succeeded":
        return case.answer("succeeded", f"It succeeded {when}, in claim {task['claim']}.", None)
    message = case.quoted(error.get("message"))
    shown = error if case.reader.payloads else {"type": error.get("type"), "message": message}
    facts = {"error": shown, "finished_at": task["finished_at"]}
    sentence = f"It {'failed' if task['state'] == 'failed' else 'was ' + task['state']} {when}: {message}"
    if task["state"] == "expired":
        sentence = f"It expired {when}: {message}"
    if "attempts" in error:
        sentence += f" (attempts used: {error['attempts']} of {error.get('max_attempts')})"
    return case.answer(task["state"], sentence, f"`minion replay {task['id']}` runs it again.", **facts)


_ANSWERS: dict[str, Callable[[_Case], Explanation]] = {
    "scheduled": _scheduled,
    "pending": _pending,
    "queued": _queued,
    "running": _running,
    "waiting": _waiting,
    "succeeded": _ended,
    "failed": _ended,
    "cancelled": _ended,
    "expired": _ended,
}
