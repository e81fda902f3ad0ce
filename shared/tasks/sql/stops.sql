-- The kill switch: while a stop applies to a task, it begins no model call and no unsafe effect. The check is part of the
-- transaction that commits the step as started, so a stop holds from its own commit on, whichever process runs.

-- The widest stop that applies to a task of this namespace, agent and tenant key; NULL: none does.
CREATE OR REPLACE FUNCTION minion_stop_of(ns text, agent text, k text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('scope', s.scope, 'namespace', NULLIF(s.namespace, ''), 'name', NULLIF(s.name, ''),
                              'reason', s.reason, 'created_at', s.created_at, 'created_by', s.created_by)
        FROM (VALUES (1, 'installation', '', ''), (2, 'namespace', ns, ''), (3, 'agent', ns, agent), (4, 'key', ns, k))
            AS v (width, scope, namespace, name)
        JOIN stops s ON s.scope = v.scope AND s.namespace = v.namespace AND s.name = v.name
        ORDER BY v.width LIMIT 1
$$;

-- Why steps of a journal must not begin now, as flags for the minion; NULL: they may. Of the steps that begin, only model
-- calls and unsafe effects are held back: by a stop (`stopped`), and a model call also until it has reserved its worst case
-- in every standing budget that applies to it (`unreserved`). A step that this claim has begun before is not held back: its
-- answer was lost, and the write is repeated. A call of the batch lane is paid for there: a worker that does not know the
-- lane must not repeat it. The caller must hold the fence.
-- Workers of release 0.2 know only `breach`: it makes them suspend the task, and `minion_snooze` finds the reason in it.
CREATE OR REPLACE FUNCTION minion_refusal(t uuid, c integer, journal jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    begins record;
    stop jsonb;
    breach jsonb := jsonb_build_object(
        'waits_for', 'handed_back', 'then', 'wait', 'budget', t, 'agent', '', 'what', 'steps', 'limit', 0, 'spent', 0,
        'reserved', 0, 'asked', 1);
BEGIN
    SELECT s.number, s.kind, s.name INTO begins
        FROM jsonb_to_recordset(journal) AS s (number integer, kind text, name text, status text, effect text, error jsonb)
        WHERE s.status = 'started' AND (s.kind = 'model_call' OR s.effect = 'unsafe') AND s.error IS NULL
          AND NOT EXISTS (SELECT 1 FROM steps d WHERE d.task_id = t AND d.number = s.number AND d.claim = c
                                                  AND d.status = 'started')
        LIMIT 1;
    -- A cancelled task stops anyway.
    IF NOT FOUND OR (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        RETURN NULL;
    END IF;
    stop := (SELECT minion_stop_of(s.namespace, s.agent_name, s.key) FROM task_status s WHERE s.task_id = t);
    IF stop IS NOT NULL THEN
        RETURN jsonb_build_object('cancel', false, 'stopped', stop, 'breach', breach || '{"waits_for": "stopped"}');
    ELSIF begins.kind = 'model_call' AND EXISTS (
            SELECT 1 FROM batch_calls b JOIN steps d ON d.task_id = b.task_id AND d.number = b.step
                WHERE b.task_id = t AND b.step = begins.number AND d.status = 'started') THEN
        RETURN jsonb_build_object('cancel', false, 'breach', breach);
    ELSIF begins.kind = 'model_call' AND EXISTS (
            SELECT 1 FROM minion_standing_of(t, begins.name) b WHERE NOT EXISTS (
                SELECT 1 FROM standing_reservations r
                    WHERE r.task_id = t AND r.claim = c AND r.step = begins.number AND r.budget_id = b.id)) THEN
        RETURN jsonb_build_object('cancel', false, 'unreserved', true, 'breach', breach);
    END IF;
    RETURN NULL;
END $$;

-- Wakes stopped tasks to which no stop applies any more. It checks `most` of them at a time, those after the task `after`.
-- Returns the number of woken tasks, and the last checked one; NULL: there are no more.
CREATE OR REPLACE FUNCTION minion_wake_stopped(after uuid, most integer, OUT woken integer, OUT last uuid) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    looked_at uuid[] := ARRAY(
        SELECT s.task_id FROM task_status s
            WHERE s.wait_reason = 'stopped' AND s.task_id > COALESCE(after, '00000000-0000-0000-0000-000000000000')
            ORDER BY s.task_id LIMIT most);
BEGIN
    last := looked_at[most];
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.task_id = ANY (looked_at) AND s.state = 'waiting' AND s.wait_reason = 'stopped'
                  AND minion_stop_of(s.namespace, s.agent_name, s.key) IS NULL
                ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;
