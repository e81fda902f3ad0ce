-- Packs: several short tasks in one message. They are claimed together, and ends of tasks are recorded together.

-- Claims the tasks of a pack ([{task, claim}]) that may start now, as `minion_claim` does, and returns the same for each.
-- Other tasks are left to `minion_claim`: it finds out why they may not start. So are large ones: their inputs together
-- would not fit into a minion's memory.
CREATE OR REPLACE FUNCTION minion_claim_pack(pack jsonb, w uuid) RETURNS SETOF jsonb LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    -- Whatever plan is cached, each table is read by its key.
    ids uuid[] := ARRAY(SELECT (e->>'task')::uuid FROM jsonb_array_elements(pack) AS e);
BEGIN
    RETURN QUERY WITH free AS (
        SELECT s.task_id FROM jsonb_array_elements(pack) AS e
                JOIN task_status s ON s.task_id = (e->>'task')::uuid AND s.claim = (e->>'claim')::integer
                JOIN tasks k ON k.id = s.task_id
            WHERE s.task_id = ANY (ids) AND k.id = ANY (ids)
              AND s.state = 'queued' AND (s.deadline IS NULL OR s.deadline > now()) AND s.conversation_id IS NULL
              AND COALESCE(pg_column_size(k.input), 0) + COALESCE(pg_column_size(k.messages), 0) < 16384
              AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
              AND NOT EXISTS (SELECT 1 FROM pauses) AND NOT EXISTS (SELECT 1 FROM limits WHERE scope <> 'model')
            ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED
    ), claimed AS (
        UPDATE task_status s SET state = 'running', claim = s.claim + 1, worker_id = w, updated_at = now()
            FROM free WHERE s.task_id = free.task_id AND s.task_id = ANY (ids)
            RETURNING s.task_id, s.claim, s.attempts, s.capability
    ), released AS (
        DELETE FROM unique_tasks u USING claimed c
            WHERE u.task_id = c.task_id AND u.task_id = ANY (ids) AND c.claim = 1 AND u.held_while = 'pending'
    ), begun AS (
        INSERT INTO executions (task_id, claim, worker_id, stream_key)
            SELECT c.task_id, c.claim, w, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) FROM claimed c
            RETURNING task_id, stream_key
    )
    SELECT to_jsonb(k) || jsonb_build_object(
            'claim', c.claim, 'worker_id', w, 'attempts', c.attempts, 'queue', c.capability,
            'stream_key', encode(b.stream_key, 'hex'), 'origin_id', COALESCE(k.effect_origin, k.origin_id),
            'steps', CASE WHEN c.claim > 1 OR k.from_step IS NOT NULL THEN minion_journal(k.id) ELSE '[]'::jsonb END)
        FROM claimed c JOIN begun b ON b.task_id = c.task_id JOIN tasks k ON k.id = c.task_id AND k.id = ANY (ids);
END $$;

-- Records the ends of tasks that have succeeded, as `minion_finish` does, in one transaction: [{task, claim, seconds_ago,
-- result}], with the seconds since the task began. Returns the tasks that it has recorded. The others are left to
-- `minion_finish`: their fence is lost, they were cancelled, their deadline has passed, or they have a conversation.
-- Locks parents first, then tasks, each by their ids.
CREATE OR REPLACE FUNCTION minion_finish_pack(ended jsonb) RETURNS SETOF uuid LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    ids uuid[] := ARRAY(SELECT (e->>'task')::uuid FROM jsonb_array_elements(ended) AS e);
    fenced uuid[];
    parents uuid[];
    parent record;
    member uuid;
BEGIN
    SELECT array_agg(DISTINCT k.parent_id ORDER BY k.parent_id) INTO parents
        FROM tasks k WHERE k.id = ANY (ids) AND k.parent_id IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM 1 FROM task_status WHERE task_id = ANY (parents) ORDER BY task_id FOR NO KEY UPDATE;
    END IF;
    SELECT array_agg(l.task_id) INTO fenced FROM (
        SELECT s.task_id FROM jsonb_array_elements(ended) AS e
                JOIN task_status s ON s.task_id = (e->>'task')::uuid AND s.claim = (e->>'claim')::integer
                JOIN tasks k ON k.id = s.task_id
            WHERE s.task_id = ANY (ids) AND k.id = ANY (ids)
              AND s.state = 'running' AND NOT s.cancel_requested AND k.conversation_id IS NULL
              AND (s.deadline IS NULL OR s.deadline > clock_timestamp())
            ORDER BY s.task_id FOR NO KEY UPDATE OF s) AS l;
    IF fenced IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, cost_microdollars, function_version_id, started_at,
                       finished_at, program, line)
    SELECT (e->>'task')::uuid, s.number, s.kind, s.name, s.status, COALESCE(s.effect, 'pure'), s.request_hash,
           (e->>'claim')::integer, s.input, s.input_order, s.output, s.output_order, s.error, s.stdout, s.usage,
           COALESCE(s.cost_microdollars, 0), s.function_version_id, COALESCE(s.started_at, now()), s.finished_at,
           s.program, s.line
        FROM jsonb_array_elements(ended) AS e, jsonb_to_recordset(e->'result'->'steps') AS s (
            number integer, kind text, name text, status text, effect text, request_hash text, input jsonb,
            input_order jsonb, output jsonb, output_order jsonb, error jsonb, stdout text, usage jsonb,
            cost_microdollars bigint, function_version_id uuid, started_at timestamptz, finished_at timestamptz,
            program integer, line integer)
        WHERE (e->>'task')::uuid = ANY (fenced)
    ON CONFLICT (task_id, number) DO UPDATE SET
        status = EXCLUDED.status, output = EXCLUDED.output, output_order = EXCLUDED.output_order,
        error = EXCLUDED.error, stdout = EXCLUDED.stdout,
        usage = EXCLUDED.usage, cost_microdollars = EXCLUDED.cost_microdollars, claim = EXCLUDED.claim,
        finished_at = EXCLUDED.finished_at
        WHERE steps.status IN ('started', 'failed');
    UPDATE executions x SET
            outcome = 'succeeded', finished_at = now(),
            -- All tasks of the pack were claimed at once. The later ones waited.
            started_at = LEAST(now(), GREATEST(
                x.started_at, clock_timestamp() - (e->>'seconds_ago')::double precision * interval '1 s')),
            cpu_seconds = (e->'result'->>'cpu_seconds')::double precision,
            peak_memory_bytes = (e->'result'->>'peak_memory_bytes')::bigint,
            input_tokens = COALESCE((e->'result'->>'input_tokens')::bigint, 0),
            output_tokens = COALESCE((e->'result'->>'output_tokens')::bigint, 0),
            cost_microdollars = COALESCE((e->'result'->>'cost_microdollars')::bigint, 0)
        FROM jsonb_array_elements(ended) AS e
        WHERE x.task_id = (e->>'task')::uuid AND x.claim = (e->>'claim')::integer AND x.outcome = 'running'
          AND x.task_id = ANY (fenced);
    UPDATE task_status SET state = 'succeeded', worker_id = NULL, wait_reason = NULL, due_at = NULL, open_waits = 0,
                           updated_at = now()
        WHERE task_id = ANY (fenced);
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, output_order)
        SELECT (e->>'task')::uuid, 'succeeded', CASE WHEN NOT large THEN v.value END,
               CASE WHEN large THEN minion_store_content(v.value) END,
               CASE WHEN v.value <> 'null' THEN NULLIF(e->'result'->'output_order', 'null'::jsonb) END
            FROM jsonb_array_elements(ended) AS e, LATERAL (SELECT e->'result'->'output' AS value) AS v,
                LATERAL (SELECT octet_length(v.value::text) > 65536 AS large) AS l
            WHERE (e->>'task')::uuid = ANY (fenced);
    DELETE FROM unique_tasks WHERE task_id = ANY (fenced);
    IF EXISTS (SELECT 1 FROM remote_calls WHERE task_id = ANY (fenced)) THEN
        PERFORM minion_end_remote(fenced);
    END IF;
    IF EXISTS (SELECT 1 FROM webhooks WHERE enabled) THEN
        FOREACH member IN ARRAY fenced LOOP
            PERFORM minion_owe_webhooks(member, 'succeeded');
        END LOOP;
    END IF;
    IF parents IS NOT NULL THEN
        UPDATE steps s SET status = 'finished', finished_at = now()
            FROM tasks k WHERE k.id = ANY (fenced) AND s.task_id = k.parent_id AND s.number = k.parent_step;
        FOR parent IN SELECT k.parent_id AS id, count(*)::integer AS n FROM tasks k
                WHERE k.id = ANY (fenced) AND k.parent_id IS NOT NULL GROUP BY 1 ORDER BY 1 LOOP
            PERFORM minion_count_down(parent.id, parent.n);
        END LOOP;
    END IF;
    RETURN QUERY SELECT unnest(fenced);
END $$;

-- Returns a queued task that its worker has not claimed, and will not claim, to pending. NULL: it is not queued.
CREATE OR REPLACE FUNCTION minion_unqueue(t uuid, expected integer) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
BEGIN
    UPDATE task_status SET state = 'pending', updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;
