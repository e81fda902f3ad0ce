-- Claiming a task. The claim number is the fence of every later write.

-- A minion claims a queued task: the claim number increases and fences every earlier holder. Pauses and limits
-- may have been added since it was queued. NULL: another minion has claimed it, it has ended, or this worker is not
-- known to be alive. {refused: obstacle}: it may not start now; if the obstacle's kind is `rate`, the minion must ask
-- the limiter and call again with `granted`, or call `minion_hold`.
CREATE OR REPLACE FUNCTION minion_claim(t uuid, expected integer, w uuid, granted boolean) RETURNS jsonb LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at task_status;
    obstacle jsonb;
    secret bytea;
BEGIN
    UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = w, updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected AND (deadline IS NULL OR deadline > now())
          AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
          AND NOT EXISTS (SELECT 1 FROM pauses) AND NOT EXISTS (SELECT 1 FROM limits WHERE scope <> 'model')
          AND conversation_id IS NULL
        RETURNING * INTO now_at;
    IF NOT FOUND THEN
        SELECT * INTO now_at FROM task_status
            WHERE task_id = t AND state = 'queued' AND claim = expected AND (deadline IS NULL OR deadline > now())
              AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
            FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        obstacle := minion_obstacle(now_at, granted);
        IF obstacle IS NOT NULL THEN
            IF obstacle->>'kind' <> 'rate' THEN
                UPDATE task_status SET state = 'pending', updated_at = now(),
                                       rank = CASE WHEN obstacle->>'kind' = 'turn' THEN minion_parked() ELSE rank END
                    WHERE task_id = t;
            END IF;
            RETURN jsonb_build_object('refused', obstacle);
        END IF;
        UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = w, updated_at = now()
            WHERE task_id = t RETURNING * INTO now_at;
    END IF;
    IF now_at.claim = 1 THEN
        DELETE FROM unique_tasks WHERE task_id = t AND held_while = 'pending';
    END IF;
    -- Each half has 122 random bits from the system's source.
    INSERT INTO executions (task_id, claim, worker_id, stream_key)
        VALUES (t, now_at.claim, w, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
        RETURNING stream_key INTO secret;
    RETURN (SELECT to_jsonb(k) || jsonb_build_object(
        'claim', now_at.claim, 'worker_id', w, 'attempts', now_at.attempts, 'queue', now_at.capability,
        'stream_key', encode(secret, 'hex'),
        -- Minions derive idempotency keys from it.
        'origin_id', COALESCE(k.effect_origin, k.origin_id),
        -- A replay from a step begins with the copied steps.
        'steps', CASE WHEN now_at.claim > 1 OR k.from_step IS NOT NULL THEN minion_journal(t) ELSE '[]'::jsonb END)
        FROM tasks k WHERE k.id = t);
END $$;

-- The fence: locks the status row if this claim still holds it.
CREATE OR REPLACE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t AND claim = c AND state = 'running' FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

-- A journal as the next run reads it: the steps in order, finished sub-tasks with their outcomes.
CREATE OR REPLACE FUNCTION minion_journal(t uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT COALESCE(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'number', s.number, 'kind', s.kind, 'name', s.name, 'status', s.status, 'effect', s.effect,
               'request_hash', s.request_hash, 'error', s.error, 'program', s.program, 'line', s.line,
               'child_id', CASE WHEN s.kind = 'subtask' THEN COALESCE(s.output->>'task_id', s.child_id::text) END))
           || jsonb_build_object('output', s.output, 'output_order', s.output_order)
           || CASE WHEN s.kind = 'subtask' AND s.copied_from IS NOT NULL THEN
                       jsonb_build_object('outcome', s.output || jsonb_build_object('output_order', s.output_order))
                   WHEN o.task_id IS NULL THEN '{}'::jsonb
                   ELSE jsonb_build_object('outcome', jsonb_build_object(
                       'state', o.state, 'output', COALESCE(o.output, c.value), 'output_order', o.output_order,
                       'error', o.error)) END
           ORDER BY s.number), '[]'::jsonb)
    FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
    WHERE s.task_id = t
$$;
