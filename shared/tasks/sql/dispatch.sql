-- From pending to queued, and again if a message is presumed lost.

-- Pins the agent version of a task that was routed by message, or releases a task whose input has been checked.
CREATE OR REPLACE FUNCTION minion_route(t uuid, version uuid, queue text) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
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
    -- The agent may have a budget; a task that was submitted with its own keeps that.
    IF FOUND AND NOT EXISTS (SELECT 1 FROM budgets WHERE task_id = t) THEN
        budget := minion_budget_for('{}', version);
        IF budget IS NOT NULL THEN
            PERFORM minion_open_budget(t, budget);
            UPDATE tasks SET budget_ids = budget_ids || t WHERE id = t;
        END IF;
    END IF;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION minion_route_by(t uuid, version uuid, queue text, decision jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF NOT minion_route(t, version, queue) THEN
        RETURN false;
    END IF;
    UPDATE tasks SET routing = decision WHERE id = t AND decision IS NOT NULL;
    RETURN true;
END $$;

-- Ends a pending task before it first runs: its input is invalid, or no agent can be found for it.
CREATE OR REPLACE FUNCTION minion_reject(t uuid, failure jsonb) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND state = 'pending' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM minion_settle(t, 'failed', jsonb_build_object('error', failure));
    RETURN true;
END $$;

-- Takes pending tasks as far as each capability's window in the broker has room: twice the live slots, at least
-- `smallest_window`, and at least what `windows` ({capability: tasks}) has. Tasks of capabilities without a live worker stay
-- pending.
CREATE OR REPLACE FUNCTION minion_dispatch_v2(lease interval, smallest_window integer, windows jsonb)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint, version_id uuid, has_model boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    served record;
    taken record;
    limited boolean := EXISTS (SELECT 1 FROM limits WHERE scope <> 'model');
BEGIN
    IF limited THEN
        -- Tasks in flight must not change between counting and taking.
        PERFORM pg_advisory_xact_lock(hashtext('minion_dispatch'));
    END IF;
    FOR served IN
        SELECT c.name, sum(w.slots) AS slots FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - lease GROUP BY c.name
    LOOP
        CONTINUE WHEN NOT EXISTS (
            SELECT 1 FROM task_status p WHERE p.state = 'pending' AND p.capability = served.name);
        FOR taken IN SELECT * FROM minion_take(
            served.name,
            GREATEST(2 * served.slots, smallest_window, (windows->>served.name)::integer)::integer, limited)
        LOOP
            -- In a statement after the one that took the tasks: it also takes tasks that were committed after it began, and
            -- a join in it would leave those out.
            RETURN QUERY SELECT taken.task_id, taken.claim, taken.queue, taken.agent_name, taken.soft_time_limit,
                                taken.time_limit, taken.priority, v.id, v.type = 'agent'
                FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id WHERE t.id = taken.task_id;
        END LOOP;
    END LOOP;
END $$;

-- The same for release 0.2.
CREATE OR REPLACE FUNCTION minion_dispatch(lease interval, smallest_window integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE sql AS $$
    SELECT task_id, claim, queue, agent_name, soft_time_limit, time_limit, priority
        FROM minion_dispatch_v2(lease, smallest_window, '{}')
$$;

-- Takes the next tasks of one capability. Each pair of tenant key and agent has its own queue, in the order of rank.
-- The keys take turns: the one with the fewest tasks in flight comes first. Paused, held or limited tasks stay in their
-- queue.
CREATE OR REPLACE FUNCTION minion_take(cap text, window_size integer, limited boolean)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH RECURSIVE flight AS MATERIALIZED (
        SELECT f.namespace, f.capability, f.key, f.agent_name, f.state, count(*)::integer AS n
            FROM task_status f WHERE f.state IN ('queued', 'running') GROUP BY 1, 2, 3, 4, 5
    ), busy AS MATERIALIZED (
        SELECT namespace, key, sum(n) AS n FROM flight WHERE capability = cap GROUP BY 1, 2
    ), free AS (
        SELECT window_size - COALESCE(sum(f.n), 0) AS size FROM flight f WHERE f.state = 'queued' AND f.capability = cap
    ), room AS MATERIALIZED (
        -- A round looks at all queues, so it waits until half of the window is free.
        SELECT CASE WHEN size >= window_size / 2 THEN GREATEST(0, size) ELSE 0 END::integer AS size FROM free
    ), lines AS (
        -- Each queue with its first task.
        (SELECT p.namespace, p.key, p.agent_name, p.rank, p.task_id FROM task_status p
            WHERE p.state = 'pending' AND p.capability = cap AND (SELECT size FROM room) > 0
            ORDER BY p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1)
        UNION ALL
        SELECT n.* FROM lines l CROSS JOIN LATERAL (
            SELECT p.namespace, p.key, p.agent_name, p.rank, p.task_id FROM task_status p
                WHERE p.state = 'pending' AND p.capability = cap
                  AND (p.namespace, p.key, p.agent_name) > (l.namespace, l.key, l.agent_name)
                ORDER BY p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1) n
    ), permitted AS (
        SELECT l.* FROM lines l
            WHERE l.rank < minion_parked() AND (NOT (SELECT EXISTS (SELECT 1 FROM pauses)) OR NOT EXISTS (
                    SELECT 1 FROM pauses x WHERE x.namespace = l.namespace
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key)))
              AND (NOT (SELECT EXISTS (SELECT 1 FROM rate_holds)) OR NOT EXISTS (
                    SELECT 1 FROM rate_holds x WHERE x.namespace = l.namespace AND x.until_at > now()
                    AND (x.scope = 'capability' AND x.name = cap OR x.scope = 'agent' AND x.name = l.agent_name
                         OR x.scope = 'key' AND x.name = l.key)))
    ), nearest AS (
        -- The queues whose first tasks come first, as many as there is room: no other queue has a task among the chosen.
        -- With limits, every queue counts, because first tasks may be passed over.
        SELECT p.namespace, p.key, p.agent_name FROM permitted p
            LEFT JOIN busy b ON b.namespace = p.namespace AND b.key = p.key
            ORDER BY row_number() OVER (PARTITION BY p.namespace, p.key ORDER BY p.rank, p.task_id) + COALESCE(b.n, 0),
                     p.rank, p.task_id
            LIMIT CASE WHEN NOT limited THEN (SELECT size FROM room) END
    ), rules AS (
        SELECT l.namespace, l.key, l.agent_name,
               min(r.free) FILTER (WHERE r.scope = 'capability') AS free_capability,
               min(r.free) FILTER (WHERE r.scope = 'agent') AS free_agent,
               min(r.free) FILTER (WHERE r.scope = 'key') AS free_key
            FROM nearest l LEFT JOIN LATERAL (
                SELECT m.scope, LEAST(m.max_running - COALESCE(sum(f.n), 0),
                        CASE WHEN m.rate IS NOT NULL
                             THEN m.burst - COALESCE(sum(f.n) FILTER (WHERE f.state = 'queued'), 0) END) AS free
                    FROM minion_limits_of(l.namespace, cap, l.agent_name, l.key) m
                    LEFT JOIN flight f ON f.namespace = l.namespace
                        AND CASE m.scope WHEN 'capability' THEN f.capability = cap
                                         WHEN 'agent' THEN f.agent_name = l.agent_name ELSE f.key = l.key END
                    WHERE limited GROUP BY m.scope, m.max_running, m.rate, m.burst) r ON true
            GROUP BY 1, 2, 3
    ), first_ones AS (
        SELECT c.task_id, c.rank, u.*,
               row_number() OVER (PARTITION BY u.namespace, u.key ORDER BY c.rank, c.task_id) AS nth_of_key
            FROM rules u CROSS JOIN LATERAL (
                SELECT p.task_id, p.rank FROM task_status p
                    WHERE p.state = 'pending' AND p.capability = cap AND p.namespace = u.namespace AND p.key = u.key
                      AND p.agent_name = u.agent_name AND p.rank < minion_parked()
                    ORDER BY p.rank, p.task_id
                    -- Four times its share: enough if others have less, and little if there are many queues. Unused
                    -- room is left to the next round.
                    LIMIT LEAST(u.free_capability, u.free_agent, u.free_key, (SELECT size FROM room),
                                ceil(4.0 * (SELECT size FROM room) / (SELECT count(*) FROM rules))::integer)) c
            WHERE LEAST(u.free_capability, u.free_agent, u.free_key, 1) > 0
    ), turns AS (
        SELECT f.*, f.nth_of_key + COALESCE(b.n, 0) AS turn FROM first_ones f
            LEFT JOIN busy b ON b.namespace = f.namespace AND b.key = f.key
            WHERE f.nth_of_key <= COALESCE(f.free_key, f.nth_of_key)
    ), within_agents AS (
        -- The keys take turns in the room of an agent's limit, and below in that of the capability.
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
-- `empty`) holds no message; or later ones have overtaken it, though queues are first in, first out. They are published
-- again under the same claim, each time after twice the patience; a duplicate message finds nothing to claim.
CREATE OR REPLACE FUNCTION minion_republish(lease interval, patience interval, empty text[], most integer)
RETURNS TABLE (task_id uuid, claim integer, queue text, agent_name text, soft_time_limit integer,
               time_limit integer, priority smallint) LANGUAGE sql SET enable_seqscan = off SET jit = off AS $$
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
