"""Trials: tasks that run an agent's version against a recording, with no effect on the world.

They are ordinary tasks: the same queues, journal, budgets and limits. What makes them trials is the journal format
3, which never changes and which all tasks below them get too. A worker runs a task of this format only with the
recording of its root (`workers.trial_journal`), so neither a worker of an earlier release nor a lost row can run it for
real. A trial has no conversation and no tenant key, is not replayed, and sends no webhooks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import Connection, text

from shared.access.scope import Scope
from shared.contracts.content import kept_files
from shared.contracts.recording import Level, RecordedTask
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput, NotFound
from shared.tasks import files, lifecycle
from shared.tasks.lifecycle import Accepted
from shared.tasks.records import NewTask

FORMAT = 3
"""The journal format of trials."""

STORE = text(
    "INSERT INTO trials (task_id, level, allow_idempotent, recording) "
    "VALUES (:task, :level, :allow_idempotent, :recording)"
)
LOAD = text(
    "SELECT level, allow_idempotent, recording FROM trials WHERE task_id = (SELECT root_id FROM tasks WHERE id = :task)"
)
# From the root down to the task.
LINE = text(
    """
    WITH RECURSIVE line AS (
        SELECT id, parent_id, parent_step, agent_name, input, depth FROM tasks WHERE id = :task
        UNION ALL SELECT t.id, t.parent_id, t.parent_step, t.agent_name, t.input, t.depth
            FROM tasks t JOIN line l ON t.id = l.parent_id
    )
    SELECT parent_step, agent_name AS agent, input FROM line WHERE parent_id IS NOT NULL ORDER BY depth
    """
)
VERSION = text(
    "SELECT v.id FROM agent_versions v JOIN agents a ON a.id = v.agent_id "
    "WHERE a.namespace = :namespace AND a.name = :agent AND v.number = :number"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a task of a trial runs against.

    Attributes:
        allow_idempotent: at the level `shadow`, idempotent calls that were not recorded are made.
        recording: of this task; None if it is a sub-task that was not recorded.
    """

    level: Level
    allow_idempotent: bool
    recording: RecordedTask | None

    def below(self, step: int, agent: str, value: JsonValue) -> RecordedTask | None:
        """Return the recording of a sub-task: at the level `replay` by its position, whose request was compared."""
        if self.recording is None:
            return None
        if self.level == "shadow":
            return self.recording.subtask(agent, value)
        found = self.recording.step(step)
        return found.task if found is not None else None


def submit(connection: Connection, task: NewTask, trial: Trial, *, scope: Scope | None = None) -> Accepted:
    """Accept a task that runs against a recording.

    Args:
        task: without conversation and tenant key.
        scope: that of the key, which bounds the files that it may use.

    Raises:
        InvalidInput: the recording has a file that does not exist any more.
        MinionError: the task is refused.
    """
    assert trial.recording is not None
    assert not {"conversation_id", "key"} & task.keys()
    namespace = task.get("namespace", "default")
    recorded = trial.recording.model_dump(exclude_defaults=True)
    named = kept_files(recorded, recorded)
    if missing := named - files.media_of(connection, namespace, sorted(named), scope).keys():
        raise InvalidInput(
            f"The recording has the file {min(missing)}, which is not in the namespace {namespace!r}. Upload it with "
            "`minion files put`, or remove it from the case."
        )
    [accepted] = lifecycle.accept(connection, [{**task, "trial": True}])
    values = {
        "task": accepted.task_id,
        "level": trial.level,
        "allow_idempotent": trial.allow_idempotent,
        "recording": json.dumps(recorded),
    }
    connection.execute(STORE, values)
    files.hold(connection, accepted.task_id, namespace, named)
    return accepted


def load(connection: Connection, /, task: UUID) -> Trial | None:
    """Return what a task of a trial runs against; None if its recording is not stored."""
    row = connection.execute(LOAD, {"task": task}).one_or_none()
    if row is None:
        return None
    trial = Trial(row.level, row.allow_idempotent, RecordedTask.model_validate_json(row.recording))
    for child in connection.execute(LINE, {"task": task}):
        trial = replace(trial, recording=trial.below(child.parent_step, child.agent, child.input))
    return trial


def version_of(connection: Connection, namespace: str, agent: str, number: int) -> UUID:
    """Return the id of an agent's version.

    Raises:
        NotFound: there is no such version.
    """
    found: UUID | None = connection.scalar(VERSION, {"namespace": namespace, "agent": agent, "number": number})
    if found is None:
        raise NotFound(f"The agent {agent!r} has no version {number}. `minion agents show {agent}` lists them.")
    return found
