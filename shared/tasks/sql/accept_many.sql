-- Accepting many tasks with one statement for each table, instead of a call of `minion_accept` for each task.

-- Accepts all requests or none, and returns their tasks in order, as `minion_accept` does for each of them in turn.
-- The set-based form refuses a batch that is not plainly acceptable, and what it has done is rolled back. The batch is
-- then accepted one by one, so that an error names the first request that is wrong, in the words of `minion_accept`.
CREATE OR REPLACE FUNCTION minion_accept_many(requests jsonb) RETURNS TABLE (task_id uuid, created boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    -- Sub-tasks and replays never come in large batches.
    IF NOT jsonb_path_exists(requests, '$[*] ? (@.parent_id != null || @.parent_step != null || @.replay_of != null)') THEN
        BEGIN
            RETURN QUERY SELECT * FROM minion_accept_set(requests);
            RETURN;
        EXCEPTION WHEN SQLSTATE 'MN000' OR data_exception OR integrity_constraint_violation THEN
            NULL;  -- a class of errors is caught by its first two characters
        END;
    END IF;
    RETURN QUERY SELECT a.* FROM jsonb_array_elements(requests) WITH ORDINALITY AS r (request, n),
        LATERAL minion_accept(r.request) AS a ORDER BY r.n;
END $$;

-- The requests of a batch with the ids of their new tasks, and their keys.
CREATE OR REPLACE FUNCTION minion_keyed(requests jsonb, ids uuid[])
RETURNS TABLE (n bigint, id uuid, request jsonb, ns text, idempotency text, unique_key text, held text)
LANGUAGE sql STABLE AS $$
    SELECT r.n, r.id, r.request, COALESCE(r.request->>'namespace', 'default'), r.request->>'idempotency_key',
           r.request->>'unique_key', COALESCE(r.request->>'unique_while', 'running')
        FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids)) WITH ORDINALITY AS r (request, id, n)
$$;

-- Takes the keys of a batch, and returns the task that each request gets: its own, of `ids`, or the one that holds its
-- key. Keys are taken in their own order, so that two batches with the same keys do not wait for each other.
CREATE OR REPLACE FUNCTION minion_hold_keys(requests jsonb, ids uuid[]) RETURNS uuid[] LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    holders uuid[];
BEGIN
    INSERT INTO idempotency_keys (namespace, key, task_id, request)
        SELECT DISTINCT ON (b.ns, b.idempotency) b.ns, b.idempotency, b.id, minion_payload(b.request)
            FROM minion_keyed(requests, ids) AS b WHERE b.idempotency IS NOT NULL ORDER BY b.ns, b.idempotency, b.n
        ON CONFLICT DO NOTHING;
    IF EXISTS (
        SELECT FROM minion_keyed(requests, ids) AS b
            LEFT JOIN idempotency_keys i ON i.namespace = b.ns AND i.key = b.idempotency
            WHERE b.idempotency IS NOT NULL AND i.request IS DISTINCT FROM minion_payload(b.request)) THEN
        RAISE EXCEPTION 'An idempotency key was used before with another payload.' USING ERRCODE = 'MN005';
    END IF;

    PERFORM minion_check_unique(b.unique_key, b.held)
        FROM minion_keyed(requests, ids) AS b WHERE b.unique_key IS NOT NULL;
    INSERT INTO unique_tasks (namespace, key, task_id, held_while)
        SELECT DISTINCT ON (b.ns, b.unique_key) b.ns, b.unique_key, b.id, b.held
            FROM minion_keyed(requests, ids) AS b
            WHERE b.unique_key IS NOT NULL AND NOT EXISTS (
                SELECT FROM idempotency_keys i
                    WHERE i.namespace = b.ns AND i.key = b.idempotency AND i.task_id <> b.id)
            ORDER BY b.ns, b.unique_key, b.n
        ON CONFLICT DO NOTHING;
    UPDATE idempotency_keys i SET task_id = u.task_id
        FROM minion_keyed(requests, ids) AS b JOIN unique_tasks u ON u.namespace = b.ns AND u.key = b.unique_key
        WHERE i.namespace = b.ns AND i.key = b.idempotency AND i.task_id = b.id AND u.task_id <> b.id;

    SELECT array_agg(CASE WHEN b.idempotency IS NOT NULL AND i.task_id IS DISTINCT FROM b.id THEN i.task_id
                          WHEN b.unique_key IS NOT NULL THEN u.task_id ELSE b.id END ORDER BY b.n)
        INTO holders FROM minion_keyed(requests, ids) AS b
        LEFT JOIN idempotency_keys i ON i.namespace = b.ns AND i.key = b.idempotency
        LEFT JOIN unique_tasks u ON u.namespace = b.ns AND u.key = b.unique_key;
    IF array_position(holders, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'A key was released between two statements.' USING ERRCODE = 'MN009';
    END IF;
    RETURN holders;
END $$;

-- The set-based form of `minion_accept`, without sub-tasks and replays. Its errors have the class that
-- `minion_accept_many` catches, and callers never see their texts.
CREATE OR REPLACE FUNCTION minion_accept_set(requests jsonb) RETURNS TABLE (task_id uuid, created boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    ids uuid[] := ARRAY(SELECT minion_uuidv7() FROM generate_series(1, jsonb_array_length(requests)));
    holders uuid[] := ids;
    budgeted record;
BEGIN
    PERFORM minion_check_request(request), minion_check_json(request->'input', 'The input'),
            minion_check_json(request->'messages', 'The list of messages'), minion_check_times(request)
        FROM jsonb_array_elements(requests) AS request;
    IF jsonb_path_exists(requests, '$[*] ? (@.idempotency_key != null || @.unique_key != null)') THEN
        holders := minion_hold_keys(requests, ids);
    END IF;

    WITH asked AS MATERIALIZED (
        SELECT r.n, r.id, r.request, COALESCE(request->>'namespace', 'default') AS ns,
               NULLIF(request->'messages', 'null'::jsonb) AS messages, request->>'conversation_id' AS talk,
               (request->>'run_at')::timestamptz AS begins, (request->>'deadline')::timestamptz AS ends,
               COALESCE((request->>'run_at')::timestamptz > now(), false) AS later,
               COALESCE((request->>'priority')::smallint, 0) AS urgency,
               -- All that `minion_resolve` reads.
               jsonb_build_object('namespace', request->'namespace', 'agent', request->'agent',
                                  'capability', request->'capability',
                                  'agent_version_id', request->'agent_version_id',
                                  'messages', CASE jsonb_typeof(request->'messages') WHEN 'array' THEN '[]'::jsonb END)
                   AS named
            FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids), unnest(holders))
                WITH ORDINALITY AS r (request, id, holder, n)
            WHERE r.id = r.holder
    ), targets AS MATERIALIZED (
        SELECT d.named, t.*, minion_budget_for('{}', t.version_id) AS budget
            FROM (SELECT DISTINCT named FROM asked) AS d CROSS JOIN LATERAL minion_resolve(d.named) AS t
    ), talks AS MATERIALIZED (
        SELECT ns, talk, min(n) FILTER (WHERE NOT later) AS first FROM asked WHERE talk IS NOT NULL GROUP BY ns, talk
    ), made AS MATERIALIZED (
        SELECT a.*, t.version_id, t.agent_name, COALESCE(NULLIF(request->'budget', 'null'::jsonb), t.budget) AS budget,
               -- The preparer looks into messages further than PostgreSQL does.
               CASE WHEN request->>'validated' = t.version_id::text OR t.input_schema IS NULL AND a.messages IS NULL
                    THEN t.queue END AS queue,
               COALESCE(a.n > k.first, false) AS follows
            FROM asked a JOIN targets t USING (named) LEFT JOIN talks k USING (ns, talk) ORDER BY a.n
    ), stored AS (
        INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, input_order, messages,
                           root_id, depth, origin_id, conversation_id, key, labels, submitted_by, traceparent,
                           deadline, budget_ids)
            SELECT id, ns, agent_name, version_id, request->>'capability',
                   CASE WHEN request ? 'input' THEN request->'input' END,
                   NULLIF(request->'input_order', 'null'::jsonb), messages, id, 0, id, talk, request->>'key',
                   COALESCE(NULLIF(request->'labels', 'null'::jsonb), '{}'::jsonb), request->>'submitted_by',
                   request->>'traceparent', ends, CASE WHEN budget IS NOT NULL THEN ARRAY[id] END
                FROM made
    ), statuses AS (
        INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline, namespace, agent_name, key,
                                 conversation_id, rank)
            SELECT id, CASE WHEN later THEN 'scheduled' ELSE 'pending' END, queue, urgency,
                   CASE WHEN later THEN begins END, ends, ns, COALESCE(agent_name, ''),
                   COALESCE(request->>'key', ''), talk,
                   CASE WHEN talk IS NULL THEN minion_rank(GREATEST(begins, clock_timestamp()), urgency)
                        WHEN follows THEN minion_parked()
                        ELSE minion_place(id, ns, talk, GREATEST(begins, clock_timestamp()), urgency) END
                FROM made
    )
    SELECT count(*) AS created, array_agg(id ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS ids,
           array_agg(budget ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS given
        INTO budgeted FROM made;
    IF budgeted.ids IS NOT NULL THEN
        PERFORM minion_open_budgets(budgeted.ids, budgeted.given);
    END IF;
    IF budgeted.created > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN QUERY SELECT h.holder, h.holder = h.id FROM unnest(ids, holders) AS h (id, holder);
END $$;
