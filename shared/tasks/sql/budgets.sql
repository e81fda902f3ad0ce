-- Budgets: limits on the use of a task and everything below it.
--
-- `tasks.budget_ids` lists the tasks whose budgets apply to a task, the root first: NULL for most. Before a step
-- begins, its worst case is added to each of them, in the transaction that commits the step as started. When the step
-- is over, its actual use replaces that. A reservation that no process replaces (its process died) stays spent.
--
-- Lock order: rows of `budgets` come after those of tasks, the root's first.

-- The budget of a new task: the requested one, that of the task it replays, or that of its agent.
CREATE OR REPLACE FUNCTION minion_budget_for(request jsonb, version uuid) RETURNS jsonb LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    found jsonb := NULLIF(request->'budget', 'null'::jsonb);
BEGIN
    IF found IS NULL AND request->>'replay_of' IS NOT NULL THEN
        SELECT jsonb_build_object('tokens', b.tokens, 'dollars', b.microdollars / 1000000.0, 'steps', b.steps,
                                  'seconds', b.seconds, 'on_breach', b.on_breach)
            INTO found FROM budgets b WHERE b.task_id = (request->>'replay_of')::uuid;
    END IF;
    IF found IS NULL THEN
        SELECT v.definition->'config'->'budget' INTO found FROM agent_versions v WHERE v.id = version;
    END IF;
    RETURN NULLIF(found, 'null'::jsonb);
END $$;

CREATE OR REPLACE FUNCTION minion_check_budget(given jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fault text;
BEGIN
    IF jsonb_typeof(given) <> 'object' THEN
        RAISE EXCEPTION 'budget must be an object such as {"dollars": 0.5, "on_breach": "ask"}.' USING ERRCODE = 'MN007';
    END IF;
    SELECT format('budget.%s is %s: %s', left(m.name, 100), left(m.value::text, 100),
                  CASE WHEN k.most IS NULL THEN 'a budget must have only tokens, dollars, steps, seconds and on_breach (ask or fail)'
                       ELSE format('it must be a%s number above 0, at most %s', CASE WHEN k.whole THEN ' whole' ELSE '' END, k.most)
                  END) INTO fault
        FROM jsonb_each(given) AS m (name, value)
        LEFT JOIN (VALUES ('tokens', 1000000000000, true), ('dollars', 1000000000, false), ('steps', 1000000000, true),
                          ('seconds', 1000000000, false)) AS k (name, most, whole) ON k.name = m.name
        WHERE m.value <> 'null' AND CASE
            WHEN m.name = 'on_breach' THEN m.value NOT IN ('"ask"', '"fail"')
            WHEN k.name IS NULL OR jsonb_typeof(m.value) <> 'number' THEN true
            ELSE m.value::numeric NOT BETWEEN 0.000001 AND k.most OR k.whole AND m.value::numeric % 1 <> 0 END
        LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION '%.', fault USING ERRCODE = 'MN007';
    ELSIF jsonb_strip_nulls(given) - 'on_breach' = '{}' THEN
        RAISE EXCEPTION 'A budget must limit something: tokens, dollars, steps or seconds.' USING ERRCODE = 'MN007';
    END IF;
END $$;

-- Inserts the budgets of new tasks, both in the same order.
CREATE OR REPLACE FUNCTION minion_open_budgets(ids uuid[], given jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM minion_check_budget(g.value) FROM (SELECT DISTINCT value FROM unnest(given) AS value) AS g;
    INSERT INTO budgets (task_id, tokens, microdollars, steps, seconds, on_breach)
        SELECT b.id, (b.given->>'tokens')::numeric, (b.given->>'dollars')::numeric * 1000000,
               (b.given->>'steps')::numeric, (b.given->>'seconds')::double precision,
               COALESCE(b.given->>'on_breach', 'ask')
            FROM unnest(ids, given) AS b (id, given);
END $$;

CREATE OR REPLACE FUNCTION minion_open_budget(t uuid, given jsonb) RETURNS void LANGUAGE sql AS $$
    SELECT minion_open_budgets(ARRAY[t], ARRAY[given])
$$;

-- The first budget without room for the request ({tokens, microdollars, steps}; `microdollars` null: the price is
-- unknown). NULL: all have room. `then`: the consequence. `fail` and `ask` are the budget's own setting; `wait` means
-- that the missing amount is reserved by other running steps, which will give back a part. `at`: the version of the
-- budget, by its `changed_at`. As long as that is the same, the budget has no more room than now.
CREATE OR REPLACE FUNCTION minion_breach(ids uuid[], asked jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    tight record;
    held numeric;
BEGIN
    SELECT b.task_id, k.agent_name, b.on_breach, b.changed_at, f.* INTO tight
        FROM unnest(ids) WITH ORDINALITY AS u (id, n) JOIN budgets b ON b.task_id = u.id JOIN tasks k ON k.id = u.id
        LEFT JOIN executions e ON e.task_id = b.task_id AND e.claim = 1
        CROSS JOIN LATERAL (VALUES
            (1, 'tokens', b.tokens::numeric, b.spent_tokens::numeric, COALESCE((asked->>'tokens')::numeric, 0)),
            (2, 'dollars', b.microdollars / 1000000.0, b.spent_microdollars / 1000000.0,
                CASE WHEN asked->'microdollars' = 'null' THEN NULL
                     ELSE COALESCE((asked->>'microdollars')::numeric / 1000000, 0) END),
            (3, 'steps', b.steps, b.spent_steps, COALESCE((asked->>'steps')::numeric, 0)),
            (4, 'seconds', b.seconds::numeric, extract(epoch FROM clock_timestamp() - e.started_at), 0)
        ) AS f (nth, what, most, spent, asked)
        WHERE f.spent + f.asked > f.most OR f.most IS NOT NULL AND f.asked IS NULL
        ORDER BY u.n, f.nth LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT COALESCE(sum(CASE tight.what WHEN 'tokens' THEN r.tokens WHEN 'dollars' THEN r.microdollars / 1000000.0 END), 0)
        INTO held FROM reservations r
        JOIN task_status s ON s.task_id = r.task_id
        WHERE r.budget_task_id = tight.task_id AND r.settled_at IS NULL
          AND (s.state = 'running' AND s.claim = r.claim OR minion_is_batched(r.task_id, r.step, r.claim));
    RETURN jsonb_build_object(
        'budget', tight.task_id, 'agent', tight.agent_name, 'what', tight.what, 'limit', trim_scale(tight.most),
        'spent', trim_scale(round(tight.spent - held, 6)), 'reserved', trim_scale(held),
        'asked', trim_scale(tight.asked), 'step', asked, 'at', tight.changed_at,
        'then', CASE WHEN tight.asked IS NULL THEN 'fail'
                     WHEN tight.spent - held + tight.asked <= tight.most THEN 'wait' ELSE tight.on_breach END);
END $$;

CREATE OR REPLACE FUNCTION minion_lock_budgets(ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one uuid;
BEGIN
    FOREACH one IN ARRAY ids LOOP
        PERFORM 1 FROM budgets WHERE task_id = one FOR NO KEY UPDATE;
    END LOOP;
END $$;

-- Charges a step's worst case to every budget above it: to all, or to none, and then returns the breach.
-- `asked`: {step, tokens, microdollars, steps}. The caller must hold the fence. A repeated call changes nothing: a
-- connection may be lost after the commit.
CREATE OR REPLACE FUNCTION minion_reserve(t uuid, c integer, asked jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[] := (SELECT budget_ids FROM tasks WHERE id = t);
    breach jsonb;
    begun boolean := EXISTS (SELECT 1 FROM reservations WHERE task_id = t AND step = (asked->>'step')::integer);
    free boolean := COALESCE((asked->>'tokens')::bigint, 0) = 0 AND COALESCE((asked->>'microdollars')::bigint, 0) = 0;
BEGIN
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM minion_lock_budgets(ids);
    IF EXISTS (SELECT 1 FROM reservations WHERE task_id = t AND step = (asked->>'step')::integer AND claim = c) THEN
        RETURN NULL;
    END IF;
    -- A step counts once, however often it begins. Its tokens and dollars count each time.
    asked := asked || jsonb_build_object('steps', CASE WHEN begun THEN 0 ELSE (asked->>'steps')::integer END);
    breach := minion_breach(ids, asked);
    IF breach IS NOT NULL THEN
        RETURN breach;
    END IF;
    INSERT INTO reservations (task_id, step, claim, budget_task_id, tokens, microdollars, steps, settled_at)
        SELECT t, (asked->>'step')::integer, c, id, COALESCE((asked->>'tokens')::bigint, 0),
               COALESCE((asked->>'microdollars')::bigint, 0), (asked->>'steps')::integer, CASE WHEN free THEN now() END
            FROM unnest(ids) AS id;
    UPDATE budgets b SET
            spent_tokens = spent_tokens + COALESCE((asked->>'tokens')::bigint, 0),
            spent_microdollars = spent_microdollars + COALESCE((asked->>'microdollars')::bigint, 0),
            spent_steps = spent_steps + (asked->>'steps')::bigint,
            due_at = COALESCE(due_at, (SELECT e.started_at + b.seconds * interval '1 s' FROM executions e
                                           WHERE e.task_id = b.task_id AND e.claim = 1))
        WHERE task_id = ANY (ids);
    RETURN NULL;
END $$;

-- Replaces a step's reservation with its actual use. `used`: {step, tokens, microdollars}; null values are unknown, and
-- their reservation stays spent.
CREATE OR REPLACE FUNCTION minion_settle_step(t uuid, c integer, used jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM tasks WHERE id = t AND budget_ids IS NULL) THEN
        PERFORM minion_settle_standing(t, c, used);
        RETURN;
    END IF;
    PERFORM minion_lock_budgets((SELECT budget_ids FROM tasks WHERE id = t));
    UPDATE budgets b SET
            spent_tokens = spent_tokens - r.tokens + COALESCE((used->>'tokens')::bigint, r.tokens),
            spent_microdollars = spent_microdollars - r.microdollars
                + COALESCE((used->>'microdollars')::bigint, r.microdollars),
            changed_at = clock_timestamp()
        FROM reservations r
        WHERE r.budget_task_id = b.task_id AND r.task_id = t AND r.claim = c AND r.step = (used->>'step')::integer
          AND r.settled_at IS NULL;
    UPDATE reservations SET settled_at = now(), tokens = COALESCE((used->>'tokens')::bigint, tokens),
                            microdollars = COALESCE((used->>'microdollars')::bigint, microdollars)
        WHERE task_id = t AND claim = c AND step = (used->>'step')::integer AND settled_at IS NULL;
    PERFORM minion_settle_standing(t, c, used);
END $$;

-- Takes back the reservation of a step that does not begin, as if it had not been made. The caller must hold the fence.
CREATE OR REPLACE FUNCTION minion_withdraw(t uuid, c integer, withdrawn integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM reservations WHERE task_id = t AND claim = c AND step = withdrawn RETURNING *)
    UPDATE budgets b SET spent_tokens = spent_tokens - g.tokens, spent_microdollars = spent_microdollars - g.microdollars,
                         spent_steps = spent_steps - g.steps, changed_at = clock_timestamp()
        FROM gone g WHERE b.task_id = g.budget_task_id;
    PERFORM minion_settle_standing(t, c, jsonb_build_object('step', withdrawn, 'tokens', 0, 'microdollars', 0));
END $$;

-- `minion_write_steps` with the amounts that a step reserves or has used, of the budgets above its task and of standing
-- ones. If a budget has no room, nothing is written, and the flags contain the `breach`.
CREATE OR REPLACE FUNCTION minion_spend(t uuid, c integer, journal jsonb, reserve jsonb, used jsonb) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    breach jsonb;
    flags jsonb;
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    -- A cancelled task begins no more steps.
    IF reserve IS NOT NULL AND NOT (SELECT cancel_requested FROM task_status WHERE task_id = t) THEN
        breach := minion_reserve(t, c, reserve);
        IF breach IS NULL AND EXISTS (SELECT 1 FROM standing_budgets) THEN
            breach := (
                SELECT minion_reserve_standing(t, c, reserve || jsonb_build_object('model', s.name))
                    FROM jsonb_to_recordset(journal) AS s (number integer, kind text, name text)
                    WHERE s.number = (reserve->>'step')::integer AND s.kind = 'model_call');
            IF breach IS NOT NULL THEN
                PERFORM minion_withdraw(t, c, (reserve->>'step')::integer);
            END IF;
        END IF;
        IF breach IS NOT NULL THEN
            RETURN jsonb_build_object('cancel', false, 'breach', breach);
        END IF;
    END IF;
    IF used IS NOT NULL THEN
        PERFORM minion_settle_step(t, c, used);
    END IF;
    flags := minion_write_steps(t, c, journal);
    -- A step without a reservation is repeated at once, with one.
    IF flags ? 'breach' AND NOT flags ? 'unreserved' THEN
        PERFORM minion_withdraw(t, c, (reserve->>'step')::integer);
    END IF;
    RETURN flags;
END $$;

-- Wakes tasks that wait for a budget (for `owner`'s, if given) that now has room for them, and those that it must fail.
-- Returns their number. The requested amounts of a waiting task, and the budget without room for them, are in the error
-- of its last execution.
CREATE OR REPLACE FUNCTION minion_wake_funded(most integer, owner uuid DEFAULT NULL) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    waiter record;
    breach jsonb;
    together jsonb;
    root uuid;
    tokens bigint;
    microdollars bigint;
    woken integer := 0;
BEGIN
    FOR waiter IN
        SELECT * FROM (
            SELECT s.task_id, s.claim, s.rank, k.root_id, k.budget_ids, e.error->'step' AS asked
                FROM task_status s JOIN tasks k ON k.id = s.task_id
                JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
                JOIN budgets b ON b.task_id = (e.error->>'budget')::uuid
                WHERE s.state = 'waiting' AND s.wait_reason = 'budget' AND (owner IS NULL OR b.task_id = owner)
                  -- For the others nothing has changed. (A budget that fails tasks has waiting ones only while running
                  -- steps hold the missing amounts; those steps may die without a change.)
                  AND (b.on_breach = 'fail' OR b.changed_at <> (e.error->>'at')::timestamptz)
                -- Random, so that none is always left out if there are more than `most`.
                ORDER BY random() LIMIT most FOR NO KEY UPDATE OF s SKIP LOCKED) w
            ORDER BY w.root_id, w.rank, w.task_id
    LOOP
        IF waiter.root_id IS DISTINCT FROM root THEN
            root := waiter.root_id;
            tokens := 0;
            microdollars := 0;
        END IF;
        breach := minion_breach(waiter.budget_ids, waiter.asked);
        IF breach->>'then' <> 'fail' THEN
            -- The task waits for the next change of the budget that it lacks now.
            UPDATE executions SET error = error || jsonb_build_object('budget', breach->'budget', 'at', breach->'at')
                WHERE task_id = waiter.task_id AND claim = waiter.claim;
            CONTINUE;
        ELSIF breach IS NULL THEN
            together := waiter.asked || jsonb_build_object(
                'tokens', tokens + COALESCE((waiter.asked->>'tokens')::bigint, 0),
                'microdollars', microdollars + COALESCE((waiter.asked->>'microdollars')::bigint, 0));
            -- There is room, but the tasks before it may take it. It is checked again, since they may leave some.
            CONTINUE WHEN minion_breach(waiter.budget_ids, together) IS NOT NULL;
            tokens := together->>'tokens';
            microdollars := together->>'microdollars';
        END IF;
        UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now() WHERE task_id = waiter.task_id;
        woken := woken + 1;
    END LOOP;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN woken;
END $$;

-- Changes the budget that a task waits for, or else its own: `extra` {tokens, microdollars, steps, seconds} is added to
-- its limits (seconds from now on, if they are over); `stop` makes it fail tasks that find no room. Wakes the tasks
-- concerned. Returns the id of the budget's task.
CREATE OR REPLACE FUNCTION minion_change_budget(t uuid, extra jsonb, stop boolean) RETURNS uuid LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    owner uuid;
    missing text;
BEGIN
    SELECT COALESCE(e.error->>'budget', b.task_id::text)::uuid INTO owner
        FROM task_status s LEFT JOIN budgets b ON b.task_id = s.task_id
        LEFT JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim AND s.wait_reason = 'budget'
        WHERE s.task_id = t;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    ELSIF owner IS NULL THEN
        RAISE EXCEPTION 'The task % does not have its own budget, and does not wait for one.', t USING ERRCODE = 'MN009';
    ELSIF EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = owner) THEN
        RAISE EXCEPTION 'The task % has ended: a change of its budget has no effect.', owner USING ERRCODE = 'MN009';
    END IF;
    SELECT x.name INTO missing FROM budgets b, LATERAL (VALUES ('tokens', b.tokens::numeric), ('dollars', b.microdollars),
            ('steps', b.steps), ('seconds', b.seconds)) AS x (name, most)
        WHERE b.task_id = owner AND x.most IS NULL
          AND COALESCE(extra->>CASE x.name WHEN 'dollars' THEN 'microdollars' ELSE x.name END, '0')::numeric <> 0 LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'The budget of task % has no limit in %, so there is nothing to raise.', owner, missing
            USING ERRCODE = 'MN009';
    END IF;
    -- A separate statement: values computed before it waits for a lock would be out of date.
    PERFORM minion_lock_budgets(ARRAY[owner]);
    UPDATE budgets b SET
            tokens = b.tokens + COALESCE((extra->>'tokens')::bigint, 0),
            microdollars = b.microdollars + COALESCE((extra->>'microdollars')::bigint, 0),
            steps = b.steps + COALESCE((extra->>'steps')::bigint, 0),
            seconds = n.seconds,
            due_at = b.due_at + (n.seconds - b.seconds) * interval '1 s',
            on_breach = CASE WHEN stop THEN 'fail' ELSE on_breach END,
            changed_at = clock_timestamp()
        FROM (SELECT o.task_id, CASE WHEN extra->>'seconds' IS NULL THEN o.seconds
                     ELSE GREATEST(o.seconds, extract(epoch FROM clock_timestamp() - e.started_at))
                          + (extra->>'seconds')::double precision END AS seconds
                  FROM budgets o LEFT JOIN executions e ON e.task_id = o.task_id AND e.claim = 1) AS n
        WHERE b.task_id = owner AND n.task_id = owner;
    PERFORM minion_wake_funded(1000, owner);
    RETURN owner;
END $$;

-- Tasks whose time is over and that must fail now, the oldest first, each with its breach. Ended tasks are no longer
-- due: they are all unmarked at once, so that they do not fill the batch, and without waiting for locks. (Not when a
-- task is settled: that would lock the budget of a tree before its sub-tasks.) Queued tasks find out themselves.
CREATE OR REPLACE FUNCTION minion_overtime(most integer) RETURNS TABLE (task_id uuid, breach jsonb) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    UPDATE budgets SET due_at = NULL WHERE task_id IN (
        SELECT b.task_id FROM budgets b JOIN task_outcomes o ON o.task_id = b.task_id
            WHERE b.due_at < now() AND b.on_breach = 'fail'
            ORDER BY b.due_at LIMIT 10 * most FOR NO KEY UPDATE OF b SKIP LOCKED);
    RETURN QUERY SELECT b.task_id, minion_breach(ARRAY[b.task_id], '{}') FROM budgets b
        JOIN task_status s ON s.task_id = b.task_id AND s.state IN ('pending', 'running', 'waiting')
        WHERE b.due_at < now() AND b.on_breach = 'fail' ORDER BY b.due_at LIMIT most;
END $$;

-- Fails a task whose time is over, and cancels everything below it. Its execution counts as expired, which makes a
-- worker stop its processes. False: the task has ended, or is queued and will find out itself.
CREATE OR REPLACE FUNCTION minion_fail_overtime(t uuid, failure jsonb) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at task_status;
BEGIN
    PERFORM minion_lock_parent(t);
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF now_at.state = 'queued' THEN
        RETURN false;
    END IF;
    IF now_at.state IN ('pending', 'running', 'waiting') THEN
        PERFORM minion_end_tree(t, 'failed', failure);
        UPDATE executions SET outcome = 'expired' WHERE task_id = t AND claim = now_at.claim AND now_at.state = 'running';
    END IF;
    UPDATE budgets SET due_at = NULL WHERE task_id = t;
    RETURN now_at.state IN ('pending', 'running', 'waiting');
END $$;

-- A task's own budget as presented to users. Amounts held by running steps are `reserved`, and not yet `spent`.
CREATE OR REPLACE FUNCTION minion_budget_of(t uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
            'on_breach', b.on_breach,
            'tokens', jsonb_build_object('limit', b.tokens, 'spent', b.spent_tokens - h.tokens, 'reserved', h.tokens),
            'dollars', jsonb_build_object('limit', trim_scale(b.microdollars / 1000000.0),
                'spent', trim_scale((b.spent_microdollars - h.microdollars) / 1000000.0),
                'reserved', trim_scale(h.microdollars / 1000000.0)),
            'steps', jsonb_build_object('limit', b.steps, 'spent', b.spent_steps),
            -- Negative while a clock that was put back catches up.
            'seconds', jsonb_build_object('limit', b.seconds, 'spent', round(GREATEST(COALESCE(extract(
                epoch FROM COALESCE(o.finished_at, clock_timestamp()) - e.started_at), 0), 0), 3)))
        FROM budgets b LEFT JOIN executions e ON e.task_id = b.task_id AND e.claim = 1
        LEFT JOIN task_outcomes o ON o.task_id = b.task_id
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(r.tokens), 0) AS tokens, COALESCE(sum(r.microdollars), 0) AS microdollars
                FROM reservations r JOIN task_status s ON s.task_id = r.task_id
                WHERE r.budget_task_id = b.task_id AND r.settled_at IS NULL
                  AND (s.state = 'running' AND s.claim = r.claim OR minion_is_batched(r.task_id, r.step, r.claim))) h
        WHERE b.task_id = t
$$;
