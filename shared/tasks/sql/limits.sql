-- Pauses, limits and rate holds: why a task may not start now.

-- The limits that apply to a task, the narrowest name of each scope. `burst` is the number of tasks that may start at
-- once within the rate: see `workers/limiter.py`.
CREATE OR REPLACE FUNCTION minion_limits_of(ns text, cap text, agent text, k text)
RETURNS TABLE (scope text, name text, rule text, max_running integer, rate integer, period_seconds double precision,
               burst integer) LANGUAGE sql STABLE AS $$
    SELECT DISTINCT ON (l.scope) l.scope, v.name, l.name, l.max_running, l.rate, l.period_seconds,
           GREATEST(1, l.rate / 10)
        FROM (VALUES ('capability', cap), ('agent', agent), ('key', k)) AS v (scope, name)
        JOIN limits l ON l.namespace = ns AND l.scope = v.scope AND l.name IN (v.name, '*')
        WHERE v.name <> '' ORDER BY l.scope, l.name = '*'
$$;

-- Why a task may not start now: {kind: turn | paused | max_running | rate, scope, name, …}; NULL: it may.
-- Claims of one conversation wait for each other here, and so do those under one limit, so that their count is exact.
CREATE OR REPLACE FUNCTION minion_obstacle(s task_status, granted boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    pause record;
    rule record;
    running_now integer;
    rates jsonb := '[]';
    first uuid;
BEGIN
    -- A task that was accepted late, or scheduled, may have an earlier id than one that has begun since.
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

-- Rate hold: returns a queued task whose rate is used up to pending, and stops dispatch in that scope for `delay`.
CREATE OR REPLACE FUNCTION minion_hold(t uuid, expected integer, rule_scope text, rule_name text, delay interval)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
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
