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
                WHERE (jsonb_typeof(message) = 'object' AND jsonb_typeof(message->'content') = 'string'
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
    IF labels IS NOT NULL THEN
        IF jsonb_typeof(labels) <> 'object' OR octet_length(labels::text) > 65536
                OR jsonb_path_exists(labels, 'strict $.* ? (@.type() != "string")') THEN
            RAISE EXCEPTION 'labels must be an object whose values are text, of at most 64 KB.' USING ERRCODE = 'MN007';
        END IF;
    END IF;
    IF messages IS NOT NULL AND NOT minion_are_messages(messages) THEN
        RAISE EXCEPTION 'messages must be a list of 1 to 1000 objects, each with `role` (user, assistant or system) '
            'and `content` (text).' USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION minion_check_times(request jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
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

CREATE OR REPLACE FUNCTION minion_check_unique(k text, held text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF char_length(k) NOT BETWEEN 1 AND 255 OR held NOT IN ('pending', 'running') THEN
        RAISE EXCEPTION 'unique_key must have 1 to 255 characters, and unique_while must be pending or running.'
            USING ERRCODE = 'MN007';
    END IF;
END $$;

-- Takes a unique key for a task, or returns the task that holds it.
CREATE OR REPLACE FUNCTION minion_hold_unique(ns text, k text, t uuid, held text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    holder uuid;
BEGIN
    PERFORM minion_check_unique(k, held);
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

-- The part of a request that must be the same whenever its idempotency key is used again.
CREATE OR REPLACE FUNCTION minion_payload(request jsonb) RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT jsonb_build_object(
        'agent', request->'agent', 'capability', request->'capability', 'input', request->'input',
        'messages', request->'messages', 'conversation_id', request->'conversation_id', 'key', request->'key')
$$;

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

-- The origin of a sub-task's idempotency keys, derived from its parent's origin and the step that created it, so that a
-- replay of the tree presents the same keys to outside systems.
CREATE OR REPLACE FUNCTION minion_effect_origin(parent uuid, step integer) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT encode(substring(sha256(convert_to(parent::text || '/' || step::text, 'UTF8')) FOR 16), 'hex')::uuid
$$;

-- The only insert of tasks, used by every entry point. `request` holds agent | capability | messages, input, and
-- optionally input_order (of its keys: `minion_key_order`), namespace, idempotency_key, key, labels, priority, run_at,
-- deadline, conversation_id, parent_id, parent_step, replay_of, new_keys (a replay whose calls get new idempotency
-- keys), agent_version_id, traceparent, submitted_by, unique_key, unique_while, budget ({tokens, dollars, steps,
-- seconds, on_breach}), and `validated`: the id of the agent version whose input schema the caller has already checked
-- the input against.
CREATE OR REPLACE FUNCTION minion_accept(request jsonb, OUT task_id uuid, OUT created boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    idempotency text := request->>'idempotency_key';
    asked jsonb := minion_payload(request);
    earlier record;
    target record;
    parent record;
    origin uuid;
    effects uuid;
    child_depth integer := 0;
    begins timestamptz;
    ends timestamptz;
    checked boolean;
    unique_key text := request->>'unique_key';
    holder uuid;
    urgency smallint;
    budget jsonb;
    talk text;
BEGIN
    PERFORM minion_check_request(request);
    PERFORM minion_check_json(request->'input', 'The input');
    PERFORM minion_check_json(request->'messages', 'The list of messages');
    PERFORM minion_check_times(request);
    begins := request->>'run_at';
    ends := request->>'deadline';
    task_id := minion_uuidv7();
    created := true;

    IF idempotency IS NOT NULL THEN
        SELECT * INTO earlier FROM minion_hold_idempotency(ns, idempotency, task_id, asked);
        IF earlier.task_id <> task_id THEN
            IF earlier.request <> asked THEN
                RAISE EXCEPTION 'The idempotency key % was used before with another payload (task %). '
                    'Use a new key for a new payload.', quote_literal(left(idempotency, 200)), earlier.task_id
                    USING ERRCODE = 'MN005';
            END IF;
            task_id := earlier.task_id;
            created := false;
            RETURN;
        END IF;
    END IF;

    IF unique_key IS NOT NULL THEN
        holder := minion_hold_unique(ns, unique_key, task_id, COALESCE(request->>'unique_while', 'running'));
        IF holder <> task_id THEN
            UPDATE idempotency_keys k SET task_id = holder WHERE k.namespace = ns AND k.key = idempotency;
            task_id := holder;
            created := false;
            RETURN;
        END IF;
    END IF;

    SELECT * INTO target FROM minion_resolve(request);
    -- The preparer looks into messages further than PostgreSQL does.
    checked := target.version_id IS NOT NULL AND (
        request->>'validated' = target.version_id::text
        OR target.input_schema IS NULL AND COALESCE(request->'messages', 'null'::jsonb) = 'null'::jsonb);

    -- Without a parent the record is all NULL.
    SELECT t.id, t.root_id, t.key, t.labels, t.submitted_by, t.traceparent, t.deadline, s.priority, s.rank,
           t.budget_ids, COALESCE(t.effect_origin, t.origin_id) AS effect_origin
        INTO parent FROM tasks t JOIN task_status s ON s.task_id = t.id
        WHERE t.id = (request->>'parent_id')::uuid;
    IF parent.id IS NOT NULL THEN
        child_depth := minion_check_depth(parent.id);
        ends := LEAST(ends, parent.deadline);
        effects := minion_effect_origin(parent.effect_origin, (request->>'parent_step')::integer);
    END IF;
    IF request->>'replay_of' IS NOT NULL THEN
        SELECT origin_id, effect_origin INTO origin, effects FROM tasks WHERE id = (request->>'replay_of')::uuid;
        IF request->'new_keys' = 'true' THEN
            effects := task_id;
        END IF;
    END IF;
    budget := minion_budget_for(request, target.version_id);

    INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, input_order, messages, parent_id,
                       parent_step, root_id, depth, replay_of, origin_id, effect_origin, conversation_id, key,
                       labels,
                       submitted_by, traceparent, deadline, budget_ids)
    VALUES (task_id, ns, target.agent_name, target.version_id, request->>'capability',
            CASE WHEN request ? 'input' THEN request->'input' END,
            NULLIF(request->'input_order', 'null'::jsonb),
            NULLIF(request->'messages', 'null'::jsonb),
            parent.id, (request->>'parent_step')::integer, COALESCE(parent.root_id, task_id), child_depth,
            (request->>'replay_of')::uuid, COALESCE(origin, task_id), effects, request->>'conversation_id',
            COALESCE(request->>'key', parent.key),
            COALESCE(NULLIF(request->'labels', 'null'::jsonb), parent.labels, '{}'::jsonb),
            COALESCE(request->>'submitted_by', parent.submitted_by),
            COALESCE(request->>'traceparent', parent.traceparent), ends,
            CASE WHEN budget IS NULL THEN parent.budget_ids ELSE parent.budget_ids || task_id END);
    IF budget IS NOT NULL THEN
        PERFORM minion_open_budget(task_id, budget);
    END IF;
    urgency := COALESCE((request->>'priority')::smallint, parent.priority, 0);
    -- Sub-tasks do not wait for a predecessor.
    talk := CASE WHEN parent.id IS NULL THEN request->>'conversation_id' END;
    INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline, namespace, agent_name, key,
                             conversation_id, rank)
    VALUES (task_id, CASE WHEN begins > now() THEN 'scheduled' ELSE 'pending' END,
            CASE WHEN checked THEN target.queue END, urgency,
            CASE WHEN begins > now() THEN begins END, ends,
            ns, COALESCE(target.agent_name, ''), COALESCE(request->>'key', parent.key, ''), talk,
            -- Work that has begun comes first: a sub-task gets its parent's position.
            CASE WHEN parent.id IS NOT NULL AND begins IS NULL
                 THEN parent.rank - (urgency - parent.priority)::bigint * 60000000
                 ELSE minion_place(task_id, ns, talk, GREATEST(begins, clock_timestamp()), urgency) END);
    PERFORM minion_notify_pending();
END $$;

-- Stores a refused submission as a failed task, for entry points without a caller that waits for the answer. The same
-- key returns the same task.
CREATE OR REPLACE FUNCTION minion_refuse(agent text, idempotency text, failure jsonb, submitter text) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    t uuid := minion_uuidv7();
    holder uuid;
BEGIN
    agent := left(agent, 200);
    idempotency := left(idempotency, 255);
    holder := (minion_hold_idempotency('default', idempotency, t, failure)).task_id;
    IF holder <> t THEN
        RETURN holder;
    END IF;
    INSERT INTO tasks (id, agent_name, root_id, origin_id, labels, submitted_by)
        VALUES (t, agent, t, t, jsonb_build_object('celery_id', idempotency), submitter);
    INSERT INTO task_status (task_id, state, agent_name, key, rank)
        VALUES (t, 'pending', COALESCE(agent, ''), '', minion_rank(now(), 0));
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN t;
END $$;
