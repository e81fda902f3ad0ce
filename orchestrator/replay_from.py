"""Replay of a task from a step: the new task reads back the journal before it, and continues from there.

The versions are those of the original, because its journal fits them. Steps before the chosen one are not repeated and
not paid for again; the output of the chosen step may be replaced.

The active version may run in place of the original's (`latest`). The worker compares each of its requests with the
recorded one, as for every task that runs again, and fails the task at the first that differs: no effect happens before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, text

from orchestrator.replay import get_ended, new_task
from shared.access.actors import Key
from shared.contracts.strict_json import JsonValue, check
from shared.database.connections import autocommit
from shared.errors import Conflict, InvalidInput
from shared.settings import get_settings
from shared.tasks import lifecycle
from shared.tasks.approvals import approver_of, check_arguments

STEPS = text(
    """
    SELECT number, kind, name, status, (error->>'retryable')::boolean IS TRUE AS again, input ? 'approval' AS approval,
           CASE WHEN kind = 'model_call' AND jsonb_typeof(output) = 'object'
                THEN ARRAY(SELECT jsonb_object_keys(output)) END AS members,
           CASE WHEN kind = 'model_call' THEN output->'form' END AS form, program = number IS TRUE AS program
        FROM steps WHERE task_id = :task ORDER BY number
    """
)
# The runtime takes the model of a task from its first call, so a worker would not notice another one.
MODELS = text(
    """
    SELECT ran.definition->>'model' AS recorded, now_active.definition->>'model' AS active, now_active.number
        FROM tasks k JOIN agent_versions ran ON ran.id = k.agent_version_id
        JOIN agents a ON a.id = ran.agent_id JOIN agent_versions now_active ON now_active.id = a.active_version_id
        WHERE k.id = :task
    """
)
REPLY = ("content", "stop_reason", "model")


@dataclass(frozen=True, slots=True)
class Edit:
    """Output to use in place of the one that a step returned."""

    output: JsonValue


def replay_from(
    database: Engine,
    task_id: UUID,
    step: int,
    *,
    edit: Edit | None = None,
    latest: bool = False,
    new_keys: bool = False,
    submitted_by: str,
    key: Key | None = None,
    record: Callable[[Connection, UUID], None] | None = None,
) -> UUID:
    """Submit an ended task again, to continue from a step; return the new task.

    Args:
        step: the first step to run again; with an edit, the one whose output is replaced.
        latest: run the agent's active version; it must ask for the steps before.
        new_keys: use new idempotency keys for its calls, and those of all tasks below it.
        key: the API key that replays it.
        record: writes the act to the audit log, in the transaction that creates the new task.

    Raises:
        Forbidden: the edited step is an approval, and its policy does not let this key alone approve.
        NotFound: there is no such task.
        Conflict: it has not ended yet, or its journal cannot be read back up to the step.
        InvalidInput: there is no such step, or the step could not have returned the edited output.
        TooLarge: the edit exceeds the size limit of outputs.
    """
    # PostgreSQL ends a transaction that is idle for the time of a slow check.
    with autocommit(database).connect() as connection:
        task = get_ended(connection, task_id)
        steps = connection.execute(STEPS, {"task": task_id}).all()
        _check_step(task_id, step, steps, edit)
        _check_prefix(task_id, step, steps)
        if latest:
            _check_latest(connection, task_id, step if edit is None else step + 1, steps)
        edited = None if edit is None else {"output": _checked_output(connection, task_id, steps, step, edit.output)}
        approver = None
        if edit is not None and key is not None:
            arguments = edit.output.get("arguments") if isinstance(edit.output, dict) else None
            approver = approver_of(connection, task_id, step, arguments, key=key)
    identity = None if key is None else key.identity
    new = new_task(task, not latest, submitted_by, new_keys=new_keys, submitter_key=identity)
    with database.begin() as connection:
        replayed = lifecycle.replay_from(connection, new, task_id, step, edited, who=submitted_by, approver=approver)
        if record is not None:
            record(connection, replayed)
        return replayed


def _checked_output(
    connection: Connection, task_id: UUID, steps: Sequence[Row[Any]], step: int, output: Any
) -> JsonValue:
    check(output, what="The edited output", limit=get_settings().max_output_bytes)
    edited_step = next(each for each in steps if each.number == step)
    _check_edit(edited_step, output)
    if edited_step.approval:
        check_arguments(connection, task_id, step, output["arguments"])
    return _as_recorded(edited_step, output)


def _check_step(task_id: UUID, step: int, steps: Sequence[Row[Any]], edit: Edit | None) -> None:
    last = steps[-1].number if steps else 0
    if edit is not None and not any(each.number == step for each in steps):
        raise InvalidInput(f"Task {task_id} has no step {step} whose output could be edited: {_there_are(last)}.")
    if not 1 <= step <= last + 1:
        raise InvalidInput(
            f"Task {task_id} cannot be replayed from step {step}: {_there_are(last)}. Step 1 starts at the beginning, "
            f"{last + 1} continues after the last one."
        )


def _there_are(last: int) -> str:
    return f"its steps are 1 to {last}" if last else "it has no steps"


def _check_prefix(task_id: UUID, step: int, steps: Sequence[Row[Any]]) -> None:
    """Check that every step before it finished, or failed in a way that the task recovered from."""
    kept = {each.number: each for each in steps}
    for number in range(1, step):
        found = kept.get(number)
        why = _why_not(found)
        if why is not None:
            raise Conflict(
                f"Task {task_id} cannot be replayed from step {step}: step "
                f"{number}{f' ({found.name})' if found else ''} {why}. `--from-step {number}` repeats it"
                + (f", `--from-step {number} --edit-output FILE` sets what it returned." if found else "."),
                step=number,
            )


def _check_latest(connection: Connection, task_id: UUID, first: int, steps: Sequence[Row[Any]]) -> None:
    """Check what the worker would not notice, if the active version is to ask for the steps before `first`.

    Raises:
        Conflict: it has another model; or the last of these steps is an approval, and the call after it has not begun.
    """
    kept = [each for each in steps if each.number < first]
    if kept and kept[-1].approval:
        raise Conflict(
            f"Task {task_id} cannot be replayed with the active version from step {first}: step {kept[-1].number} "
            f"({kept[-1].name}) was approved for a call of another version. `--from-step {kept[-1].number}` asks for "
            "the approval again.",
            step=kept[-1].number,
        )
    call = next((each for each in kept if each.kind == "model_call"), None)
    models = connection.execute(MODELS, {"task": task_id}).one_or_none()
    if call is not None and models is not None and models.recorded != models.active:
        raise Conflict(
            f"Task {task_id} cannot be replayed with the active version from step {first}: at step {call.number} "
            f"({call.name}), version {models.number} asks the model {models.active!r} and not {models.recorded!r}. "
            f"`--from-step {call.number}` keeps the steps before.",
            step=call.number,
        )


def _why_not(step: Row[Any] | None) -> str | None:
    if step is None:
        return "was interrupted before it was recorded"
    # A program that did not end runs again, and reads its calls back.
    if step.status == "started" and not step.program:
        return "was interrupted, and its outcome is not known"
    if step.status == "failed" and step.again:
        return "failed and was due to be retried"
    return None


def _check_edit(step: Row[Any], output: JsonValue) -> None:
    """Check that the code that reads the step back finds the members it needs."""
    if step.kind == "model_call":
        # A step that summarises a conversation stores other members.
        wanted = tuple(step.members) if "summary" in (step.members or ()) else REPLY
    elif step.approval:
        wanted = ("arguments",)
    elif step.program:
        wanted = ("result",)
    else:
        return
    missing = [name for name in wanted if not isinstance(output, dict) or name not in output]
    if missing:
        kind = "a model call" if step.kind == "model_call" else "a program" if step.program else "an approval"
        raise InvalidInput(
            f"Step {step.number} ({step.name}) is {kind}: its output must be an object with {', '.join(wanted)}; "
            f"the edited one lacks {', '.join(missing)}. "
            "`minion show TASK --json` has the recorded one."
        )
    if step.kind == "model_call" and "content" in wanted and not _are_blocks(output["content"]):
        raise InvalidInput(
            f"Step {step.number} ({step.name}) is a model call: `content` must be a list of blocks, "
            'such as [{"type": "text", "text": "…"}].'
        )


def _as_recorded(step: Row[Any], output: JsonValue) -> JsonValue:
    """The edited output with the runtime's own members, such as the form of the turn, and without the unedited text.

    The members of an approval that name its approvers belong to the original.
    """
    if step.approval:
        return {"arguments": output["arguments"]}
    if step.program:
        # The calls that it made are not in the new task.
        return {name: output[name] for name in ("result", "printed") if name in output}
    if step.kind != "model_call" or not isinstance(output, dict):
        return output
    form = {} if step.form is None else {"form": step.form}
    return {**form, **{name: value for name, value in output.items() if name != "exact"}}


def _are_blocks(content: JsonValue) -> bool:
    return isinstance(content, list) and all(
        isinstance(block, dict) and isinstance(block.get("type"), str) for block in content
    )
