-- Accepting tasks: validation, immediate routing where possible, and the rows of a new task.

-- Refuses JSON that a Python process could not represent. The cheap tests on the text come first.
CREATE OR REPLACE FUNCTION minion_check_json(value jsonb, what text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    body text := value::text;
    most integer := COALESCE(NULLIF(current_setting('minion.max_input_bytes', true), '')::integer, 1048576);
BEGIN
    IF octet_length(body) > most THEN
        RAISE EXCEPTION '% is % bytes large; at most % are accepted. '
            'Store large data elsewhere and pass a reference to it.', what, octet_length(body), most
            USING ERRCODE = 'MN006';
    END IF;
    IF octet_length(body) > 200 AND jsonb_path_exists(value, '$.**{101}') THEN
        RAISE EXCEPTION '% is nested deeper than 100 levels.', what USING ERRCODE = 'MN007';
    END IF;
    IF body ~ '[0-9]{150}' AND jsonb_path_exists(
            value, '$.** ? (@.type() == "number" && (@ >= 1e300 || @ <= -1e300))') THEN
        RAISE EXCEPTION '% holds a number of more than 300 digits.', what USING ERRCODE = 'MN007';
    END IF;
END $$;

-- The order of the keys in a value, as `shared/contracts/key_order.py` describes it; NULL if it is the order of jsonb.
CREATE OR REPLACE FUNCTION minion_key_order(value json) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH RECURSIVE parts (place, part) AS (
        SELECT '{}'::bigint[], value
        UNION ALL SELECT p.place || m.n, m.part FROM parts p CROSS JOIN LATERAL (
                SELECT o.value, o.n FROM json_each(CASE json_typeof(p.part) WHEN 'object' THEN p.part END)
                    WITH ORDINALITY AS o (key, value, n)
                UNION ALL
                SELECT a.value, a.n FROM json_array_elements(CASE json_typeof(p.part) WHEN 'array' THEN p.part END)
                    WITH ORDINALITY AS a (value, n)) AS m (part, n)
            WHERE json_typeof(m.part) IN ('object', 'array')
    ), objects AS (
        SELECT place, ARRAY(SELECT k.key FROM json_object_keys(part) WITH ORDINALITY AS k (key, n) ORDER BY n) AS keys
            FROM parts WHERE json_typeof(part) = 'object'
    ), orders AS (
        SELECT keys, own, row_number() OVER alike - 1 AS nth, count(*) OVER (PARTITION BY own) AS several FROM (
                SELECT keys, min(place) AS place,
                       ARRAY(SELECT k FROM unnest(keys) AS k ORDER BY octet_length(k), k COLLATE "C") AS own
                    FROM objects GROUP BY keys) AS found
            WINDOW alike AS (PARTITION BY own ORDER BY place)
    ), listed AS (SELECT * FROM orders WHERE several > 1 OR keys <> own)
    SELECT jsonb_build_object(
            'orders', jsonb_agg(to_jsonb(keys) ORDER BY own, nth),
            'choices', (SELECT COALESCE(jsonb_agg(l.nth ORDER BY o.place), '[]')
                            FROM objects o JOIN listed l USING (keys) WHERE l.several > 1))
        FROM listed HAVING count(*) > 0
$$;

CREATE OR REPLACE FUNCTION minion_are_messages(candidates jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(candidates) = 'array' THEN
        jsonb_array_length(candidates) BETWEEN 1 AND 1000 AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(candidates) AS c (message)
                WHERE (jsonb_typeof(message) = 'object' AND (jsonb_typeof(message->'content') = 'string'
                            OR jsonb_typeof(message->'content') = 'array' AND message->'content' <> '[]'
                                AND NOT jsonb_path_exists(message->'content', 'lax $[*] ? (@.type() != "object")'))
                       AND message->>'role' IN ('user', 'assistant', 'system', 'tool')) IS NOT TRUE)
        ELSE false END
$$;

-- Refuses values that must not be stored, from any entry point: the Python entry points have checked most of it
-- already.
-- (Python can read no time after the year 9999, and no index holds a key of several kilobytes.)
CREATE OR REPLACE FUNCTION minion_check_request(request jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fault record;
    labels jsonb := NULLIF(request->'labels', 'null'::jsonb);
    messages jsonb := NULLIF(request->'messages', 'null'::jsonb);
BEGIN
    IF char_length(request->>'agent') > 200 OR char_length(request->>'capability') > 200
            OR char_length(request->>'idempotency_key') NOT BETWEEN 1 AND 255
            OR char_length(request->>'key') NOT BETWEEN 1 AND 255
            OR char_length(request->>'conversation_id') NOT BETWEEN 1 AND 255
            OR char_length(request->>'namespace') NOT BETWEEN 1 AND 100 THEN
        SELECT f.name, char_length(request->>f.name) AS size, f.most INTO fault
            FROM (VALUES ('agent', 0, 200), ('capability', 0, 200), ('idempotency_key', 1, 255), ('key', 1, 255),
                         ('conversation_id', 1, 255), ('namespace', 1, 100)) AS f (name, least, most)
            WHERE char_length(request->>f.name) NOT BETWEEN f.least AND f.most LIMIT 1;
        RAISE EXCEPTION '% has % characters; 1 to % are accepted.', fault.name, fault.size, fault.most
            USING ERRCODE = 'MN007';
    ELSIF request->>'traceparent' !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'traceparent must have the format of W3C Trace Context.' USING ERRCODE = 'MN007';
    ELSIF (request->>'priority')::numeric NOT BETWEEN -100 AND 100 THEN
        RAISE EXCEPTION 'priority is %; -100 to 100 are accepted.', request->>'priority' USING ERRCODE = 'MN007';
    ELSIF (request->>'run_at')::timestamptz NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'run_at must be a time between the years 1970 and 9999.' USING ERRCODE = 'MN007';
    ELSIF (request->>'deadline')::timestamptz NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'deadline must be a time between the years 1970 and 9999.' USING ERRCODE = 'MN007';
    END IF;
    IF request->>'lane' NOT IN ('direct', 'batch', 'auto') THEN
        RAISE EXCEPTION 'lane is %; it must be direct, batch or auto.', quote_literal(left(request->>'lane', 100))
            USING ERRCODE = 'MN007';
    END IF;
    IF labels IS NOT NULL THEN
        IF jsonb_typeof(labels) <> 'object' OR octet_length(labels::text) > 65536
                OR jsonb_path_exists(labels, 'strict $.* ? (@.type() != "string")') THEN
            RAISE EXCEPTION 'labels must be an object whose values are text, of at most 64 KB.' USING ERRCODE = 'MN007';
        END IF;
    END IF;
    IF messages IS NOT NULL AND NOT minion_are_messages(messages) THEN
        RAISE EXCEPTION 'messages must be a list of 1 to 1000 objects, each with `role` (user, assistant or system) '
            'and `content` (text, or a list of blocks).' USING ERRCODE = 'MN007';
    END IF;
    PERFORM minion_check_json(request->'input', 'The input');
    PERFORM minion_check_json(request->'messages', 'The list of messages');
    IF (request->>'deadline')::timestamptz <= (request->>'run_at')::timestamptz THEN
        RAISE EXCEPTION 'run_at must be before deadline, or the task could never run.' USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION minion_notify_pending() RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('minion_pending', '')
$$;

-- The agent version that a request names, and the queue that serves it. No row: the task is routed by message.
CREATE OR REPLACE FUNCTION minion_resolve(request jsonb, OUT version_id uuid, OUT agent_name text, OUT queue text,
                               OUT input_schema jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    wanted text := request->>'agent';
    capability text := request->>'capability';
    found record;
    candidates text[];
BEGIN
    IF request->>'agent_version_id' IS NOT NULL THEN
        SELECT a.name, a.status, v.* INTO found FROM agent_versions v JOIN agents a ON a.id = v.agent_id
            WHERE v.id = (request->>'agent_version_id')::uuid AND a.namespace = ns;
    ELSIF wanted IS NOT NULL THEN
        SELECT a.name, a.status, v.* INTO found FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.name = wanted;
    ELSIF capability IS NOT NULL THEN
        SELECT array_agg(a.name ORDER BY a.name) INTO candidates
            FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.status <> 'disabled' AND v.capabilities @> ARRAY[capability];
        IF candidates IS NULL THEN
            RAISE EXCEPTION 'No agent offers the capability %. `minion capabilities` lists them.',
                quote_literal(left(capability, 100)) USING ERRCODE = 'MN002';
        ELSIF cardinality(candidates) > 1 THEN
            RAISE EXCEPTION 'Several agents offer the capability %: %. Name the agent.',
                quote_literal(capability), array_to_string(candidates, ', ') USING ERRCODE = 'MN003';
        END IF;
        SELECT a.name, a.status, v.* INTO found FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = ns AND a.name = candidates[1];
    ELSIF request->'messages' IS NOT NULL AND jsonb_typeof(request->'messages') = 'array' THEN
        RETURN;
    ELSE
        RAISE EXCEPTION 'Name an agent or a capability, or send messages to be routed by.' USING ERRCODE = 'MN007';
    END IF;

    IF found.id IS NULL THEN
        RAISE EXCEPTION 'There is no agent named %. `minion agents` lists them; `minion apply PATH` stores new ones.',
            quote_literal(left(COALESCE(wanted, request->>'agent_version_id'), 100)) USING ERRCODE = 'MN001';
    ELSIF found.status = 'disabled' THEN
        RAISE EXCEPTION 'The agent % is disabled and accepts no tasks. `minion agents activate %` changes that.',
            quote_literal(found.name), found.name USING ERRCODE = 'MN004';
    ELSIF capability IS NOT NULL AND NOT capability = ANY (found.capabilities) THEN
        RAISE EXCEPTION 'The agent % does not offer the capability %; it offers %.', quote_literal(found.name),
            quote_literal(left(capability, 100)), array_to_string(found.capabilities, ', ') USING ERRCODE = 'MN002';
    END IF;
    version_id := found.id;
    agent_name := found.name;
    queue := COALESCE(capability, found.capability);
    -- Releases before 0.3 stored JSON null.
    input_schema := NULLIF(found.input_schema, 'null'::jsonb);
END $$;

-- The greatest depth of a sub-task of `parent`: every ancestor's max_chain_depth counts from its own depth.
CREATE OR REPLACE FUNCTION minion_check_depth(parent uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    child_depth integer;
    offender record;
BEGIN
    SELECT depth + 1 INTO child_depth FROM tasks WHERE id = parent;
    WITH RECURSIVE lineage AS (
        SELECT id, parent_id, depth, agent_version_id FROM tasks WHERE id = parent
        UNION ALL
        SELECT t.id, t.parent_id, t.depth, t.agent_version_id FROM tasks t JOIN lineage l ON t.id = l.parent_id
    )
    SELECT v.name, (v.definition->'config'->>'max_chain_depth')::integer AS most INTO offender
        FROM lineage l JOIN agent_versions v ON v.id = l.agent_version_id
        WHERE child_depth - l.depth > (v.definition->'config'->>'max_chain_depth')::integer
        ORDER BY l.depth LIMIT 1;
    IF offender.name IS NOT NULL THEN
        RAISE EXCEPTION 'The chain below the agent % would be deeper than its max_chain_depth of %. '
            'Look for agents that call each other in a circle, or raise the limit.',
            quote_literal(offender.name), offender.most USING ERRCODE = 'MN007';
    END IF;
    RETURN child_depth;
END $$;

-- Takes a unique key for a task, or returns the task that holds it.
CREATE OR REPLACE FUNCTION minion_hold_unique(ns text, k text, t uuid, held text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    holder uuid;
BEGIN
    IF char_length(k) NOT BETWEEN 1 AND 255 OR held NOT IN ('pending', 'running') THEN
        RAISE EXCEPTION 'unique_key must have 1 to 255 characters, and unique_while must be pending or running.'
            USING ERRCODE = 'MN007';
    END IF;
    LOOP
        INSERT INTO unique_tasks (namespace, key, task_id, held_while) VALUES (ns, k, t, held)
            ON CONFLICT DO NOTHING RETURNING task_id INTO holder;
        -- The key may be released between the two statements.
        EXIT WHEN holder IS NOT NULL;
        SELECT task_id INTO holder FROM unique_tasks WHERE namespace = ns AND key = k;
        EXIT WHEN holder IS NOT NULL;
    END LOOP;
    RETURN holder;
END $$;

-- Takes an idempotency key for a task, or returns its task and the request from then.
CREATE OR REPLACE FUNCTION minion_hold_idempotency(ns text, k text, t uuid, asked jsonb, OUT task_id uuid, OUT request jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    LOOP
        INSERT INTO idempotency_keys AS held (namespace, key, task_id, request) VALUES (ns, k, t, asked)
            ON CONFLICT DO NOTHING RETURNING held.task_id, held.request INTO task_id, request;
        EXIT WHEN FOUND;
        -- The key may be deleted, with its task, between the two statements.
        SELECT held.task_id, held.request INTO task_id, request FROM idempotency_keys held
            WHERE held.namespace = ns AND held.key = k;
        EXIT WHEN FOUND;
    END LOOP;
END $$;

-- Takes the keys of requests for their new tasks, `ids`. Returns a task for each request: its new one, or else the one
-- that holds its key. Keys are taken in their own order, so that two calls with the same keys do not deadlock.
CREATE OR REPLACE FUNCTION minion_hold_keys(requests jsonb, ids uuid[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    holders uuid[] := ids;
    asked record;
    earlier record;
    holder uuid;
BEGIN
    FOR asked IN
        SELECT n, COALESCE(request->>'namespace', 'default') AS ns, request->>'idempotency_key' AS key, jsonb_build_object(
                   'agent', request->'agent', 'capability', request->'capability', 'input', request->'input',
                   'messages', request->'messages', 'conversation_id', request->'conversation_id',
                   'key', request->'key') AS payload
            FROM jsonb_array_elements(requests) WITH ORDINALITY AS r (request, n)
            WHERE request->>'idempotency_key' IS NOT NULL ORDER BY ns, key, n
    LOOP
        SELECT * INTO earlier FROM minion_hold_idempotency(asked.ns, asked.key, ids[asked.n], asked.payload);
        IF earlier.task_id <> ids[asked.n] THEN
            IF earlier.request <> asked.payload THEN
                RAISE EXCEPTION 'The idempotency key % was used before with another payload (task %). '
                    'Use a new key for a new payload.', quote_literal(left(asked.key, 200)), earlier.task_id
                    USING ERRCODE = 'MN005';
            END IF;
            holders[asked.n] := earlier.task_id;
        END IF;
    END LOOP;
    FOR asked IN
        SELECT n, COALESCE(request->>'namespace', 'default') AS ns, request->>'unique_key' AS key,
               request->>'idempotency_key' AS idempotency, COALESCE(request->>'unique_while', 'running') AS held_while
            FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids), unnest(holders))
                WITH ORDINALITY AS r (request, id, holder, n)
            WHERE request->>'unique_key' IS NOT NULL AND r.id = r.holder ORDER BY ns, key, n
    LOOP
        holder := minion_hold_unique(asked.ns, asked.key, ids[asked.n], asked.held_while);
        IF holder <> ids[asked.n] THEN
            UPDATE idempotency_keys SET task_id = holder WHERE namespace = asked.ns AND key = asked.idempotency;
            holders[asked.n] := holder;
        END IF;
    END LOOP;
    -- The new task of an earlier request with the same idempotency key may have found its unique key held.
    RETURN ARRAY(
        SELECT COALESCE(e.holder, h.holder) FROM unnest(holders) WITH ORDINALITY AS h (holder, n)
            LEFT JOIN unnest(ids, holders) AS e (id, holder) ON e.id = h.holder ORDER BY h.n);
END $$;

-- The origin of a sub-task's idempotency keys, derived from its parent's origin and the step that created it, so that a
-- replay of the tree presents the same keys to outside systems.
CREATE OR REPLACE FUNCTION minion_effect_origin(parent uuid, step integer) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT encode(substring(sha256(convert_to(parent::text || '/' || step::text, 'UTF8')) FOR 16), 'hex')::uuid
$$;

-- A replay of a trial would be a real task, whose tools have effects.
CREATE OR REPLACE FUNCTION minion_refuse_replay(source uuid) RETURNS smallint LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Task % is a trial, and cannot be replayed. Run `minion eval` again, or submit a new task.', source
        USING ERRCODE = 'MN009';
END $$;

-- Inserts tasks, with one statement for each table. It is the only insert of tasks, used by every entry point. A request
-- holds agent | capability | messages, input, and optionally input_order (of its keys: `minion_key_order`), namespace,
-- idempotency_key, key, labels, priority, run_at, deadline, conversation_id, parent_id, parent_step, replay_of, new_keys
-- (a replay whose calls get new idempotency keys), agent_version_id, traceparent, submitted_by, submitter_key (the id of
-- the API key, or `bootstrap`), unique_key, unique_while, budget ({tokens, dollars, steps, seconds, on_breach}), lane (of its
-- model calls; else that of its parent or original), trial (true: the caller stores its recording, see
-- `shared.tasks.trials`; tasks below a trial are ones too), and `validated`: the id of the agent version whose input schema
-- the caller has already checked the input against. It decides between an active version and its canary.
-- Returns the tasks in the order of the requests. Each request sees the effects of those before it. The caller notifies the
-- dispatcher.
CREATE OR REPLACE FUNCTION minion_insert_tasks(requests jsonb) RETURNS TABLE (task_id uuid, created boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    ids uuid[] := ARRAY(SELECT minion_uuidv7() FROM generate_series(1, jsonb_array_length(requests)));
    holders uuid[] := ids;
    totals record;
BEGIN
    PERFORM minion_check_request(request) FROM jsonb_array_elements(requests) AS request;
    IF jsonb_path_exists(requests, '$[*] ? (@.idempotency_key != null || @.unique_key != null)') THEN
        holders := minion_hold_keys(requests, ids);
    END IF;

    WITH asked AS MATERIALIZED (
        SELECT r.n, r.id, r.request, COALESCE(request->>'namespace', 'default') AS ns,
               NULLIF(request->'messages', 'null'::jsonb) AS messages,
               (request->>'parent_id')::uuid AS parent, (request->>'replay_of')::uuid AS replayed,
               -- Sub-tasks do not wait for a predecessor.
               CASE WHEN request->>'parent_id' IS NULL THEN request->>'conversation_id' END AS talk,
               (request->>'run_at')::timestamptz AS begins, (request->>'deadline')::timestamptz AS ends,
               COALESCE((request->>'run_at')::timestamptz > now(), false) AS later,
               -- All that `minion_resolve` reads.
               jsonb_build_object(
                   'namespace', request->'namespace', 'agent', request->'agent', 'capability', request->'capability',
                   'agent_version_id', request->'agent_version_id',
                   'messages', CASE jsonb_typeof(request->'messages') WHEN 'array' THEN '[]'::jsonb END) AS named
            FROM ROWS FROM (jsonb_array_elements(requests), unnest(ids), unnest(holders))
                WITH ORDINALITY AS r (request, id, holder, n)
            -- The planner would expect a single row of the equality alone, and join the rest with nested loops.
            WHERE CASE WHEN r.id = r.holder THEN true END
    ), active AS MATERIALIZED (
        SELECT d.named, t.*, t.version_id AS active, c.version_id AS canary, c.share, c.same_input,
               false AS drawn
            FROM (SELECT named FROM asked GROUP BY named ORDER BY min(n)) AS d
            CROSS JOIN LATERAL minion_resolve(d.named) AS t
            LEFT JOIN LATERAL minion_canary_for(d.named, t.version_id) AS c ON true
    ), targets AS MATERIALIZED (
        SELECT t.*, (
                   SELECT NULLIF(v.definition->'config'->'budget', 'null'::jsonb) FROM agent_versions v
                       WHERE v.id = t.version_id) AS budget
            FROM (SELECT * FROM active
                  UNION ALL
                  SELECT b.named, t.*, b.active, b.canary, b.share, b.same_input, true FROM active b CROSS JOIN LATERAL
                      minion_resolve(b.named || jsonb_build_object('agent_version_id', b.canary)) AS t
                      WHERE b.canary IS NOT NULL) AS t
    ), talks AS MATERIALIZED (
        -- The others of a conversation have a predecessor: this task.
        SELECT ns, talk, min(n) AS first FROM asked WHERE talk IS NOT NULL AND NOT later GROUP BY ns, talk
    ), made AS MATERIALIZED (
        SELECT a.*, t.version_id, t.agent_name, p.id AS parent_id, p.root_id, p.depth, p.submitted_by, p.traceparent,
               p.priority AS parent_priority, p.rank AS parent_rank, p.budget_ids, o.origin_id,
               COALESCE(a.request->>'lane', p.lane, o.lane) AS lane,
               CASE WHEN o.journal_format = 3 THEN minion_refuse_replay(a.replayed)
                    WHEN p.journal_format = 3 OR a.request->'trial' = 'true' THEN 3 ELSE 1 END AS journal_format,
               COALESCE(a.n > k.first, false) AS follows,
               -- The preparer looks into messages further than PostgreSQL does.
               CASE WHEN a.request->>'validated' = t.version_id::text OR t.input_schema IS NULL AND a.messages IS NULL
                    THEN t.queue END AS queue,
               CASE WHEN a.replayed IS NULL THEN COALESCE(NULLIF(a.request->'budget', 'null'::jsonb), t.budget)
                    ELSE minion_budget_for(a.request, t.version_id) END AS budget,
               CASE WHEN a.replayed IS NULL THEN minion_effect_origin(p.effects, (a.request->>'parent_step')::integer)
                    WHEN a.request->'new_keys' = 'true' THEN a.id
                    ELSE o.effect_origin END AS effects,
               COALESCE(a.request->>'key', p.key) AS key,
               COALESCE(NULLIF(a.request->'labels', 'null'::jsonb), p.labels, '{}'::jsonb) AS labels,
               LEAST(a.ends, p.deadline) AS deadline,
               COALESCE((a.request->>'priority')::smallint, p.priority, 0) AS urgency,
               CASE WHEN a.replayed IS NOT NULL OR a.request->>'submitted_by' LIKE 'schedule:%'
                    THEN minion_submitters(a.request->>'submitted_by', a.request->>'submitter_key', a.ns,
                                           p.submitter_keys, o.submitter_keys)
                    WHEN p.submitter_keys IS NOT NULL THEN p.submitter_keys
                    WHEN a.request->>'submitter_key' IS NOT NULL THEN ARRAY[a.request->>'submitter_key']
                    -- Release 0.2 knows no other key.
                    WHEN COALESCE(a.request->>'submitted_by', p.submitted_by) ~ '^api(:|$)' THEN '{bootstrap}'
                    END AS submitter_keys
            FROM asked a LEFT JOIN talks k USING (ns, talk)
            -- With a limit, these are looked up for each task by its id, whatever the plan's estimates.
            LEFT JOIN LATERAL (
                SELECT t.*, COALESCE(t.effect_origin, t.origin_id) AS effects, s.priority, s.rank
                    FROM tasks t JOIN task_status s ON s.task_id = t.id WHERE t.id = a.parent LIMIT 1) AS p ON true
            LEFT JOIN LATERAL (
                SELECT origin_id, effect_origin, submitter_keys, lane, journal_format FROM tasks
                    WHERE id = a.replayed LIMIT 1) AS o ON true
            JOIN targets t ON t.named = a.named AND (t.canary IS NULL OR t.drawn = (
                a.replayed IS NULL AND a.request->'trial' IS DISTINCT FROM 'true' AND COALESCE(p.journal_format, 1) <> 3
                -- Only the caller can tell whether the canary accepts an input that the active version accepts.
                AND CASE a.request->>'validated' WHEN t.canary::text THEN true WHEN t.active::text THEN false
                    ELSE t.same_input AND minion_drawn(t.canary, COALESCE(
                        a.request->>'conversation_id', (SELECT r.conversation_id FROM tasks r WHERE r.id = p.root_id),
                        a.request->>'key', p.key, p.root_id::text, a.id::text), t.share) END))
            ORDER BY a.n
    ), stored AS (
        INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, input_order, messages,
                           parent_id, parent_step, root_id, depth, replay_of, origin_id, effect_origin,
                           conversation_id, key, labels, submitted_by, traceparent, deadline, budget_ids, submitter_keys,
                           lane, journal_format)
            SELECT id, ns, agent_name, version_id, request->>'capability',
                   CASE WHEN request ? 'input' THEN request->'input' END,
                   NULLIF(request->'input_order', 'null'::jsonb), messages,
                   parent_id, (request->>'parent_step')::integer, COALESCE(root_id, id), COALESCE(depth + 1, 0), replayed,
                   COALESCE(origin_id, id), effects, request->>'conversation_id', key, labels,
                   COALESCE(request->>'submitted_by', submitted_by), COALESCE(request->>'traceparent', traceparent),
                   deadline, CASE WHEN budget IS NULL THEN budget_ids ELSE budget_ids || id END, submitter_keys, lane,
                   journal_format
                FROM made
    ), statuses AS (
        INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline, namespace, agent_name, key,
                                 conversation_id, rank)
            SELECT id, CASE WHEN later THEN 'scheduled' ELSE 'pending' END, queue, urgency,
                   CASE WHEN later THEN begins END, deadline, ns, COALESCE(agent_name, ''), COALESCE(key, ''), talk,
                   -- Work that has begun comes first: a sub-task gets its parent's position.
                   CASE WHEN parent_id IS NOT NULL AND begins IS NULL
                        THEN parent_rank - (urgency - parent_priority)::bigint * 60000000
                        WHEN follows THEN minion_parked()
                        ELSE minion_place(id, ns, talk, GREATEST(begins, clock_timestamp()), urgency) END
                FROM made
    )
    SELECT array_agg(DISTINCT parent_id) FILTER (WHERE parent_id IS NOT NULL) AS parents,
           array_agg(id ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS budgeted,
           array_agg(budget ORDER BY n) FILTER (WHERE budget IS NOT NULL) AS budgets
        INTO totals FROM made;
    PERFORM minion_check_depth(parent) FROM unnest(totals.parents) AS parent;
    IF totals.budgeted IS NOT NULL THEN
        PERFORM minion_open_budgets(totals.budgeted, totals.budgets);
    END IF;
    RETURN QUERY SELECT h.holder, h.holder = h.id FROM unnest(ids, holders) AS h (id, holder);
END $$;

-- Accepts all requests or none, as `minion_insert_tasks` does. The error is that of the first request that is refused.
-- If there are several requests, its DETAIL is {"index": …}: the position of that request, from 0.
CREATE OR REPLACE FUNCTION minion_accept_many(requests jsonb) RETURNS TABLE (task_id uuid, created boolean)
LANGUAGE plpgsql AS $$
DECLARE
    accepted integer := 0;
    refused integer := jsonb_array_length(requests);
    tried integer;
    state text;
    message text;
BEGIN
    PERFORM minion_notify_pending();
    IF refused = 1 THEN
        RETURN QUERY SELECT * FROM minion_insert_tasks(requests);
        RETURN;
    END IF;
    -- A condition whose code ends in 000 is the class of all codes that begin with the same two characters.
    BEGIN
        RETURN QUERY SELECT * FROM minion_insert_tasks(requests);
        RETURN;
    EXCEPTION WHEN SQLSTATE 'MN000' OR data_exception OR integrity_constraint_violation THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    END;
    -- The first `accepted` requests can be accepted together, the first `refused` ones cannot. (To accept them one by
    -- one would take their keys in another order than other calls do.)
    WHILE accepted + 1 < refused LOOP
        tried := (accepted + refused) / 2;
        BEGIN
            PERFORM minion_insert_tasks(
                jsonb_path_query_array(requests, '$[0 to $last]', jsonb_build_object('last', tried - 1)));
            accepted := tried;
            RAISE SQLSTATE 'MN000';  -- undoes the insert
        EXCEPTION WHEN SQLSTATE 'MN000' OR data_exception OR integrity_constraint_violation THEN
            IF accepted < tried THEN
                refused := tried;
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
            END IF;
        END;
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = state, MESSAGE = message, DETAIL = jsonb_build_object('index', refused - 1);
END $$;

-- Accepts one request, as `minion_insert_tasks` does.
CREATE OR REPLACE FUNCTION minion_accept(request jsonb, OUT task_id uuid, OUT created boolean) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM minion_notify_pending();
    SELECT * INTO task_id, created FROM minion_insert_tasks(jsonb_build_array(request));
END $$;

-- Accepts one request for a caller that publishes messages. If a slot is free for its task, the task is queued in the same
-- transaction, and the row has what its message needs; else these columns are NULL, and the dispatcher is notified.
-- `expected`: the version that the request is validated for, if it was resolved earlier. No row: the agent has another by
-- now, or a canary, and nothing is stored.
CREATE OR REPLACE FUNCTION minion_accept_now(request jsonb, expected uuid, lease interval)
RETURNS TABLE (task_id uuid, created boolean, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint, version_id uuid, has_model boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    accepted record;
    taken boolean := false;
BEGIN
    IF expected IS NOT NULL AND NOT EXISTS (
            SELECT FROM agents WHERE namespace = COALESCE(request->>'namespace', 'default') AND name = request->>'agent'
                AND active_version_id = expected AND status <> 'disabled'
                AND NOT EXISTS (SELECT FROM minion_canary_for(request, expected))) THEN
        RETURN;
    END IF;
    SELECT * INTO accepted FROM minion_insert_tasks(jsonb_build_array(request));
    IF accepted.created THEN
        taken := minion_take_now(accepted.task_id, lease);
    END IF;
    RETURN QUERY SELECT accepted.task_id, accepted.created, s.claim, s.capability, v.name, v.soft_time_limit, v.time_limit,
                        s.priority, v.id, v.type = 'agent'
        FROM (SELECT 1) AS always
            LEFT JOIN (task_status s JOIN tasks t ON t.id = s.task_id JOIN agent_versions v ON v.id = t.agent_version_id)
                ON taken AND s.task_id = accepted.task_id;
END $$;

-- Queues a task that this transaction has inserted, if a slot is free for it and nothing else comes first or holds tasks
-- back. Else it notifies the dispatcher, which keeps the order, the limits and the windows.
CREATE OR REPLACE FUNCTION minion_take_now(t uuid, lease interval) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    cap text := (SELECT capability FROM task_status WHERE task_id = t AND state = 'pending' AND conversation_id IS NULL);
    slots integer := (SELECT sum(w.slots) FROM workers w
                          WHERE w.status = 'online' AND w.last_seen > now() - lease AND w.capabilities @> ARRAY[cap]);
BEGIN
    IF slots > (SELECT count(*) FROM (
                    SELECT FROM task_status f WHERE f.state IN ('queued', 'running') AND f.capability = cap LIMIT slots) AS busy)
            AND NOT EXISTS (
                SELECT FROM task_status p WHERE p.state = 'pending' AND p.capability = cap AND p.task_id <> t)
            AND NOT EXISTS (SELECT FROM pauses) AND NOT EXISTS (SELECT FROM limits WHERE scope <> 'model')
            AND NOT EXISTS (SELECT FROM rate_holds WHERE until_at > now()) THEN
        UPDATE task_status SET state = 'queued', queued_at = now(), published = 1, published_at = now(), updated_at = now()
            WHERE task_id = t;
        RETURN true;
    END IF;
    PERFORM minion_notify_pending();
    RETURN false;
END $$;

-- For orchestrators of release 0.2.
CREATE OR REPLACE FUNCTION minion_refuse(agent text, idempotency text, failure jsonb, submitter text) RETURNS uuid
LANGUAGE sql AS $$
    SELECT minion_refuse_v2(agent, idempotency, left(idempotency, 255), failure, submitter, 'default', NULL)
$$;

-- Stores a refused submission as a failed task, for entry points without a caller that waits for the answer. The same
-- key returns the same task. `sent_as` is the id that the sender knows.
CREATE OR REPLACE FUNCTION minion_refuse_v2(agent text, idempotency text, sent_as text, failure jsonb, submitter text, ns text,
                                            tenant text)
RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    t uuid := minion_uuidv7();
    holder uuid;
BEGIN
    agent := left(agent, 200);
    idempotency := left(idempotency, 255);
    holder := (minion_hold_idempotency(ns, idempotency, t, failure)).task_id;
    IF holder <> t THEN
        RETURN holder;
    END IF;
    INSERT INTO tasks (id, namespace, agent_name, root_id, origin_id, labels, submitted_by, key)
        VALUES (t, ns, agent, t, t, jsonb_build_object('celery_id', sent_as), submitter, tenant);
    INSERT INTO task_status (task_id, state, namespace, agent_name, key, rank)
        VALUES (t, 'pending', ns, COALESCE(agent, ''), COALESCE(tenant, ''), minion_rank(now(), 0));
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN t;
END $$;
