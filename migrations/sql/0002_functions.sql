-- What release 0.2 adds to the functions of 0001, and what it replaces.
--
-- Lock order, everywhere: ancestors first, siblings by id; a task's row, then the rows of `limits` by scope and name.

-- ---------------------------------------------------------------------------------------------- accepting

-- The root tasks of one conversation run one after the other, in the order of their ids: one that was accepted before
-- and has not ended comes first, and so does one that has begun, whatever its id. NULL: none does.
-- The first entry of an index, however many tasks of the conversation wait or have ended. (Only root tasks have a
-- conversation in `task_status`.)
CREATE FUNCTION minion_predecessor(t uuid, ns text, conversation text) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT e.task_id FROM task_status e
        WHERE e.namespace = ns AND e.conversation_id = conversation AND e.task_id <> t
          AND e.state IN ('pending', 'queued', 'running', 'waiting') AND (e.claim = 0, e.task_id) < (true, t)
        ORDER BY e.claim = 0, e.task_id LIMIT 1
$$;

-- A task's place in line from now on: parked while another of its conversation comes first.
CREATE FUNCTION minion_place(t uuid, ns text, conversation text, since timestamptz, priority integer) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN conversation IS NOT NULL AND minion_predecessor(t, ns, conversation) IS NOT NULL
                THEN minion_parked() ELSE minion_rank(since, priority) END
$$;

-- Gives the next task of a conversation its place in line. What is locked by somebody else is found by the rescuer.
CREATE FUNCTION minion_next_turn(ns text, conversation text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    successor task_status;
BEGIN
    SELECT s.* INTO successor FROM task_status s
        WHERE s.namespace = ns AND s.conversation_id = conversation AND s.state = 'pending' AND s.rank = minion_parked()
        ORDER BY s.task_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE task_status s SET rank = minion_place(s.task_id, ns, conversation, k.created_at, s.priority)
            FROM tasks k WHERE s.task_id = successor.task_id AND k.id = s.task_id;
        PERFORM minion_notify_pending();
    END IF;
END $$;

-- Parked tasks whose turn has come: a task that is accepted while the one before it ends may have missed that. It can
-- only be the turn of a conversation's first. Holds that are over go too.
CREATE FUNCTION minion_heal_turns(most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    woken integer;
BEGIN
    UPDATE task_status s SET rank = minion_rank(k.created_at, s.priority)
        FROM tasks k WHERE k.id = s.task_id AND s.task_id IN (
            SELECT p.task_id FROM task_status p JOIN (
                    SELECT DISTINCT ON (f.namespace, f.conversation_id) f.task_id, f.namespace, f.conversation_id
                        FROM task_status f WHERE f.state = 'pending' AND f.rank = minion_parked()
                        ORDER BY f.namespace, f.conversation_id, f.task_id) AS first ON first.task_id = p.task_id
                WHERE p.state = 'pending' AND p.rank = minion_parked()
                  AND minion_predecessor(first.task_id, first.namespace, first.conversation_id) IS NULL
                LIMIT most FOR NO KEY UPDATE OF p SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    DELETE FROM rate_holds WHERE until_at < now() - interval '1 minute';
    RETURN woken;
END $$;

-- Takes a unique key for a task, or tells who holds it.
CREATE FUNCTION minion_hold_unique(ns text, k text, t uuid, held text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    holder uuid;
BEGIN
    IF char_length(k) NOT BETWEEN 1 AND 255 OR held NOT IN ('pending', 'running') THEN
        RAISE EXCEPTION 'unique_key has 1 to 255 characters, and unique_while is pending or running.'
            USING ERRCODE = 'MN007';
    END IF;
    LOOP
        INSERT INTO unique_tasks (namespace, key, task_id, held_while) VALUES (ns, k, t, held)
            ON CONFLICT DO NOTHING RETURNING task_id INTO holder;
        -- It may be let go of between the two statements.
        EXIT WHEN holder IS NOT NULL;
        SELECT task_id INTO holder FROM unique_tasks WHERE namespace = ns AND key = k;
        EXIT WHEN holder IS NOT NULL;
    END LOOP;
    RETURN holder;
END $$;

-- Takes an idempotency key for a task, or tells whose it is and what was asked for then.
CREATE FUNCTION minion_hold_idempotency(ns text, k text, t uuid, asked jsonb, OUT task_id uuid, OUT request jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    LOOP
        INSERT INTO idempotency_keys AS held (namespace, key, task_id, request) VALUES (ns, k, t, asked)
            ON CONFLICT DO NOTHING RETURNING held.task_id, held.request INTO task_id, request;
        EXIT WHEN FOUND;
        -- It may go, with its task, between the two statements.
        SELECT held.task_id, held.request INTO task_id, request FROM idempotency_keys held
            WHERE held.namespace = ns AND held.key = k;
        EXIT WHEN FOUND;
    END LOOP;
END $$;

-- The one insert behind every way in. `request` holds agent | capability | messages, input, and optionally
-- namespace, idempotency_key, key, labels, priority, run_at, deadline, conversation_id, parent_id, parent_step,
-- replay_of, agent_version_id, traceparent, submitted_by, unique_key, unique_while, budget ({tokens, dollars, steps,
-- seconds, on_breach}), and `validated`: the id of the agent version whose input schema the caller has already checked
-- the input against.
CREATE OR REPLACE FUNCTION minion_accept(request jsonb, OUT task_id uuid, OUT created boolean) LANGUAGE plpgsql AS $$
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
    unique_key text := request->>'unique_key';
    holder uuid;
    urgency smallint;
    budget jsonb;
    talk text;
BEGIN
    PERFORM minion_check_request(request);
    PERFORM minion_check_json(request->'input', 'The input');
    PERFORM minion_check_json(request->'messages', 'The list of messages');
    begins := request->>'run_at';
    ends := request->>'deadline';
    IF ends <= begins THEN
        RAISE EXCEPTION 'run_at is not before deadline: the task could never run.' USING ERRCODE = 'MN007';
    END IF;
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
    checked := target.version_id IS NOT NULL
        AND (target.input_schema IS NULL OR request->>'validated' = target.version_id::text);

    -- Without a parent the record is all NULL.
    SELECT t.id, t.root_id, t.key, t.labels, t.submitted_by, t.traceparent, t.deadline, s.priority, s.rank,
           t.budget_ids
        INTO parent FROM tasks t JOIN task_status s ON s.task_id = t.id
        WHERE t.id = (request->>'parent_id')::uuid;
    IF parent.id IS NOT NULL THEN
        child_depth := minion_check_depth(parent.id);
        ends := LEAST(ends, parent.deadline);
    END IF;
    IF request->>'replay_of' IS NOT NULL THEN
        SELECT origin_id INTO origin FROM tasks WHERE id = (request->>'replay_of')::uuid;
    END IF;
    budget := minion_budget_for(request, target.version_id);

    INSERT INTO tasks (id, namespace, agent_name, agent_version_id, capability, input, messages, parent_id,
                       parent_step, root_id, depth, replay_of, origin_id, conversation_id, key, labels,
                       submitted_by, traceparent, deadline, budget_ids)
    VALUES (task_id, ns, target.agent_name, target.version_id, request->>'capability',
            CASE WHEN request ? 'input' THEN request->'input' END,
            NULLIF(request->'messages', 'null'::jsonb),
            parent.id, (request->>'parent_step')::integer, COALESCE(parent.root_id, task_id), child_depth,
            (request->>'replay_of')::uuid, COALESCE(origin, task_id), request->>'conversation_id',
            COALESCE(request->>'key', parent.key),
            COALESCE(NULLIF(request->'labels', 'null'::jsonb), parent.labels, '{}'::jsonb),
            COALESCE(request->>'submitted_by', parent.submitted_by),
            COALESCE(request->>'traceparent', parent.traceparent), ends,
            CASE WHEN budget IS NULL THEN parent.budget_ids ELSE parent.budget_ids || task_id END);
    IF budget IS NOT NULL THEN
        PERFORM minion_open_budget(task_id, budget);
    END IF;
    urgency := COALESCE((request->>'priority')::smallint, parent.priority, 0);
    -- Sub-tasks take no turns.
    talk := CASE WHEN parent.id IS NULL THEN request->>'conversation_id' END;
    INSERT INTO task_status (task_id, state, capability, priority, due_at, deadline, namespace, agent_name, key,
                             conversation_id, rank)
    VALUES (task_id, CASE WHEN begins > now() THEN 'scheduled' ELSE 'pending' END,
            CASE WHEN checked THEN target.queue END, urgency,
            CASE WHEN begins > now() THEN begins END, ends,
            ns, COALESCE(target.agent_name, ''), COALESCE(request->>'key', parent.key, ''), talk,
            -- What was begun comes before what was not: a sub-task stands where its parent stood.
            CASE WHEN parent.id IS NOT NULL AND begins IS NULL
                 THEN parent.rank - (urgency - parent.priority)::bigint * 60000000
                 ELSE minion_place(task_id, ns, talk, GREATEST(begins, clock_timestamp()), urgency) END);
    PERFORM minion_notify_pending();
END $$;

-- Stores a submission that was refused where nobody waits for the answer, as a failed task. The same key gives the
-- same task.
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

-- For SQL callers, whatever their search_path: the task exists if and only if their transaction commits.
-- Without input and messages the input is {}. While another task holds the unique key, the id is that one's.
-- A function with other parameters is another function: the one of 0001 goes, and who may call it may call this.
ALTER FUNCTION minion_submit RENAME TO minion_submit_of_0_1;

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
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_while text DEFAULT 'running',
    budget jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'capability', capability, 'messages', messages,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)
        || CASE WHEN input IS NOT NULL OR messages IS NULL
                THEN jsonb_build_object('input', COALESCE(input, '{}'::jsonb)) ELSE '{}'::jsonb END)
$$;

DO $$
DECLARE
    before record;
    permitted record;
BEGIN
    SELECT proacl, proowner INTO before FROM pg_proc WHERE oid = 'minion_submit_of_0_1'::regproc;
    -- NULL: never changed, everybody may call it.
    IF before.proacl IS NOT NULL THEN
        REVOKE ALL ON FUNCTION minion_submit FROM PUBLIC;
        FOR permitted IN SELECT * FROM aclexplode(before.proacl) WHERE grantee <> before.proowner LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION minion_submit TO %s%s',
                           CASE permitted.grantee WHEN 0 THEN 'PUBLIC' ELSE permitted.grantee::regrole::text END,
                           CASE WHEN permitted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
    END IF;
END $$;

DROP FUNCTION minion_submit_of_0_1;

-- ---------------------------------------------------------------------------------------------- rules

-- The limits that hold for a task, the narrowest name of each scope. `burst` is how many may start at once of those
-- that the rate permits: see `shared/limiter.py`.
CREATE FUNCTION minion_limits_of(ns text, cap text, agent text, k text)
RETURNS TABLE (scope text, name text, rule text, max_running integer, rate integer, period_seconds double precision,
               burst integer) LANGUAGE sql STABLE AS $$
    SELECT DISTINCT ON (l.scope) l.scope, v.name, l.name, l.max_running, l.rate, l.period_seconds,
           GREATEST(1, l.rate / 10)
        FROM (VALUES ('capability', cap), ('agent', agent), ('key', k)) AS v (scope, name)
        JOIN limits l ON l.namespace = ns AND l.scope = v.scope AND l.name IN (v.name, '*')
        WHERE v.name <> '' ORDER BY l.scope, l.name = '*'
$$;

-- Why a task may not start now: {kind: turn | paused | max_running | rate, scope, name, …}; NULL: it may.
-- Claims of one conversation wait for each other here, and so do those of one limit, so that their count is right.
CREATE FUNCTION minion_obstacle(s task_status, granted boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    pause record;
    rule record;
    running_now integer;
    rates jsonb := '[]';
    first uuid;
BEGIN
    -- Who was accepted late, or scheduled, may have an earlier id than one that began meanwhile.
    IF s.claim = 0 AND s.conversation_id IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('minion_turn'), hashtext(s.conversation_id));
        first := minion_predecessor(s.task_id, s.namespace, s.conversation_id);
        IF first IS NOT NULL THEN
            RETURN jsonb_build_object('kind', 'turn', 'task', first);
        END IF;
    END IF;
    SELECT p.scope, p.name, p.reason, p.created_at INTO pause FROM pauses p
        WHERE p.namespace = s.namespace AND (p.scope = 'capability' AND p.name = s.capability
            OR p.scope = 'agent' AND p.name = s.agent_name OR p.scope = 'key' AND p.name = s.key)
        ORDER BY p.scope LIMIT 1;
    IF FOUND THEN
        RETURN jsonb_build_object('kind', 'paused', 'scope', pause.scope, 'name', pause.name,
                                  'reason', pause.reason, 'since', pause.created_at);
    END IF;
    FOR rule IN SELECT * FROM minion_limits_of(s.namespace, s.capability, s.agent_name, s.key) LOOP
        IF rule.max_running IS NOT NULL THEN
            PERFORM 1 FROM limits l WHERE l.namespace = s.namespace AND l.scope = rule.scope AND l.name = rule.rule
                FOR NO KEY UPDATE;
            SELECT count(*) INTO running_now FROM task_status o
                WHERE o.state = 'running' AND o.namespace = s.namespace AND o.task_id <> s.task_id
                  AND CASE rule.scope WHEN 'capability' THEN o.capability = rule.name
                                      WHEN 'agent' THEN o.agent_name = rule.name ELSE o.key = rule.name END;
            IF running_now >= rule.max_running THEN
                RETURN jsonb_build_object('kind', 'max_running', 'scope', rule.scope, 'name', rule.name,
                                          'limit', rule.max_running, 'running', running_now);
            END IF;
        END IF;
        IF rule.rate IS NOT NULL THEN
            rates := rates || jsonb_build_object('scope', rule.scope, 'name', rule.name, 'rate', rule.rate,
                                                 'period_seconds', rule.period_seconds);
        END IF;
    END LOOP;
    IF NOT granted AND rates <> '[]' THEN
        RETURN jsonb_build_object('kind', 'rate', 'namespace', s.namespace, 'rates', rates);
    END IF;
    RETURN NULL;
END $$;

-- ---------------------------------------------------------------------------------------------- dispatching

-- Pins the agent version of a task that was routed by message, or releases one whose input has been checked.
CREATE OR REPLACE FUNCTION minion_route(t uuid, version uuid, queue text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    budget jsonb;
BEGIN
    UPDATE task_status SET capability = queue, updated_at = now(),
                           agent_name = (SELECT name FROM agent_versions WHERE id = version)
        WHERE task_id = t AND state = 'pending' AND capability IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tasks SET agent_version_id = version, agent_name = (SELECT name FROM agent_versions WHERE id = version)
        WHERE id = t AND agent_version_id IS NULL;
    -- The agent may bring a budget; a task that came with its own keeps that.
    IF FOUND AND NOT EXISTS (SELECT 1 FROM budgets WHERE task_id = t) THEN
        budget := minion_budget_for('{}', version);
        IF budget IS NOT NULL THEN
            PERFORM minion_open_budget(t, budget);
            UPDATE tasks SET budget_ids = budget_ids || t WHERE id = t;
        END IF;
    END IF;
    RETURN true;
END $$;

-- Takes pending tasks as far as each capability's window in the broker has room: twice the live slots, and
-- `smallest_window` at least. Capabilities that nobody serves stay pending.
CREATE OR REPLACE FUNCTION minion_dispatch(lease interval, smallest_window integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE plpgsql AS $$
DECLARE
    served record;
    limited boolean := EXISTS (SELECT 1 FROM limits WHERE scope <> 'model');
BEGIN
    IF limited THEN
        -- What is in flight must not change between counting and taking.
        PERFORM pg_advisory_xact_lock(hashtext('minion_dispatch'));
    END IF;
    FOR served IN
        SELECT c.name, sum(w.slots) AS slots FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - lease GROUP BY c.name
    LOOP
        CONTINUE WHEN NOT EXISTS (
            SELECT 1 FROM task_status p WHERE p.state = 'pending' AND p.capability = served.name);
        RETURN QUERY SELECT * FROM minion_take(
            served.name, GREATEST(2 * served.slots, smallest_window)::integer, limited);
    END LOOP;
END $$;

-- Takes the next tasks of one capability. Each pair of key and agent has a line of its own, in the order of rank. The
-- keys take turns: who has the fewest tasks in flight comes first. What is paused, held or at its limit stays in line.
CREATE FUNCTION minion_take(cap text, window_size integer, limited boolean)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH RECURSIVE flight AS MATERIALIZED (
        SELECT f.namespace, f.capability, f.key, f.agent_name, f.state, count(*)::integer AS n
            FROM task_status f WHERE f.state IN ('queued', 'running') GROUP BY 1, 2, 3, 4, 5
    ), room AS MATERIALIZED (
        SELECT GREATEST(0, window_size - COALESCE(sum(f.n), 0))::integer AS size
            FROM flight f WHERE f.state = 'queued' AND f.capability = cap
    ), lines AS (
        (SELECT p.namespace, p.key, p.agent_name FROM task_status p
            WHERE p.state = 'pending' AND p.capability = cap AND (SELECT size FROM room) > 0
            ORDER BY p.namespace, p.key, p.agent_name LIMIT 1)
        UNION ALL
        SELECT n.* FROM lines l CROSS JOIN LATERAL (
            SELECT p.namespace, p.key, p.agent_name FROM task_status p
                WHERE p.state = 'pending' AND p.capability = cap
                  AND (p.namespace, p.key, p.agent_name) > (l.namespace, l.key, l.agent_name)
                ORDER BY p.namespace, p.key, p.agent_name LIMIT 1) n
    ), rules AS (
        SELECT l.namespace, l.key, l.agent_name,
               min(r.free) FILTER (WHERE r.scope = 'capability') AS free_capability,
               min(r.free) FILTER (WHERE r.scope = 'agent') AS free_agent,
               min(r.free) FILTER (WHERE r.scope = 'key') AS free_key
            FROM lines l LEFT JOIN LATERAL (
                SELECT m.scope, LEAST(m.max_running - COALESCE(sum(f.n), 0),
                        CASE WHEN m.rate IS NOT NULL
                             THEN m.burst - COALESCE(sum(f.n) FILTER (WHERE f.state = 'queued'), 0) END) AS free
                    FROM minion_limits_of(l.namespace, cap, l.agent_name, l.key) m
                    LEFT JOIN flight f ON f.namespace = l.namespace
                        AND CASE m.scope WHEN 'capability' THEN f.capability = cap
                                         WHEN 'agent' THEN f.agent_name = l.agent_name ELSE f.key = l.key END
                    WHERE limited GROUP BY m.scope, m.max_running, m.rate, m.burst) r ON true
            WHERE NOT EXISTS (SELECT 1 FROM pauses x WHERE x.namespace = l.namespace
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key))
              AND NOT EXISTS (SELECT 1 FROM rate_holds x WHERE x.namespace = l.namespace AND x.until_at > now()
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key))
            GROUP BY 1, 2, 3
    ), first_ones AS (
        SELECT c.task_id, c.rank, u.*,
               row_number() OVER (PARTITION BY u.namespace, u.key ORDER BY c.rank, c.task_id) AS nth_of_key
            FROM rules u CROSS JOIN LATERAL (
                SELECT p.task_id, p.rank FROM task_status p
                    WHERE p.state = 'pending' AND p.capability = cap AND p.namespace = u.namespace AND p.key = u.key
                      AND p.agent_name = u.agent_name AND p.rank < minion_parked()
                    ORDER BY p.rank, p.task_id
                    -- Four times its share: enough where others have less, and little where there are many lines. What
                    -- stays empty is for the next round.
                    LIMIT LEAST(u.free_capability, u.free_agent, u.free_key,
                                ceil(4.0 * (SELECT size FROM room) / (SELECT count(*) FROM rules))::integer)) c
            WHERE LEAST(u.free_capability, u.free_agent, u.free_key, 1) > 0
    ), turns AS (
        SELECT f.*, f.nth_of_key + COALESCE(busy.n, 0) AS turn FROM first_ones f
            LEFT JOIN (SELECT namespace, key, sum(n) AS n FROM flight WHERE capability = cap GROUP BY 1, 2) busy
                ON busy.namespace = f.namespace AND busy.key = f.key
            WHERE f.nth_of_key <= COALESCE(f.free_key, f.nth_of_key)
    ), within_agents AS (
        -- The keys take turns in what an agent's limit leaves free, and so below in that of the capability.
        SELECT t.*, row_number() OVER (PARTITION BY t.namespace, t.agent_name ORDER BY t.turn, t.rank, t.task_id)
                    AS nth_of_agent FROM turns t
    ), within_all AS (
        SELECT a.*, row_number() OVER (PARTITION BY a.namespace ORDER BY a.turn, a.rank, a.task_id) AS nth
            FROM within_agents a WHERE a.nth_of_agent <= COALESCE(a.free_agent, a.nth_of_agent)
    ), chosen AS (
        SELECT w.task_id FROM within_all w WHERE w.nth <= COALESCE(w.free_capability, w.nth)
            ORDER BY w.turn, w.rank, w.task_id LIMIT (SELECT size FROM room)
    ), taken AS (
        SELECT s.task_id FROM task_status s JOIN chosen c ON c.task_id = s.task_id
            WHERE s.state = 'pending' ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED
    ), queued AS (
        UPDATE task_status s SET state = 'queued', queued_at = now(), published = 1, published_at = now(),
                                 updated_at = now()
            FROM taken WHERE s.task_id = taken.task_id
            RETURNING s.task_id, s.claim, s.capability, s.priority, s.rank
    )
    SELECT q.task_id, q.claim, q.capability, t.agent_name, v.soft_time_limit, v.time_limit, q.priority
        FROM queued q JOIN tasks t ON t.id = q.task_id JOIN agent_versions v ON v.id = t.agent_version_id
        ORDER BY q.rank, q.task_id;
END $$;

-- Messages presumed lost: a live worker of the capability has had a free slot for `patience` and its queue (one of
-- `empty`) holds no message; or it has been overtaken, and queues are first in, first out. They are published again
-- under the same claim, each time after twice the patience; a message too many finds nothing to claim.
CREATE OR REPLACE FUNCTION minion_republish(lease interval, patience interval, empty text[], most integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE sql AS $$
    WITH overtaking AS MATERIALIZED (
        SELECT r.capability, max(r.published_at) AS latest FROM task_status r WHERE r.state = 'running' GROUP BY 1
    ), stalled AS (
        SELECT s.task_id FROM task_status s LEFT JOIN overtaking o ON o.capability = s.capability
            WHERE s.state = 'queued' AND s.published_at < now() - patience * power(2, LEAST(s.published, 7) - 1)
              AND (s.capability = ANY (empty) AND s.capability IN (
                    SELECT unnest(w.capabilities) FROM workers w WHERE w.status = 'online'
                        AND w.last_seen > now() - lease AND w.idle_since < now() - patience)
                OR o.latest > s.published_at + patience)
            ORDER BY s.published_at LIMIT most FOR NO KEY UPDATE OF s SKIP LOCKED
    ), again AS (
        UPDATE task_status s SET published = s.published + 1, published_at = now()
            FROM stalled WHERE s.task_id = stalled.task_id
            RETURNING s.task_id, s.claim, s.capability, s.priority
    )
    SELECT a.task_id, a.claim, a.capability, t.agent_name, v.soft_time_limit, v.time_limit, a.priority
        FROM again a JOIN tasks t ON t.id = a.task_id JOIN agent_versions v ON v.id = t.agent_version_id
$$;

-- Scheduled tasks that are due, and waiting ones whose time ran out. A wait that timed out is a finished step, which says
-- so.
CREATE OR REPLACE FUNCTION minion_wake_due(most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    woken integer;
    late record;
    over integer;
BEGIN
    WITH due AS (
        SELECT task_id FROM task_status
            WHERE state IN ('scheduled', 'waiting') AND due_at <= now() AND open_waits = 0
            ORDER BY due_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE task_status s SET state = 'pending', due_at = NULL, wait_reason = NULL, updated_at = now(),
                             rank = CASE WHEN s.state = 'scheduled' THEN minion_place(
                                             s.task_id, s.namespace, s.conversation_id, s.due_at, s.priority)
                                         ELSE s.rank END
        FROM due WHERE s.task_id = due.task_id;
    GET DIAGNOSTICS woken = ROW_COUNT;
    FOR late IN
        SELECT task_id FROM task_status WHERE state = 'waiting' AND due_at <= now() AND open_waits > 0
            ORDER BY due_at LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE steps SET status = 'finished', output = '{"timed_out": true}', finished_at = now()
            WHERE task_id = late.task_id AND kind = 'wait' AND status = 'started' AND due_at <= now();
        GET DIAGNOSTICS over = ROW_COUNT;
        woken := woken + minion_count_down(late.task_id, over)::integer;
    END LOOP;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

-- What a task's open steps wait for; a person comes first, who would not know otherwise that he is asked.
CREATE FUNCTION minion_waits_for(t uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN bool_or(s.input ? 'approval') THEN 'approval' WHEN bool_or(s.kind = 'subtask') THEN 'subtask'
                WHEN bool_or(s.input->>'signal' IS NOT NULL) THEN 'signal' ELSE 'timer' END
        FROM steps s WHERE s.task_id = t AND s.kind IN ('subtask', 'wait') AND s.status = 'started'
$$;

-- So many waits of a waiting task are over: it is woken at zero, once. The caller holds its lock.
CREATE FUNCTION minion_count_down(t uuid, over integer) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    now_at text;
BEGIN
    UPDATE task_status SET
            open_waits = GREATEST(0, open_waits - over),
            state = CASE WHEN open_waits <= over THEN 'pending' ELSE state END,
            wait_reason = CASE WHEN open_waits > over THEN minion_waits_for(t) END,
            due_at = CASE WHEN open_waits > over THEN (
                SELECT min(w.due_at) FROM steps w WHERE w.task_id = t AND w.kind = 'wait' AND w.status = 'started') END,
            updated_at = now()
        WHERE task_id = t AND state = 'waiting' AND open_waits > 0
        RETURNING state INTO now_at;
    IF now_at = 'pending' THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN COALESCE(now_at = 'pending', false);
END $$;

-- Waiting tasks that no step of theirs keeps, whatever their count says: belt and braces, for the count is kept in the
-- transactions that end what is waited for. So it looks at `most` waiting tasks at a time, those after the task `after`.
-- Returns how many were woken, and the last that it looked at; NULL: there are no more.
CREATE FUNCTION minion_heal_waits(after uuid, most integer, OUT woken integer, OUT last uuid) LANGUAGE plpgsql AS $$
DECLARE
    looked_at uuid[] := ARRAY(
        SELECT s.task_id FROM task_status s
            WHERE s.state = 'waiting' AND s.task_id > COALESCE(after, '00000000-0000-0000-0000-000000000000')
            ORDER BY s.task_id LIMIT most);
BEGIN
    last := looked_at[most];
    UPDATE task_status SET state = 'pending', wait_reason = NULL, open_waits = 0, due_at = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.task_id = ANY (looked_at) AND s.state = 'waiting' AND s.updated_at < now() - interval '10 s'
                  AND s.wait_reason IN ('subtask', 'signal', 'timer', 'approval')
                  AND NOT EXISTS (SELECT 1 FROM steps w WHERE w.task_id = s.task_id AND w.status = 'started'
                                    AND w.kind IN ('subtask', 'wait'))
                FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------- running

-- A minion takes a queued task: the claim number goes up and fences everybody who held it before. Pauses and limits
-- may have come since it was queued. NULL: somebody else has it, it has ended, or this worker is not known to be
-- alive. {refused: obstacle}: it may not start now; where the obstacle's kind is `rate`, the minion asks the limiter
-- and calls again with `granted`, or `minion_hold`.
CREATE FUNCTION minion_claim(t uuid, expected integer, w uuid, granted boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    now_at task_status;
    obstacle jsonb;
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
    INSERT INTO executions (task_id, claim, worker_id) VALUES (t, now_at.claim, w);
    RETURN (SELECT to_jsonb(k) || jsonb_build_object(
        'claim', now_at.claim, 'attempts', now_at.attempts, 'queue', now_at.capability,
        -- A replay from a step begins with what was copied.
        'steps', CASE WHEN now_at.claim > 1 OR k.from_step IS NOT NULL THEN minion_journal(t) ELSE '[]'::jsonb END)
        FROM tasks k WHERE k.id = t);
END $$;

-- `minion_release`, where this worker (NULL: whoever) holds the claim: who only had the message for it may not have got
-- it.
CREATE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb, w uuid)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND (w IS NULL OR worker_id = w) FOR NO KEY UPDATE;
    RETURN CASE WHEN FOUND THEN minion_release(t, c, how, charged, delay, result) END;
END $$;

-- For minions of release 0.1, which know nothing of limits.
CREATE OR REPLACE FUNCTION minion_claim(t uuid, expected integer, w uuid) RETURNS jsonb LANGUAGE sql AS $$
    SELECT CASE WHEN NOT c ? 'refused' THEN c END FROM minion_claim(t, expected, w, false) AS c
$$;

-- A queued task whose rate does not permit it to start goes back in line, and nothing of that scope leaves it before.
CREATE FUNCTION minion_hold(t uuid, expected integer, rule_scope text, rule_name text, delay interval)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ns text;
BEGIN
    UPDATE task_status SET state = 'pending', updated_at = now()
        WHERE task_id = t AND state = 'queued' AND claim = expected RETURNING namespace INTO ns;
    IF FOUND THEN
        INSERT INTO rate_holds AS h (namespace, scope, name, until_at) VALUES (ns, rule_scope, rule_name, now() + delay)
            ON CONFLICT (namespace, scope, name) DO UPDATE SET until_at = GREATEST(h.until_at, EXCLUDED.until_at);
    END IF;
END $$;

-- What the webhooks are owed for a task that has ended, in the same transaction.
CREATE FUNCTION minion_owe_webhooks(t uuid, final text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM webhooks WHERE enabled) THEN
        RETURN;
    END IF;
    INSERT INTO webhook_deliveries (webhook_id, task_id, state)
        SELECT w.id, t, final FROM webhooks w JOIN tasks k ON k.id = t
            WHERE w.enabled AND w.namespace = k.namespace AND (w.states = '{}' OR final = ANY (w.states))
              AND (w.agents = '{}' OR k.agent_name = ANY (w.agents)) AND k.labels @> w.labels
              AND (k.parent_id IS NULL OR NOT w.roots_only)
            -- One that is being removed is waited for and left out: its foreign key would fail the task's end.
            FOR KEY SHARE OF w
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM pg_notify('minion_webhooks', '');
    END IF;
END $$;

-- Stores a large value once. Who names it locks it, so that retention cannot delete it before the name is committed.
CREATE OR REPLACE FUNCTION minion_store_content(value jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hash text := encode(sha256(convert_to(value::text, 'UTF8')), 'hex');
BEGIN
    LOOP
        PERFORM 1 FROM contents c WHERE c.sha256 = hash FOR KEY SHARE;
        EXIT WHEN FOUND;
        INSERT INTO contents (sha256, value) VALUES (hash, value) ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN hash;
END $$;

-- Ends a task for good and tells its parent. The caller holds the locks: the parent's row, then the task's.
CREATE OR REPLACE FUNCTION minion_settle(t uuid, final text, result jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    value jsonb := result->'output';
    large boolean := octet_length((result->'output')::text) > 65536;
    failure jsonb := NULLIF(result->'error', 'null'::jsonb);
    parent record;
BEGIN
    UPDATE task_status SET state = final, worker_id = NULL, wait_reason = NULL, due_at = NULL, open_waits = 0,
                           updated_at = now()
        WHERE task_id = t;
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, error, error_fingerprint)
    VALUES (t, final, CASE WHEN NOT large THEN value END, CASE WHEN large THEN minion_store_content(value) END,
            failure, CASE WHEN failure IS NOT NULL THEN minion_fingerprint(failure) END);
    DELETE FROM unique_tasks WHERE task_id = t;
    PERFORM minion_owe_webhooks(t, final);
    SELECT parent_id AS id, parent_step AS step, namespace, conversation_id INTO parent FROM tasks WHERE id = t;
    IF parent.id IS NULL THEN
        IF parent.conversation_id IS NOT NULL THEN
            PERFORM minion_next_turn(parent.namespace, parent.conversation_id);
        END IF;
        RETURN;
    END IF;
    UPDATE steps SET status = CASE WHEN final = 'succeeded' THEN 'finished' ELSE 'failed' END, finished_at = now()
        WHERE task_id = parent.id AND number = parent.step;
    PERFORM minion_count_down(parent.id, 1);
END $$;

-- The oldest signal of that name that no other wait took finishes the step.
CREATE FUNCTION minion_take_signal(t uuid, wait_step integer, signal text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    taken signals;
BEGIN
    UPDATE signals SET step = wait_step WHERE id = (
            SELECT id FROM signals WHERE task_id = t AND name = signal AND step IS NULL ORDER BY id LIMIT 1)
        RETURNING * INTO taken;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE steps SET status = 'finished', finished_at = now(), output = jsonb_build_object(
            'signal', signal, 'payload', taken.payload, 'sent_at', taken.created_at)
        WHERE task_id = t AND number = wait_step;
    RETURN true;
END $$;

-- Sends a signal to a task. It is kept until the task waits for it. Returns the state the task is in now.
CREATE FUNCTION minion_signal(t uuid, signal text, content jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now_at task_status;
    wait_step integer;
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    ELSIF now_at.state IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
        RAISE EXCEPTION 'The task % has ended (%): it takes no more signals.', t, now_at.state USING ERRCODE = 'MN009';
    END IF;
    PERFORM minion_check_json(content, 'The payload');
    INSERT INTO signals (task_id, name, payload) VALUES (t, signal, content);
    IF now_at.state = 'waiting' THEN
        SELECT number INTO wait_step FROM steps WHERE task_id = t AND kind = 'wait' AND status = 'started'
            AND input->>'signal' = signal ORDER BY number LIMIT 1;
        IF FOUND AND minion_take_signal(t, wait_step, signal) THEN
            PERFORM minion_count_down(t, 1);
        END IF;
    END IF;
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

-- The end of an execution whose task goes on later: locks, writes its steps, closes it. NULL: the fence is lost.
-- 'cancelled': somebody wanted that first. 'running': the caller says what the task waits for.
CREATE FUNCTION minion_stop_running(t uuid, c integer, result jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    cancelled boolean;
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    SELECT cancel_requested INTO cancelled FROM task_status WHERE task_id = t;
    PERFORM minion_close_execution(t, c, CASE WHEN cancelled THEN 'cancelled' ELSE 'suspended' END, result);
    IF cancelled THEN
        PERFORM minion_settle(t, 'cancelled',
            '{"error": {"type": "cancelled", "message": "Cancelled while it ran."}}'::jsonb);
        RETURN 'cancelled';
    END IF;
    RETURN 'running';
END $$;

-- Suspends a running task: creates its sub-tasks and its waits in one transaction.
-- `children`: [{step, name, request_hash, request}]. `waits`: [{step, name, request_hash, seconds, signal, approval}]: a
-- timer, a named signal, or what somebody has to approve (a list of one), with a time-out where there are seconds. NULL:
-- the fence is lost. Else the state it is in now.
CREATE FUNCTION minion_suspend(t uuid, c integer, result jsonb, children jsonb, waits jsonb)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    child record;
    child_task uuid;
    wait record;
    state_now text;
    still_open integer := jsonb_array_length(children) + jsonb_array_length(waits);
    ns text := (SELECT namespace FROM tasks WHERE id = t);
BEGIN
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    FOR child IN SELECT * FROM jsonb_to_recordset(children)
            AS x (step integer, name text, request_hash text, request jsonb) LOOP
        SELECT task_id INTO child_task FROM minion_accept(child.request || jsonb_build_object(
            'namespace', ns, 'parent_id', t, 'parent_step', child.step));
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, child_id)
        VALUES (t, child.step, 'subtask', child.name, 'started', 'pure', child.request_hash, c, child_task);
    END LOOP;
    FOR wait IN SELECT * FROM jsonb_to_recordset(waits)
            AS x (step integer, name text, request_hash text, seconds double precision, signal boolean,
                  approval jsonb) LOOP
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, due_at)
        VALUES (t, wait.step, 'wait', wait.name, 'started', 'pure', wait.request_hash, c,
                jsonb_build_object('signal', CASE WHEN wait.signal THEN wait.name END, 'seconds', wait.seconds)
                    || CASE WHEN wait.approval IS NULL THEN '{}'::jsonb
                            ELSE jsonb_build_object('approval', wait.approval->0) END,
                now() + wait.seconds * interval '1 s')
        -- A task that was woken by something else asks for the same again.
        ON CONFLICT (task_id, number) DO NOTHING;
        IF wait.signal AND minion_take_signal(t, wait.step, wait.name) THEN
            still_open := still_open - 1;
        END IF;
    END LOOP;
    IF still_open = 0 THEN
        UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
        PERFORM minion_notify_pending();
        RETURN 'pending';
    END IF;
    UPDATE task_status SET state = 'waiting', worker_id = NULL, open_waits = still_open, updated_at = now(),
            wait_reason = minion_waits_for(t),
            due_at = (SELECT min(w.due_at) FROM steps w
                          WHERE w.task_id = t AND w.kind = 'wait' AND w.status = 'started')
        WHERE task_id = t;
    RETURN 'waiting';
END $$;

-- Suspends a running task until somebody says what became of an unsafe step that was interrupted. NULL: the fence is
-- lost.
CREATE FUNCTION minion_ask(t uuid, c integer, result jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state_now text := minion_snooze(t, c, result, interval '0', 'answer');
BEGIN
    IF state_now = 'waiting' THEN
        UPDATE task_status SET open_waits = 1, due_at = NULL WHERE task_id = t;
    END IF;
    RETURN state_now;
END $$;

-- What somebody decides about a step that waits for it: `approve` or `reject` what is proposed (`content`: other
-- arguments than proposed), `result`, `again` or `fail` for one that was interrupted (`content`: its result). Returns
-- the state the task is in now.
CREATE FUNCTION minion_decide(t uuid, step_number integer, verdict text, content jsonb, reason text, who text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now_at task_status;
    asked steps;
    decided jsonb := jsonb_build_object('verdict', verdict, 'reason', reason, 'by', who, 'at', now());
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    END IF;
    SELECT * INTO asked FROM steps s WHERE s.task_id = t AND s.status = 'started'
        AND (step_number IS NULL OR s.number = step_number)
        AND (s.input ? 'approval' AND s.kind = 'wait' OR now_at.wait_reason = 'answer' AND s.effect = 'unsafe')
        ORDER BY s.number LIMIT 1;
    IF asked.number IS NULL OR now_at.state <> 'waiting' THEN
        RAISE EXCEPTION 'The task % (%) waits for no decision%. `minion why %` tells what it waits for.', t, now_at.state,
            CASE WHEN step_number IS NULL THEN '' ELSE ' about step ' || step_number END, t USING ERRCODE = 'MN009';
    ELSIF (asked.kind = 'wait') <> (verdict IN ('approve', 'reject')) THEN
        RAISE EXCEPTION 'Step % waits for %.', asked.number,
            CASE WHEN asked.kind = 'wait' THEN 'approve or reject' ELSE 'result, again or fail' END USING ERRCODE = 'MN007';
    END IF;
    PERFORM minion_check_json(content, 'The value');
    UPDATE steps SET finished_at = now(),
            status = CASE WHEN verdict IN ('approve', 'result') THEN 'finished' ELSE 'failed' END,
            output = CASE verdict
                WHEN 'approve' THEN decided || jsonb_build_object('arguments', COALESCE(content, asked.input->'approval'))
                WHEN 'result' THEN content END,
            usage = CASE WHEN asked.kind = 'wait' THEN usage ELSE jsonb_build_object('decision', decided) END,
            error = CASE verdict
                WHEN 'reject' THEN jsonb_build_object('type', 'rejected', 'message',
                    format('%s was rejected%s.', asked.name, COALESCE(': ' || reason, '')), 'decision', decided)
                WHEN 'fail' THEN jsonb_build_object('type', 'tool_error', 'message',
                    format('Step %s (%s) was interrupted and did not happen%s.', asked.number, asked.name,
                           COALESCE(': ' || reason, '')), 'decision', decided)
                WHEN 'again' THEN jsonb_build_object('type', 'interrupted', 'message', 'It is made again.',
                    'retryable', true, 'decision', decided) END
        WHERE task_id = t AND number = asked.number;
    PERFORM minion_count_down(t, 1);
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

-- For minions of release 0.1.
CREATE OR REPLACE FUNCTION minion_suspend(t uuid, c integer, result jsonb, children jsonb) RETURNS text
LANGUAGE sql AS $$
    SELECT minion_suspend(t, c, result, children, '[]'::jsonb)
$$;

-- Lets a running task go, uncharged, to run again after `delay`: it asked for it, or a limit does. NULL: the fence is
-- lost. Else the state it is in now.
CREATE FUNCTION minion_snooze(t uuid, c integer, result jsonb, delay interval, reason text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    state_now text;
BEGIN
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = reason, due_at = now() + delay,
                           updated_at = now()
        WHERE task_id = t;
    RETURN 'waiting';
END $$;

-- ---------------------------------------------------------------------------------------------- quarantine

-- Stores a security event of a function version, and quarantines the version at the `threshold`-th that counts since
-- it was stored or last released (0: never). What the code was denied counts for good. A limit or a crash may be the
-- doing of the input: it counts for an hour, and once for each task. Returns the version's status now.
CREATE OR REPLACE FUNCTION minion_security_event(version uuid, task uuid, what text, facts jsonb, threshold integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    head function_versions;
    since timestamptz;
    seen integer;
BEGIN
    SELECT * INTO head FROM function_versions WHERE id = version FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    INSERT INTO security_events (function_version_id, task_id, kind, detail) VALUES (version, task, what, facts);
    since := COALESCE(head.released_at, head.created_at);
    SELECT count(*) INTO seen FROM security_events
        WHERE function_version_id = version AND created_at >= since
          AND kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security');
    seen := seen + (SELECT count(DISTINCT COALESCE(task_id, id)) FROM security_events
        WHERE function_version_id = version AND created_at >= GREATEST(since, now() - interval '1 hour')
          AND kind NOT IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security'));
    IF threshold > 0 AND seen >= threshold AND head.status <> 'quarantined' THEN
        UPDATE function_versions SET status = 'quarantined',
                status_reason = format('%s security events, the last one %s', seen, what)
            WHERE id = version RETURNING * INTO head;
    END IF;
    RETURN head.status;
END $$;

-- ---------------------------------------------------------------------------------------------- plans

-- As in 0001: CREATE OR REPLACE forgets these settings.
DO $$
DECLARE
    hot regprocedure;
BEGIN
    FOR hot IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname IN (
            'minion_accept', 'minion_next_turn', 'minion_heal_turns', 'minion_route',
            'minion_republish', 'minion_dispatch', 'minion_take', 'minion_wake_due', 'minion_claim',
            'minion_release', 'minion_suspend', 'minion_snooze', 'minion_ask', 'minion_decide', 'minion_signal',
            'minion_hold', 'minion_heal_waits') LOOP
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', hot);
        EXECUTE format('ALTER FUNCTION %s SET jit = off', hot);
    END LOOP;
END $$;

-- Planning it takes longer than running it.
ALTER FUNCTION minion_take SET plan_cache_mode = force_generic_plan;
