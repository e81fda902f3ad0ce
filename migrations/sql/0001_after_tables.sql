-- The functions through which every task changes, and the triggers that refuse what no function should do.
--
-- Lock order, everywhere: ancestors first, siblings by id. A function that ends a task locks its parent's status
-- row, then the task's own. Errors of class MN are expected: `shared/database.py` turns them into MinionErrors.
--
--   MN001 unknown agent      MN002 unknown capability   MN003 ambiguous route   MN004 agent disabled
--   MN005 idempotency key    MN006 too large            MN007 invalid input     MN008 no such task

-- ---------------------------------------------------------------------------------------------- invariants

CREATE FUNCTION minion_transition_allowed(before text, after text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (before, after) IN ({transitions})
$$;

CREATE FUNCTION minion_check_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state NOT IN ('scheduled', 'pending') THEN
            RAISE EXCEPTION 'a task cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NOT minion_transition_allowed(OLD.state, NEW.state) THEN
        RAISE EXCEPTION 'a task cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER task_status_transition BEFORE UPDATE OF state ON task_status
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION minion_check_transition();
CREATE TRIGGER task_status_beginning BEFORE INSERT ON task_status
    FOR EACH ROW EXECUTE FUNCTION minion_check_transition();

CREATE FUNCTION minion_claims_only_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a claim number never goes back (% to %)', OLD.claim, NEW.claim
        USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER task_status_claim BEFORE UPDATE OF claim ON task_status
    FOR EACH ROW WHEN (NEW.claim < OLD.claim) EXECUTE FUNCTION minion_claims_only_grow();

CREATE FUNCTION minion_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % never changes; store a new version', TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER agent_versions_immutable BEFORE UPDATE ON agent_versions
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER tool_versions_immutable BEFORE UPDATE ON tool_versions
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER function_versions_immutable BEFORE UPDATE ON function_versions
    FOR EACH ROW WHEN (to_jsonb(OLD) - '{status,status_reason,released_at}'::text[]
                       IS DISTINCT FROM to_jsonb(NEW) - '{status,status_reason,released_at}'::text[])
    EXECUTE FUNCTION minion_refuse_change();
-- What an agent version pins and whom it calls is part of it.
CREATE TRIGGER agent_version_tools_immutable BEFORE UPDATE ON agent_version_tools
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER relations_immutable BEFORE UPDATE ON relations
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER contents_immutable BEFORE UPDATE ON contents
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER task_outcomes_immutable BEFORE UPDATE ON task_outcomes
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER tasks_immutable BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (
        (OLD.agent_version_id IS NOT NULL AND NEW.agent_version_id IS DISTINCT FROM OLD.agent_version_id)
        OR (OLD.agent_name IS NOT NULL AND NEW.agent_name IS DISTINCT FROM OLD.agent_name)
        OR (OLD.id, OLD.namespace, OLD.root_id, OLD.origin_id, OLD.depth, OLD.created_at)
            IS DISTINCT FROM (NEW.id, NEW.namespace, NEW.root_id, NEW.origin_id, NEW.depth, NEW.created_at)
        OR (OLD.input, OLD.messages, OLD.parent_id, OLD.parent_step, OLD.conversation_id)
            IS DISTINCT FROM (NEW.input, NEW.messages, NEW.parent_id, NEW.parent_step, NEW.conversation_id)
        OR (OLD.capability, OLD.key, OLD.labels, OLD.submitted_by, OLD.traceparent, OLD.journal_format, OLD.deadline)
            IS DISTINCT FROM (NEW.capability, NEW.key, NEW.labels, NEW.submitted_by, NEW.traceparent,
                              NEW.journal_format, NEW.deadline)
        -- The task that was replayed may be deleted.
        OR (NEW.replay_of IS NOT NULL AND NEW.replay_of IS DISTINCT FROM OLD.replay_of))
    EXECUTE FUNCTION minion_refuse_change();

-- ---------------------------------------------------------------------------------------------- accepting

-- Refuses JSON that a Python process could not hold. The cheap tests on the text come first.
CREATE FUNCTION minion_check_json(value jsonb, what text) RETURNS void LANGUAGE plpgsql AS $$
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

CREATE FUNCTION minion_are_messages(candidates jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(candidates) = 'array' THEN
        jsonb_array_length(candidates) BETWEEN 1 AND 1000 AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(candidates) AS c (message)
                WHERE (jsonb_typeof(message) = 'object' AND jsonb_typeof(message->'content') = 'string'
                       AND message->>'role' IN ('user', 'assistant', 'system', 'tool')) IS NOT TRUE)
        ELSE false END
$$;

-- Refuses what must not be stored, whichever way it came in: the Python ways have checked most of it before.
-- (Python can read no time after the year 9999, and no index holds a key of several kilobytes.)
CREATE FUNCTION minion_check_request(request jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fault record;
    labels jsonb := NULLIF(request->'labels', 'null'::jsonb);
    messages jsonb := NULLIF(request->'messages', 'null'::jsonb);
BEGIN
    SELECT f.name, char_length(request->>f.name) AS size, f.most INTO fault
        FROM (VALUES ('agent', 0, 200), ('capability', 0, 200), ('idempotency_key', 1, 255), ('key', 1, 255),
                     ('conversation_id', 1, 255), ('namespace', 1, 100)) AS f (name, least, most)
        WHERE char_length(request->>f.name) NOT BETWEEN f.least AND f.most LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% has % characters; 1 to % are accepted.', fault.name, fault.size, fault.most
            USING ERRCODE = 'MN007';
    ELSIF request->>'traceparent' !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'traceparent is not one of W3C Trace Context.' USING ERRCODE = 'MN007';
    ELSIF (request->>'priority')::numeric NOT BETWEEN -100 AND 100 THEN
        RAISE EXCEPTION 'priority is %; -100 to 100 are accepted.', request->>'priority' USING ERRCODE = 'MN007';
    END IF;
    SELECT t.name INTO fault FROM (VALUES ('run_at'), ('deadline')) AS t (name)
        WHERE (request->>t.name)::timestamptz NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% is not a time between the years 1970 and 9999.', fault.name USING ERRCODE = 'MN007';
    END IF;
    IF labels IS NOT NULL THEN
        IF jsonb_typeof(labels) <> 'object' OR octet_length(labels::text) > 65536
                OR jsonb_path_exists(labels, 'strict $.* ? (@.type() != "string")') THEN
            RAISE EXCEPTION 'labels are an object whose values are text, 64 KB at most.' USING ERRCODE = 'MN007';
        END IF;
    END IF;
    IF messages IS NOT NULL AND NOT minion_are_messages(messages) THEN
        RAISE EXCEPTION 'messages are a list of 1 to 1000 objects, each with `role` (user, assistant, system or tool) '
            'and `content` (text).' USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE FUNCTION minion_notify_pending() RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('minion_pending', '')
$$;

-- The agent version that a request names, and the queue that serves it. No row: to be routed by message.
CREATE FUNCTION minion_resolve(request jsonb, OUT version_id uuid, OUT agent_name text, OUT queue text,
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
            RAISE EXCEPTION 'No agent offers the capability %. `minion capabilities` lists what there is.',
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
    input_schema := found.input_schema;
END $$;

-- How deep a sub-task of `parent` may lie: every ancestor's max_chain_depth counts from its own depth.
CREATE FUNCTION minion_check_depth(parent uuid) RETURNS integer LANGUAGE plpgsql AS $$
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

-- The one insert behind every way in. `request` holds agent | capability | messages, input, and optionally
-- namespace, idempotency_key, key, labels, priority, run_at, deadline, conversation_id, parent_id, parent_step,
-- replay_of, agent_version_id, traceparent, submitted_by, and `validated`: the id of the agent version whose
-- input schema the caller has already checked the input against.
CREATE FUNCTION minion_accept(request jsonb, OUT task_id uuid, OUT created boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    idempotency text := request->>'idempotency_key';
    asked jsonb := jsonb_build_object(
        'agent', request->'agent', 'capability', request->'capability', 'input', request->'input',
        'messages', request->'messages', 'conversation_id', request->'conversation_id', 'key', request->'key');
    earlier record;
    target record;
    parent record;
    origin uuid;
    child_depth integer := 0;
    begins timestamptz;
    ends timestamptz;
    checked boolean;
BEGIN
    PERFORM minion_check_request(request);
    PERFORM minion_check_json(request->'input', 'The input');
    PERFORM minion_check_json(request->'messages', 'The list of messages');
    begins := request->>'run_at';
    ends := request->>'deadline';
    task_id := minion_uuidv7();
    created := true;

    IF idempotency IS NOT NULL THEN
        INSERT INTO idempotency_keys (namespace, key, task_id, request) VALUES (ns, idempotency, task_id, asked)
            ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT k.task_id, k.request INTO earlier FROM idempotency_keys k
                WHERE k.namespace = ns AND k.key = idempotency;
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

    SELECT * INTO target FROM minion_resolve(request);
    checked := target.version_id IS NOT NULL
        AND (target.input_schema IS NULL OR request->>'validated' = target.version_id::text);

    -- Without a parent the record is all NULL.
    SELECT t.id, t.root_id, t.key, t.labels, t.submitted_by, t.traceparent, t.deadline, s.priority
        INTO parent FROM tasks t JOIN task_status s ON s.task_id = t.id
        WHERE t.id = (request->>'parent_id')::uuid;
    IF parent.id IS NOT NULL THEN
        child_depth := minion_check_depth(parent.id);
        ends := LEAST(ends, parent.deadline);
    END IF;
    IF request->>'replay_of' IS NOT NULL THEN
        SELECT origin_id INTO origin FROM tasks WHERE id = (request->>'replay_of')::uuid;
    END IF;

    INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, messages, parent_id,
                       parent_step, root_id, depth, replay_of, origin_id, conversation_id, key, labels,
                       submitted_by, traceparent, deadline)
    VALUES (task_id, ns, target.agent_name, target.version_id, request->>'capability',
            CASE WHEN request ? 'input' THEN request->'input' END,
            NULLIF(request->'messages', 'null'::jsonb),
            parent.id, (request->>'parent_step')::integer, COALESCE(parent.root_id, task_id), child_depth,
            (request->>'replay_of')::uuid, COALESCE(origin, task_id), request->>'conversation_id',
            COALESCE(request->>'key', parent.key),
            COALESCE(NULLIF(request->'labels', 'null'::jsonb), parent.labels, '{}'::jsonb),
            COALESCE(request->>'submitted_by', parent.submitted_by),
            COALESCE(request->>'traceparent', parent.traceparent), ends);
    INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline)
    VALUES (task_id, CASE WHEN begins > now() THEN 'scheduled' ELSE 'pending' END,
            CASE WHEN checked THEN target.queue END,
            COALESCE((request->>'priority')::smallint, parent.priority, 0),
            CASE WHEN begins > now() THEN begins END, ends);
    PERFORM minion_notify_pending();
END $$;

-- For SQL callers, whatever their search_path: the task exists if and only if their transaction commits.
-- Without input and messages the input is {}.
CREATE FUNCTION minion_submit(
    agent text,
    input jsonb DEFAULT NULL,
    capability text DEFAULT NULL,
    messages jsonb DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    key text DEFAULT NULL,
    labels jsonb DEFAULT NULL,
    priority integer DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    deadline timestamptz DEFAULT NULL,
    conversation_id text DEFAULT NULL,
    namespace text DEFAULT 'default',
    traceparent text DEFAULT NULL
) RETURNS uuid LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'capability', capability, 'messages', messages,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user)
        || CASE WHEN input IS NOT NULL OR messages IS NULL
                THEN jsonb_build_object('input', COALESCE(input, '{}'::jsonb)) ELSE '{}'::jsonb END)
$$;

-- ---------------------------------------------------------------------------------------------- dispatching

-- Pins the agent version of a task that was routed by message, or releases one whose input has been checked.
CREATE FUNCTION minion_route(t uuid, version uuid, queue text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE task_status SET capability = queue, updated_at = now()
        WHERE task_id = t AND state = 'pending' AND capability IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tasks SET agent_version_id = version, agent_name = (SELECT name FROM agent_versions WHERE id = version)
        WHERE id = t AND agent_version_id IS NULL;
    RETURN true;
END $$;

-- Takes pending tasks, the most urgent first, as far as each capability's window in the broker has room:
-- twice the live slots, and `smallest_window` at least. Capabilities that nobody serves stay pending.
CREATE FUNCTION minion_dispatch(lease interval, smallest_window integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE sql AS $$
    WITH served AS (
        SELECT c.name, sum(w.slots) AS slots FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - lease GROUP BY c.name
    ), rooms AS (
        SELECT s.name, GREATEST(0, GREATEST(2 * s.slots, smallest_window) - (
                SELECT count(*) FROM task_status q WHERE q.state = 'queued' AND q.capability = s.name)) AS room
            FROM served s
    ), next AS (
        SELECT n.task_id FROM rooms r CROSS JOIN LATERAL (
            SELECT p.task_id FROM task_status p WHERE p.state = 'pending' AND p.capability = r.name
                ORDER BY p.priority DESC, p.task_id LIMIT r.room FOR NO KEY UPDATE SKIP LOCKED) n
    ), queued AS (
        UPDATE task_status s SET state = 'queued', queued_at = now(), published = 1, published_at = now(),
                                 updated_at = now()
            FROM next WHERE s.task_id = next.task_id AND s.state = 'pending'
            RETURNING s.task_id, s.claim, s.capability, s.priority
    )
    SELECT q.task_id, q.claim, q.capability, t.agent_name, v.soft_time_limit, v.time_limit, q.priority
        FROM queued q JOIN tasks t ON t.id = q.task_id JOIN agent_versions v ON v.id = t.agent_version_id
        ORDER BY q.priority DESC, q.task_id
$$;

-- Messages presumed lost: queued although a live worker of the capability has had a free slot for `patience`.
-- They are published again under the same claim, each time after twice the patience.
-- `empty` names the queues that hold no message: where one does, its worker will come to it.
CREATE FUNCTION minion_republish(lease interval, patience interval, empty text[], most integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE sql AS $$
    WITH stalled AS (
        SELECT s.task_id FROM task_status s
            WHERE s.state = 'queued' AND s.capability = ANY (empty) AND s.published_at < now() - patience * power(2, LEAST(s.published, 7) - 1)
              AND EXISTS (
                SELECT 1 FROM workers w WHERE w.status = 'online' AND w.last_seen > now() - lease
                    AND s.capability = ANY (w.capabilities) AND w.idle_since < now() - patience)
            ORDER BY s.published_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    ), again AS (
        UPDATE task_status s SET published = s.published + 1, published_at = now()
            FROM stalled WHERE s.task_id = stalled.task_id
            RETURNING s.task_id, s.claim, s.capability, s.priority
    )
    SELECT a.task_id, a.claim, a.capability, t.agent_name, v.soft_time_limit, v.time_limit, a.priority
        FROM again a JOIN tasks t ON t.id = a.task_id JOIN agent_versions v ON v.id = t.agent_version_id
$$;

-- Scheduled tasks that are due, and waiting ones whose timer ran out or that have nothing left to wait for.
CREATE FUNCTION minion_wake_due(most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    woken integer;
BEGIN
    WITH due AS (
        SELECT task_id FROM task_status
            WHERE (state IN ('scheduled', 'waiting') AND due_at <= now())
               OR (state = 'waiting' AND wait_reason = 'subtask' AND open_waits = 0)
            ORDER BY due_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE task_status s SET state = 'pending', due_at = NULL, wait_reason = NULL, open_waits = 0,
                             updated_at = now()
        FROM due WHERE s.task_id = due.task_id;
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

-- ---------------------------------------------------------------------------------------------- running

-- A journal as the next run reads it: the steps in order, a finished sub-task with its outcome.
CREATE FUNCTION minion_journal(t uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT COALESCE(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'number', s.number, 'kind', s.kind, 'name', s.name, 'status', s.status, 'effect', s.effect,
               'request_hash', s.request_hash, 'error', s.error, 'child_id', s.child_id))
           || jsonb_build_object('output', s.output)
           || CASE WHEN o.task_id IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('outcome', jsonb_build_object(
               'state', o.state, 'output', COALESCE(o.output, c.value), 'error', o.error)) END
           ORDER BY s.number), '[]'::jsonb)
    FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
    WHERE s.task_id = t
$$;

-- A minion takes a queued task: the claim number goes up and fences everybody who held it before.
-- NULL: somebody else has it, it has ended, or this worker is not known to be alive.
CREATE FUNCTION minion_claim(t uuid, expected integer, w uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    now_at task_status;
BEGIN
    UPDATE task_status SET state = 'running', claim = claim + 1, worker_id = w, updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected AND (deadline IS NULL OR deadline > now())
          AND EXISTS (SELECT 1 FROM workers WHERE id = w AND status = 'online')
        RETURNING * INTO now_at;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO executions (task_id, claim, worker_id) VALUES (t, now_at.claim, w);
    RETURN (SELECT to_jsonb(tasks) FROM tasks WHERE id = t) || jsonb_build_object(
        'claim', now_at.claim, 'attempts', now_at.attempts, 'queue', now_at.capability,
        'steps', CASE WHEN now_at.claim > 1 THEN minion_journal(t) ELSE '[]'::jsonb END);
END $$;

-- The fence: locks the status row if this claim still holds it.
CREATE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t AND claim = c AND state = 'running' FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

CREATE FUNCTION minion_put_steps(t uuid, c integer, journal jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, output, error,
                       stdout, usage, cost_microdollars, function_version_id, started_at, finished_at)
    SELECT t, s.number, s.kind, s.name, s.status, COALESCE(s.effect, 'pure'), s.request_hash, c, s.input, s.output,
           s.error, s.stdout, s.usage, COALESCE(s.cost_microdollars, 0), s.function_version_id, COALESCE(s.started_at, now()),
           s.finished_at
        FROM jsonb_to_recordset(journal) AS s (
            number integer, kind text, name text, status text, effect text, request_hash text, input jsonb,
            output jsonb, error jsonb, stdout text, usage jsonb, cost_microdollars bigint,
            function_version_id uuid, started_at timestamptz, finished_at timestamptz)
    ON CONFLICT (task_id, number) DO UPDATE SET
        status = EXCLUDED.status, output = EXCLUDED.output, error = EXCLUDED.error, stdout = EXCLUDED.stdout,
        usage = EXCLUDED.usage, cost_microdollars = EXCLUDED.cost_microdollars, claim = EXCLUDED.claim,
        finished_at = EXCLUDED.finished_at
        WHERE steps.status IN ('started', 'failed')
$$;

-- Commits steps under the fence. NULL: the fence is lost, stop; else the flags that the minion must obey.
CREATE FUNCTION minion_write_steps(t uuid, c integer, journal jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    PERFORM minion_put_steps(t, c, journal);
    RETURN (SELECT jsonb_build_object('cancel', cancel_requested) FROM task_status WHERE task_id = t);
END $$;

CREATE FUNCTION minion_close_execution(t uuid, c integer, how text, result jsonb) RETURNS void LANGUAGE sql AS $$
    UPDATE executions SET
        outcome = how, finished_at = now(), error = NULLIF(result->'error', 'null'::jsonb),
        cpu_seconds = (result->>'cpu_seconds')::double precision,
        peak_memory_bytes = (result->>'peak_memory_bytes')::bigint,
        input_tokens = COALESCE((result->>'input_tokens')::bigint, 0),
        output_tokens = COALESCE((result->>'output_tokens')::bigint, 0),
        cost_microdollars = COALESCE((result->>'cost_microdollars')::bigint, 0)
    WHERE task_id = t AND claim = c AND outcome = 'running'
$$;

-- Large values are stored once, by their SHA-256.
CREATE FUNCTION minion_store_content(value jsonb) RETURNS text LANGUAGE sql AS $$
    WITH content AS (SELECT encode(sha256(convert_to(value::text, 'UTF8')), 'hex') AS sha256), stored AS (
        INSERT INTO contents (sha256, value) SELECT sha256, value FROM content ON CONFLICT DO NOTHING
    )
    SELECT sha256 FROM content
$$;

-- What people group failures by: the kind of error and its text without numbers, ids and quoted values.
CREATE FUNCTION minion_fingerprint(error jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(convert_to(COALESCE(error->>'type', '') || ':' || left(regexp_replace(left(
        COALESCE(error->>'message', ''), 10000), '''[^'']*''|"[^"]*"|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]+', '#', 'g'), 500),
        'UTF8')), 'hex'), 16)
$$;

-- Ends a task for good and tells its parent. The caller holds the locks: the parent's row, then the task's.
CREATE FUNCTION minion_settle(t uuid, final text, result jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    value jsonb := result->'output';
    large boolean := octet_length((result->'output')::text) > 65536;
    failure jsonb := NULLIF(result->'error', 'null'::jsonb);
    parent record;
    awake text;
BEGIN
    UPDATE task_status SET state = final, worker_id = NULL, wait_reason = NULL, due_at = NULL, open_waits = 0,
                           updated_at = now()
        WHERE task_id = t;
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, error, error_fingerprint)
    VALUES (t, final, CASE WHEN NOT large THEN value END, CASE WHEN large THEN minion_store_content(value) END,
            failure, CASE WHEN failure IS NOT NULL THEN minion_fingerprint(failure) END);
    SELECT parent_id AS id, parent_step AS step INTO parent FROM tasks WHERE id = t;
    IF parent.id IS NULL THEN
        RETURN;
    END IF;
    UPDATE steps SET status = CASE WHEN final = 'succeeded' THEN 'finished' ELSE 'failed' END, finished_at = now()
        WHERE task_id = parent.id AND number = parent.step;
    UPDATE task_status SET
            open_waits = open_waits - 1,
            state = CASE WHEN open_waits = 1 THEN 'pending' ELSE state END,
            wait_reason = CASE WHEN open_waits = 1 THEN NULL ELSE wait_reason END,
            updated_at = now()
        WHERE task_id = parent.id AND state = 'waiting' AND open_waits > 0
        RETURNING state INTO awake;
    IF awake = 'pending' THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;

CREATE FUNCTION minion_lock_parent(t uuid) RETURNS void LANGUAGE sql AS $$
    SELECT 1 FROM task_status WHERE task_id = (SELECT parent_id FROM tasks WHERE id = t) FOR NO KEY UPDATE
$$;

-- A minion ends its task under the fence: last steps, execution, messages and outcome in one transaction.
-- `result`: {output, error, steps, messages, cpu_seconds, peak_memory_bytes, input_tokens, output_tokens,
-- cost_microdollars}. NULL: the fence is lost. Else the state it ended in: a cancel that came first wins.
CREATE FUNCTION minion_finish(t uuid, c integer, final text, result jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    owner record;
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    IF (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        final := 'cancelled';
        result := result || '{"output": null, "error": {"type": "cancelled", "message": "Cancelled while it ran."}}';
    END IF;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    PERFORM minion_close_execution(t, c, final, result);
    PERFORM minion_settle(t, final, result);
    SELECT namespace, conversation_id INTO owner FROM tasks WHERE id = t;
    IF final = 'succeeded' AND owner.conversation_id IS NOT NULL AND result ? 'messages' THEN
        INSERT INTO conversations (namespace, id) VALUES (owner.namespace, owner.conversation_id)
            ON CONFLICT DO NOTHING;
        INSERT INTO messages (namespace, conversation_id, task_id, role, content)
            SELECT owner.namespace, owner.conversation_id, t, m.value->>'role', m.value->'content'
                FROM jsonb_array_elements(result->'messages') WITH ORDINALITY AS m (value, n) ORDER BY m.n;
    END IF;
    RETURN final;
END $$;

-- Gives a running task back, to run again after `delay`: a retryable error, a lost child or worker, a hand-back.
-- `charged` counts an attempt; a task whose attempts are used up fails with the error. Lost workers are not
-- charged, but a task that has lost as many of them as it has attempts (three at least) is stopped too.
-- NULL: the fence is lost. Else the state that the task is in now.
CREATE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now_at task_status;
    most integer;
    failure jsonb := NULLIF(result->'error', 'null'::jsonb);
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    UPDATE task_status SET attempts = attempts + charged::integer, losses = losses + (how = 'lost')::integer
        WHERE task_id = t RETURNING * INTO now_at;
    SELECT max_attempts INTO most FROM agent_versions WHERE id = (SELECT agent_version_id FROM tasks WHERE id = t);
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    IF now_at.cancel_requested THEN
        PERFORM minion_close_execution(t, c, 'cancelled', result);
        PERFORM minion_settle(t, 'cancelled',
            '{"error": {"type": "cancelled", "message": "Cancelled while it ran."}}'::jsonb);
        RETURN 'cancelled';
    ELSIF (charged AND now_at.attempts >= most) OR (how = 'lost' AND now_at.losses >= GREATEST(most, 3)) THEN
        failure := COALESCE(failure, '{"type": "lost"}'::jsonb) || jsonb_build_object(
            'attempts', now_at.attempts, 'losses', now_at.losses, 'max_attempts', most);
        PERFORM minion_close_execution(t, c, CASE WHEN how = 'lost' THEN 'lost' ELSE 'failed' END, result);
        PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
        RETURN 'failed';
    END IF;
    PERFORM minion_close_execution(t, c, how, result);
    IF delay > interval '0' THEN
        UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = 'backoff', due_at = now() + delay,
                               updated_at = now()
            WHERE task_id = t;
        RETURN 'waiting';
    END IF;
    UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;

-- Creates sub-tasks and suspends their parent in one transaction. `children`: [{step, name, request_hash,
-- request}]. NULL: the fence is lost.
CREATE FUNCTION minion_suspend(t uuid, c integer, result jsonb, children jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    child record;
    child_task uuid;
    ns text := (SELECT namespace FROM tasks WHERE id = t);
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    IF (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        PERFORM minion_close_execution(t, c, 'cancelled', result);
        PERFORM minion_settle(t, 'cancelled',
            '{"error": {"type": "cancelled", "message": "Cancelled while it ran."}}'::jsonb);
        RETURN 'cancelled';
    END IF;
    FOR child IN SELECT * FROM jsonb_to_recordset(children)
            AS x (step integer, name text, request_hash text, request jsonb) LOOP
        SELECT task_id INTO child_task FROM minion_accept(child.request || jsonb_build_object(
            'namespace', ns, 'parent_id', t, 'parent_step', child.step));
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, child_id)
        VALUES (t, child.step, 'subtask', child.name, 'started', 'pure', child.request_hash, c, child_task);
    END LOOP;
    PERFORM minion_close_execution(t, c, 'suspended', result);
    UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = 'subtask',
                           open_waits = jsonb_array_length(children), updated_at = now()
        WHERE task_id = t;
    RETURN 'waiting';
END $$;

-- ---------------------------------------------------------------------------------------------- ending early

-- Ends a pending task before it ever ran: its input is invalid, or nobody can be found to run it.
CREATE FUNCTION minion_reject(t uuid, failure jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND state = 'pending' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN true;
END $$;

-- Stores a submission that was refused where nobody waits for the answer, as a failed task. The same key gives the
-- same task.
CREATE FUNCTION minion_refuse(agent text, idempotency text, failure jsonb, submitter text) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    t uuid := minion_uuidv7();
BEGIN
    agent := left(agent, 200);
    idempotency := left(idempotency, 255);
    INSERT INTO idempotency_keys (namespace, key, task_id, request) VALUES ('default', idempotency, t, failure)
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN (SELECT task_id FROM idempotency_keys WHERE namespace = 'default' AND key = idempotency);
    END IF;
    INSERT INTO tasks (id, agent_name, root_id, origin_id, labels, submitted_by)
        VALUES (t, agent, t, t, jsonb_build_object('celery_id', idempotency), submitter);
    INSERT INTO task_status (task_id, state) VALUES (t, 'pending');
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN t;
END $$;

-- Ends a task and everything below it. The task itself becomes `final` ('cancelled' or 'expired'); what is below
-- is cancelled. A running task that is cancelled is asked to stop; one that expires loses its claim at once.
-- Returns the state the task is in now.
CREATE FUNCTION minion_end_tree(t uuid, final text, failure jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    generation uuid[] := ARRAY[t];
    member uuid;
    state_now text;
    ended text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM tasks WHERE id = t) THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    END IF;
    PERFORM minion_lock_parent(t);
    -- One generation after the other: whoever is locked makes no more children, so the next look finds them all.
    WHILE generation IS NOT NULL LOOP
        FOREACH member IN ARRAY generation LOOP
            SELECT state INTO state_now FROM task_status WHERE task_id = member FOR NO KEY UPDATE;
            ended := CASE WHEN member = t THEN final ELSE 'cancelled' END;
            IF state_now IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
                CONTINUE;
            ELSIF state_now = 'running' AND ended = 'cancelled' THEN
                UPDATE task_status SET cancel_requested = true WHERE task_id = member;
            ELSE
                UPDATE executions SET outcome = ended, finished_at = now(), error = failure
                    WHERE task_id = member AND outcome = 'running';
                PERFORM minion_settle(member, ended, jsonb_build_object('error', failure));
            END IF;
        END LOOP;
        SELECT array_agg(id ORDER BY id) INTO generation FROM tasks WHERE parent_id = ANY (generation);
    END LOOP;
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

-- ---------------------------------------------------------------------------------------------- quarantine

-- Stores a security event of a function version, and quarantines the version at the `threshold`-th since it was
-- stored or last released (0: never). Returns the version's status now.
CREATE FUNCTION minion_security_event(version uuid, task uuid, what text, facts jsonb, threshold integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    head function_versions;
    seen integer;
BEGIN
    SELECT * INTO head FROM function_versions WHERE id = version FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    INSERT INTO security_events (function_version_id, task_id, kind, detail) VALUES (version, task, what, facts);
    SELECT count(*) INTO seen FROM security_events
        WHERE function_version_id = version AND created_at >= COALESCE(head.released_at, head.created_at);
    IF threshold > 0 AND seen >= threshold AND head.status <> 'quarantined' THEN
        UPDATE function_versions SET status = 'quarantined',
                status_reason = format('%s security events, the last one %s', seen, what)
            WHERE id = version RETURNING * INTO head;
    END IF;
    RETURN head.status;
END $$;

-- ---------------------------------------------------------------------------------------------- plans

-- Plans inside functions are kept for a session's life. One that was made while the tables were nearly empty scans
-- them from end to end, and goes on to when they have grown; so sequential scans are out of the question here.
DO $$
DECLARE
    hot regprocedure;
BEGIN
    FOR hot IN SELECT oid::regprocedure FROM pg_proc WHERE proname IN (
            'minion_accept', 'minion_route', 'minion_dispatch', 'minion_republish', 'minion_wake_due',
            'minion_claim', 'minion_write_steps', 'minion_finish', 'minion_release', 'minion_suspend',
            'minion_reject', 'minion_end_tree') LOOP
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', hot);
        EXECUTE format('ALTER FUNCTION %s SET jit = off', hot);
    END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------- reading

-- A task as people see it.
CREATE VIEW task_overview AS
    SELECT t.id, t.namespace, t.agent_name AS agent, v.number AS agent_version, s.state,
           COALESCE(s.capability, t.capability) AS capability, s.priority, t.input, t.messages,
           COALESCE(o.output, c.value) AS output, o.error, o.error_fingerprint, t.conversation_id, t.key, t.labels,
           t.parent_id, t.root_id, t.depth, t.replay_of, t.origin_id, t.submitted_by, t.traceparent,
           t.agent_version_id, s.claim, s.attempts, s.losses, s.worker_id, s.open_waits, s.wait_reason, s.due_at,
           s.cancel_requested, t.deadline, t.created_at, s.queued_at, s.updated_at, o.finished_at
        FROM tasks t JOIN task_status s ON s.task_id = t.id
        LEFT JOIN task_outcomes o ON o.task_id = t.id
        LEFT JOIN contents c ON c.sha256 = o.output_sha256
        LEFT JOIN agent_versions v ON v.id = t.agent_version_id;
