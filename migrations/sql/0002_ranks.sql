-- Set the rank (position) of existing tasks.

UPDATE task_status s SET namespace = t.namespace, agent_name = COALESCE(t.agent_name, ''), key = COALESCE(t.key, ''),
                         rank = minion_rank(COALESCE(s.due_at, t.created_at), s.priority),
                         conversation_id = CASE WHEN t.parent_id IS NULL THEN t.conversation_id END
    FROM tasks t WHERE t.id = s.task_id AND s.state IN ('scheduled', 'pending', 'queued', 'running', 'waiting');
