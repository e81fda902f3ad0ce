"""Dead letters: failed tasks, grouped by their error."""

from __future__ import annotations

from sqlalchemy import Connection, text

from shared.tasks.queries import Page, page_of

# A parent that failed because of a sub-task has no own error. `exhausted`: attempts or workers were used up.
GROUPS = text(
    """
    SELECT o.error_fingerprint AS fingerprint, count(*) AS tasks, min(o.finished_at) AS first_at,
           max(o.finished_at) AS last_at, array_agg(DISTINCT t.agent_name) AS agents,
           count(*) FILTER (WHERE o.error ? 'max_attempts') AS exhausted,
           (array_agg(o.error->>'type' ORDER BY o.task_id DESC))[1] AS type,
           (array_agg(o.error->>'message' ORDER BY o.task_id DESC))[1] AS message,
           (array_agg(o.task_id ORDER BY o.task_id DESC))[1] AS example
        FROM task_outcomes o JOIN tasks t ON t.id = o.task_id
        WHERE o.state = 'failed' AND t.namespace = :namespace AND o.error->>'type' <> 'subtask_failed'
          -- A trial fails to say what it found.
          AND t.journal_format <> 3
          AND (CAST(:agent AS text) IS NULL OR t.agent_name = :agent)
          AND o.error_fingerprint > :after
          AND NOT EXISTS (SELECT 1 FROM tasks r WHERE r.replay_of = o.task_id)
        GROUP BY o.error_fingerprint ORDER BY o.error_fingerprint LIMIT :most
    """
)


def dead_letters(
    connection: Connection, *, namespace: str, agent: str | None = None, limit: int, after: str = ""
) -> Page:
    """Return failed tasks without a replay, grouped by fingerprint.

    Args:
        after: the `next` of the previous page.
    """
    values = {"namespace": namespace, "agent": agent, "after": after, "most": limit + 1}
    return page_of(connection.execute(GROUPS, values).mappings().all(), limit, "fingerprint")
