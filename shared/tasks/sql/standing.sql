-- Standing budgets: limits on the tokens and dollars that models use in an hour, a day or a month, for the installation, a
-- namespace, an agent, a tenant key or a model.
--
-- Before a model call begins, its worst case is reserved in the current period of each budget that applies to it, in the
-- transaction that commits the step as started. When the call is over, its actual use replaces the reservation, in the
-- same period. A reservation that no process replaces (its process died) is spent.
--
-- Lock order: rows of `standing_usage` come after those of `budgets`, by budget; those of `standing_reservations` and
-- `standing_alerts` after these.

-- The calendar period of that moment. (In a zone whose clock is put back, the hour that comes twice is two periods.)
CREATE OR REPLACE FUNCTION minion_period(period text, zone text, moment timestamptz, OUT starts timestamptz,
                                         OUT ends timestamptz) LANGUAGE sql STABLE AS $$
    SELECT date_trunc(period, moment, zone), CASE period
        WHEN 'hour' THEN date_trunc('hour', moment, zone) + interval '1 hour'
        ELSE (date_trunc(period, moment AT TIME ZONE zone) + ('1 ' || period)::interval) AT TIME ZONE zone END
$$;

-- The standing budgets that apply to a task's calls of a model, in the order of locks.
CREATE OR REPLACE FUNCTION minion_standing_of(t uuid, model text) RETURNS SETOF standing_budgets LANGUAGE sql STABLE AS $$
    SELECT b.* FROM task_status s
        CROSS JOIN LATERAL (VALUES ('installation', '', ''), ('namespace', s.namespace, ''),
                                   ('agent', s.namespace, s.agent_name), ('key', s.namespace, s.key),
                                   ('model', s.namespace, model)) AS v (scope, namespace, name)
        JOIN standing_budgets b ON b.scope = v.scope AND b.namespace = v.namespace AND b.name = v.name
        WHERE s.task_id = t ORDER BY b.id
$$;

-- The first standing budget without room for a call, as `minion_breach` reports a budget; NULL: all have room. A budget
-- that only alerts always has room, and so has every budget for what costs nothing of it: a replay of an evaluation runs
-- while the budget is overspent. `asked`: {step, tokens, microdollars, model}. `among`: the budgets to look at, by id;
-- NULL: all that apply.
CREATE OR REPLACE FUNCTION minion_standing_breach(t uuid, among uuid[], asked jsonb, moment timestamptz) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
            'waits_for', 'standing_budget', 'budget', b.id, 'agent', b.scope || ' ' || b.name, 'scope', b.scope,
            'namespace', NULLIF(b.namespace, ''), 'name', NULLIF(b.name, ''), 'period', b.period, 'starts', p.starts,
            'ends', p.ends, 'what', f.what, 'limit', trim_scale(f.most), 'spent', trim_scale(f.spent),
            'reserved', trim_scale(f.held), 'asked', trim_scale(f.wanted), 'step', asked,
            'then', CASE WHEN f.wanted IS NULL THEN 'fail' WHEN f.spent + f.wanted <= f.most THEN 'wait' ELSE b.on_breach END)
        FROM minion_standing_of(t, asked->>'model') b
        CROSS JOIN LATERAL minion_period(b.period, b.timezone, moment) p
        LEFT JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
        CROSS JOIN LATERAL (VALUES
            (1, 'tokens', b.tokens::numeric, COALESCE(u.spent_tokens, 0)::numeric, COALESCE(u.reserved_tokens, 0)::numeric,
                COALESCE((asked->>'tokens')::numeric, 0)),
            (2, 'dollars', b.microdollars / 1000000.0, COALESCE(u.spent_microdollars, 0) / 1000000.0,
                COALESCE(u.reserved_microdollars, 0) / 1000000.0,
                CASE WHEN asked->'microdollars' = 'null' THEN NULL
                     ELSE COALESCE((asked->>'microdollars')::numeric / 1000000, 0) END)
        ) AS f (nth, what, most, spent, held, wanted)
        WHERE b.on_breach <> 'alert' AND f.most IS NOT NULL AND (among IS NULL OR b.id = ANY (among))
          AND (f.wanted IS NULL OR f.wanted > 0 AND f.spent + f.held + f.wanted > f.most)
        ORDER BY b.id, f.nth LIMIT 1
$$;

-- Records that this share of a budget is used up, once in each period.
CREATE OR REPLACE FUNCTION minion_alert(budget uuid, starts timestamptz, reached numeric) RETURNS void LANGUAGE sql AS $$
    INSERT INTO standing_alerts (budget_id, period_start, percent)
        SELECT budget, starts, v.percent FROM standing_usage u, (VALUES (50), (80), (100)) AS v (percent)
            WHERE u.budget_id = budget AND u.period_start = starts AND v.percent <= reached AND NOT EXISTS (
                SELECT 1 FROM standing_alerts a
                    WHERE a.budget_id = budget AND a.period_start = starts AND a.percent = v.percent)
        ON CONFLICT DO NOTHING
$$;

-- Locks the use of a budget in a period; adds the period if it is new, and drops the oldest. False: the budget was removed.
CREATE OR REPLACE FUNCTION minion_lock_usage(budget uuid, starts timestamptz, ends timestamptz) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM standing_usage u WHERE u.budget_id = budget AND u.period_start = starts FOR NO KEY UPDATE;
    IF FOUND THEN
        RETURN true;
    END IF;
    INSERT INTO standing_usage (budget_id, period_start, period_end)
        SELECT b.id, starts, ends FROM standing_budgets b WHERE b.id = budget FOR KEY SHARE
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        DELETE FROM standing_usage u WHERE u.budget_id = budget AND u.period_end < starts - interval '35 days';
    END IF;
    PERFORM 1 FROM standing_usage u WHERE u.budget_id = budget AND u.period_start = starts FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

-- Reserves a call's worst case in every standing budget that applies to it: in all, or in none, and then returns the
-- breach. `asked`: {step, tokens, microdollars, model}. The caller must hold the fence. A budget in which this claim has
-- reserved the step is left out: the answer was lost, or another budget has been added since.
CREATE OR REPLACE FUNCTION minion_reserve_standing(t uuid, c integer, asked jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    budget record;
    locked uuid[] := '{}';
    periods timestamptz[] := '{}';
    breach jsonb;
BEGIN
    FOR budget IN
        SELECT b.id, p.starts, p.ends FROM minion_standing_of(t, asked->>'model') b
            CROSS JOIN LATERAL minion_period(b.period, b.timezone, moment) p
            WHERE NOT EXISTS (SELECT 1 FROM standing_reservations r WHERE r.task_id = t AND r.claim = c
                                  AND r.step = (asked->>'step')::integer AND r.budget_id = b.id)
            ORDER BY b.id
    LOOP
        IF minion_lock_usage(budget.id, budget.starts, budget.ends) THEN
            locked := locked || budget.id;
            periods := periods || budget.starts;
        END IF;
    END LOOP;
    breach := minion_standing_breach(t, locked, asked, moment);
    IF breach IS NOT NULL THEN
        -- It is used up, if running calls alone are not the reason and the call would fit into the whole budget.
        PERFORM minion_alert((breach->>'budget')::uuid, (breach->>'starts')::timestamptz, 100)
            WHERE (breach->>'asked')::numeric BETWEEN (breach->>'limit')::numeric - (breach->>'spent')::numeric + 0.000001
                                                  AND (breach->>'limit')::numeric;
        RETURN breach;
    END IF;
    WITH held AS (
        INSERT INTO standing_reservations AS r (task_id, step, claim, budget_id, period_start, tokens, microdollars)
            SELECT t, (asked->>'step')::integer, c, l.id, l.starts, COALESCE((asked->>'tokens')::bigint, 0),
                   COALESCE((asked->>'microdollars')::bigint, 0)
                FROM unnest(locked, periods) AS l (id, starts)
            RETURNING r.*
    )
    UPDATE standing_usage u SET reserved_tokens = reserved_tokens + h.tokens,
                                reserved_microdollars = reserved_microdollars + h.microdollars
        FROM held h WHERE u.budget_id = h.budget_id AND u.period_start = h.period_start;
    RETURN NULL;
END $$;

-- Adds up what of a budget is used, and records alerts. The caller must hold the lock of its period.
CREATE OR REPLACE FUNCTION minion_use(budget uuid, starts timestamptz, freed_tokens bigint, freed_microdollars bigint,
                                      used_tokens bigint, used_microdollars bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE standing_usage u SET reserved_tokens = reserved_tokens - freed_tokens,
                                reserved_microdollars = reserved_microdollars - freed_microdollars,
                                spent_tokens = spent_tokens + used_tokens,
                                spent_microdollars = spent_microdollars + used_microdollars
        WHERE u.budget_id = budget AND u.period_start = starts;
    PERFORM minion_alert(budget, starts, GREATEST(100.0 * u.spent_tokens / b.tokens,
                                                  100.0 * u.spent_microdollars / b.microdollars))
        FROM standing_budgets b JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = starts
        WHERE b.id = budget;
END $$;

-- Replaces a call's reservations with its actual use, in the periods in which they were made. `used`: {step, tokens,
-- microdollars}; null values are unknown, and their reservation is spent. The caller must hold the fence.
CREATE OR REPLACE FUNCTION minion_settle_standing(t uuid, c integer, used jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held standing_reservations;
BEGIN
    FOR held IN
        SELECT * FROM standing_reservations r
            WHERE r.task_id = t AND r.claim = c AND r.step = (used->>'step')::integer ORDER BY r.budget_id
    LOOP
        PERFORM 1 FROM standing_usage u
            WHERE u.budget_id = held.budget_id AND u.period_start = held.period_start FOR NO KEY UPDATE;
        -- Else the budget was removed.
        IF FOUND THEN
            PERFORM minion_use(held.budget_id, held.period_start, held.tokens, held.microdollars,
                               COALESCE((used->>'tokens')::bigint, held.tokens),
                               COALESCE((used->>'microdollars')::bigint, held.microdollars));
            DELETE FROM standing_reservations r
                WHERE r.task_id = t AND r.claim = c AND r.step = held.step AND r.budget_id = held.budget_id;
        END IF;
    END LOOP;
END $$;

-- Counts reservations as spent that no process will replace: their task does not run under that claim any more, and the
-- call does not wait for a batch. Returns the number of budgets concerned.
CREATE OR REPLACE FUNCTION minion_spend_lost() RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    lost record;
    sums record;
    found_ones integer := 0;
BEGIN
    FOR lost IN
        SELECT DISTINCT r.budget_id, r.period_start FROM standing_reservations r WHERE NOT EXISTS (
                SELECT 1 FROM task_status s WHERE s.task_id = r.task_id AND s.claim = r.claim AND s.state = 'running')
              AND NOT minion_is_batched(r.task_id, r.step, r.claim)
            ORDER BY 1, 2
    LOOP
        PERFORM 1 FROM standing_usage u
            WHERE u.budget_id = lost.budget_id AND u.period_start = lost.period_start FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        WITH gone AS (
            DELETE FROM standing_reservations r
                WHERE r.budget_id = lost.budget_id AND r.period_start = lost.period_start AND NOT EXISTS (
                    SELECT 1 FROM task_status s
                        WHERE s.task_id = r.task_id AND s.claim = r.claim AND s.state = 'running')
                  AND NOT minion_is_batched(r.task_id, r.step, r.claim)
                RETURNING *
        )
        SELECT COALESCE(sum(tokens), 0)::bigint AS tokens, COALESCE(sum(microdollars), 0)::bigint AS microdollars
            INTO sums FROM gone;
        PERFORM minion_use(lost.budget_id, lost.period_start, sums.tokens, sums.microdollars, sums.tokens,
                           sums.microdollars);
        found_ones := found_ones + 1;
    END LOOP;
    RETURN found_ones;
END $$;

-- Wakes tasks that wait for a standing budget: as many as now find room in it, those that it must fail, and all if it was
-- removed or only alerts now. Returns their number. The amounts that a waiting task asks for, and the budget without room
-- for them, are in the error of its last execution.
CREATE OR REPLACE FUNCTION minion_wake_standing(most integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    woken integer;
BEGIN
    WITH waiters AS MATERIALIZED (
        SELECT s.task_id, s.rank, (e.error->>'budget')::uuid AS budget,
               COALESCE((e.error->'step'->>'tokens')::numeric, 0) AS tokens,
               COALESCE((e.error->'step'->>'microdollars')::numeric, 0) AS microdollars
            FROM task_status s JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
            WHERE s.wait_reason = 'standing_budget'
    ), room AS MATERIALIZED (
        SELECT b.id, b.on_breach, b.tokens - COALESCE(u.spent_tokens, 0) AS tokens,
               b.microdollars - COALESCE(u.spent_microdollars, 0) AS microdollars,
               COALESCE(u.reserved_tokens, 0) AS held_tokens, COALESCE(u.reserved_microdollars, 0) AS held_microdollars
            FROM standing_budgets b CROSS JOIN LATERAL minion_period(b.period, b.timezone, clock_timestamp()) p
            LEFT JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
            WHERE b.id IN (SELECT w.budget FROM waiters w)
    ), judged AS (
        SELECT w.*, r.tokens - r.held_tokens AS free_tokens, r.microdollars - r.held_microdollars AS free_microdollars,
               r.id IS NULL OR r.on_breach = 'alert' OR r.on_breach = 'fail' AND NOT (
                   COALESCE(w.tokens <= r.tokens, true) AND COALESCE(w.microdollars <= r.microdollars, true)) AS anyhow
            FROM waiters w LEFT JOIN room r ON r.id = w.budget
    ), fitting AS (
        -- The first ones together, of those that fit alone: the others are looked at again when these have reserved.
        SELECT j.*, sum(j.tokens) OVER line AS all_tokens, sum(j.microdollars) OVER line AS all_microdollars FROM judged j
            WHERE j.anyhow OR COALESCE(j.tokens <= j.free_tokens, true)
                              AND COALESCE(j.microdollars <= j.free_microdollars, true)
            WINDOW line AS (PARTITION BY j.budget, j.anyhow ORDER BY j.rank, j.task_id)
    ), chosen AS (
        SELECT f.task_id FROM fitting f
            WHERE f.anyhow OR COALESCE(f.all_tokens <= f.free_tokens, true)
                              AND COALESCE(f.all_microdollars <= f.free_microdollars, true)
            ORDER BY f.rank, f.task_id LIMIT most
    )
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                -- As an array: a join may compare each waiting task with each chosen one.
                WHERE s.task_id = ANY (ARRAY(SELECT task_id FROM chosen))
                  AND s.state = 'waiting' AND s.wait_reason = 'standing_budget'
                ORDER BY s.task_id FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;
