-- A task's place in line, for the tasks that are already there.

-- Who comes first: the lower number. A point of priority outweighs a minute of waiting, so that nobody waits for ever
-- and the order never has to be computed anew. Microseconds.
CREATE FUNCTION minion_rank(since timestamptz, priority integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM since) * 1000000)::bigint - priority::bigint * 60000000
$$;

-- The rank of a task that has to wait for its turn in a conversation: at the end of every line, where nobody looks.
CREATE FUNCTION minion_parked() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 9000000000000000000
$$;

UPDATE task_status s SET namespace = t.namespace, agent_name = COALESCE(t.agent_name, ''), key = COALESCE(t.key, ''),
                         rank = minion_rank(COALESCE(s.due_at, t.created_at), s.priority),
                         conversation_id = CASE WHEN t.parent_id IS NULL THEN t.conversation_id END
    FROM tasks t WHERE t.id = s.task_id AND s.state IN ('scheduled', 'pending', 'queued', 'running', 'waiting');
