-- Waits: sub-tasks, timers, signals, decisions and back-off. A waiting task holds no worker.

-- Ends an execution whose task continues later: locks, writes its steps, closes it. NULL: the fence is lost.
-- 'cancelled': a cancellation came first. 'running': the caller must set what the task waits for.
CREATE OR REPLACE FUNCTION minion_stop_running(t uuid, c integer, result jsonb) RETURNS text LANGUAGE plpgsql AS $$
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
-- `children`: [{step, name, request_hash, request}]. `waits`: [{step, name, request_hash, seconds, signal, approval,
-- approval_order}]: a timer, a named signal, or a call to approve (a list of one), with a time-out if there are
-- seconds. Both may have the `program` and the `line` that called. It also waits for its calls that servers finish
-- later. NULL: the fence is lost. Else its current state.
CREATE OR REPLACE FUNCTION minion_suspend(t uuid, c integer, result jsonb, children jsonb, waits jsonb)
RETURNS text LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    wait record;
    state_now text;
    still_open integer := jsonb_array_length(children) + jsonb_array_length(waits);
    ns text := (SELECT namespace FROM tasks WHERE id = t);
BEGIN
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    still_open := still_open + minion_open_remote(t);
    WITH asked AS (
        SELECT child, n FROM jsonb_array_elements(children) WITH ORDINALITY AS a (child, n)
    ), made AS (
        SELECT a.task_id, a.n FROM minion_insert_tasks((
            SELECT COALESCE(jsonb_agg(child->'request' || jsonb_build_object(
                       'namespace', ns, 'parent_id', t, 'parent_step', child->'step') ORDER BY n), '[]')
                FROM asked)) WITH ORDINALITY AS a (task_id, created, n)
    )
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, child_id, program, line)
        SELECT t, (child->>'step')::integer, 'subtask', child->>'name', 'started', 'pure', child->>'request_hash', c,
               made.task_id, (child->>'program')::integer, (child->>'line')::integer
            FROM asked JOIN made USING (n) ORDER BY n;
    IF FOUND THEN
        PERFORM minion_notify_pending();
    END IF;
    FOR wait IN SELECT * FROM jsonb_to_recordset(waits)
            AS x (step integer, name text, request_hash text, seconds double precision, signal boolean,
                  approval jsonb, approval_order jsonb, program integer, line integer) LOOP
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, due_at,
                           program, line)
        VALUES (t, wait.step, 'wait', wait.name, 'started', 'pure', wait.request_hash, c,
                jsonb_build_object('signal', CASE WHEN wait.signal THEN wait.name END, 'seconds', wait.seconds)
                    || CASE WHEN wait.approval IS NULL THEN '{}'::jsonb
                            ELSE jsonb_build_object('approval', wait.approval->0) END,
                wait.approval_order, now() + wait.seconds * interval '1 s', wait.program, wait.line)
        -- A task that was woken by something else requests the same waits again.
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

-- Releases a running task, uncharged, to run again after `delay`, at its own request or because of a limit. NULL: the
-- fence is lost. Else its current state. A `budget` that a task waits for may be another reason: see `minion_refusal`.
CREATE OR REPLACE FUNCTION minion_snooze(t uuid, c integer, result jsonb, delay interval, reason text) RETURNS text
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    state_now text;
    waits_for text := CASE WHEN reason = 'budget' THEN result->'error'->>'waits_for' END;
BEGIN
    reason := COALESCE(waits_for, reason);
    IF reason = 'stopped' OR waits_for = 'handed_back' THEN
        result := result - 'error';
        delay := CASE WHEN waits_for = 'handed_back' THEN interval '10 s' END;
    END IF;
    state_now := minion_stop_running(t, c, result);
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    END IF;
    UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = reason, due_at = now() + delay,
                           updated_at = now()
        WHERE task_id = t;
    IF reason = 'handed_back' THEN
        UPDATE executions SET outcome = reason WHERE task_id = t AND claim = c;
    END IF;
    RETURN 'waiting';
END $$;

-- Suspends a running task until a person decides about an unsafe step that was interrupted. NULL: the fence is lost.
CREATE OR REPLACE FUNCTION minion_ask(t uuid, c integer, result jsonb) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    state_now text := minion_snooze(t, c, result, interval '0', 'answer');
BEGIN
    IF state_now = 'waiting' THEN
        UPDATE task_status SET open_waits = 1, due_at = NULL WHERE task_id = t;
    END IF;
    RETURN state_now;
END $$;

-- The hash of a decision's subject: equal only for the same step with the same request and, for an interrupted step, in
-- the same claim. A decision names it, so that it cannot apply to another proposal. The arguments that the first of
-- several people edited are another proposal, and so are the next questions of a server (`asks`).
CREATE OR REPLACE FUNCTION minion_proposal(s steps) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(convert_to(concat_ws(
        '/', s.task_id, s.number, s.request_hash, CASE WHEN s.kind <> 'wait' THEN s.claim END, s.usage->>'asks',
        CASE WHEN s.approvals->'edited' = 'true' THEN s.approvals->>'arguments' END), 'UTF8')), 'hex'), 12)
$$;

-- Whether a person must answer questions of the server that a step has called.
CREATE OR REPLACE FUNCTION minion_asks(s steps) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT COALESCE(s.usage ? 'asks' AND s.kind = 'tool_call' AND s.status = 'started', false)
$$;

-- The steps of a waiting task that need a person's decision, in order.
CREATE OR REPLACE FUNCTION minion_undecided(t uuid) RETURNS SETOF steps LANGUAGE sql STABLE AS $$
    SELECT s.* FROM steps s JOIN task_status n ON n.task_id = s.task_id
        WHERE s.task_id = t AND s.status = 'started' AND n.state = 'waiting'
          AND (s.input ? 'approval' AND s.kind = 'wait' OR minion_asks(s)
               OR n.wait_reason = 'answer' AND s.effect = 'unsafe')
        ORDER BY s.number
$$;

-- A person's decision about a step: `approve` or `reject` a proposed call (`content`: arguments that replace the
-- proposed ones), or answer (`content`) or decline the questions of a server; `result`, `again` or `fail` for an
-- interrupted one (`content`: its result). `content_order` is the
-- order of its keys.
-- `step_number` and `proposal` (see `minion_proposal`) identify the step; if another one waits, the decision is
-- refused. `approver`: {key, rules, judged}: see `minion_check_approver`; `judged` is the proposal that the rules were
-- chosen for. Returns {state, step, name, proposal, verdict, value, value_order, approvals, people}: the current state of
-- the task, the decision, and with a policy the number of approvals that it has and needs.
CREATE OR REPLACE FUNCTION minion_decide_v2(t uuid, step_number integer, proposal text, verdict text, content jsonb,
                                            content_order jsonb, reason text, who text, approver jsonb)
RETURNS jsonb LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at task_status;
    asked steps;
    waits text;
    value jsonb := content;
    value_order jsonb := content_order;
    decided jsonb := jsonb_build_object('verdict', verdict, 'reason', reason, 'by', who, 'at', now());
    policy jsonb;
    required jsonb;
    given jsonb;
    done boolean := true;
    proposed boolean;
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    END IF;
    SELECT * INTO asked FROM minion_undecided(t) u
        WHERE (step_number IS NULL OR u.number = step_number) AND (proposal IS NULL OR minion_proposal(u) = proposal)
        LIMIT 1;
    IF asked.number IS NULL THEN
        SELECT string_agg(format('step %s (%s, proposal %s)', u.number, u.name, minion_proposal(u)), ', ') INTO waits
            FROM minion_undecided(t) u;
        IF waits IS NULL THEN
            RAISE EXCEPTION 'Task % (%) is not waiting for a decision%. `minion why %` shows what it waits for.', t, now_at.state,
                COALESCE(' about step ' || step_number, ' about proposal ' || proposal, ''), t USING ERRCODE = 'MN009';
        END IF;
        RAISE EXCEPTION 'Task % is not waiting for a decision about %. It is waiting for one about %.', t,
            concat_ws(', ', 'step ' || step_number, 'proposal ' || left(proposal, 64)), waits USING ERRCODE = 'MN009';
    END IF;
    proposed := asked.kind = 'wait' OR minion_asks(asked);
    IF proposed <> (verdict IN ('approve', 'reject')) THEN
        RAISE EXCEPTION 'The verdict on step % must be %.', asked.number,
            CASE WHEN proposed THEN 'approve or reject' ELSE 'result, again or fail' END USING ERRCODE = 'MN007';
    END IF;
    PERFORM minion_check_json(content, 'The value');
    IF verdict = 'approve' AND content IS NULL THEN
        value := COALESCE(asked.approvals->'arguments', CASE WHEN asked.kind = 'wait' THEN asked.input->'approval'
            ELSE (SELECT r.proposed FROM remote_calls r WHERE r.task_id = t AND r.step = asked.number) END);
        value_order := CASE WHEN asked.approvals ? 'arguments' THEN NULLIF(asked.approvals->'order', 'null')
                            ELSE asked.input_order END;
    END IF;
    policy := minion_approval_policy(asked);
    given := asked.approvals;
    IF policy IS NOT NULL THEN
        required := minion_check_approver(asked, policy, verdict, approver);
        IF approver->>'judged' IS DISTINCT FROM minion_proposal(asked) OR given->'edited' = 'true' AND proposal IS NULL THEN
            RAISE EXCEPTION 'The arguments of step % (%) were edited by an approver since they were proposed. `minion why %` '
                'shows them; a decision must name their proposal, %.', asked.number, asked.name, t, minion_proposal(asked)
                USING ERRCODE = 'MN009';
        END IF;
        IF verdict = 'approve' THEN
            given := minion_add_approval(asked, (required->>'people')::integer, value, value_order, jsonb_build_object(
                'key', approver->'key', 'by', who, 'at', now(), 'reason', reason));
            done := jsonb_array_length(given->'by') >= (required->>'people')::integer;
        END IF;
        decided := decided || jsonb_build_object('key', approver->'key', 'approvals', COALESCE(given->'by', '[]'));
    END IF;
    IF NOT done THEN
        UPDATE steps SET approvals = given WHERE task_id = t AND number = asked.number;
    ELSIF minion_asks(asked) THEN
        UPDATE steps SET approvals = given WHERE task_id = t AND number = asked.number;
        PERFORM minion_answer_remote(t, asked.number, jsonb_build_object(
            'verdict', verdict, 'value', value, 'decision', decided));
    ELSE
        DELETE FROM remote_calls WHERE task_id = t AND step = asked.number;
        UPDATE steps SET finished_at = now(), approvals = given,
                status = CASE WHEN verdict IN ('approve', 'result') THEN 'finished' ELSE 'failed' END,
                output = CASE verdict WHEN 'approve' THEN decided || jsonb_build_object('arguments', value)
                                      WHEN 'result' THEN value END,
                output_order = CASE WHEN verdict IN ('approve', 'result') THEN value_order END,
                usage = CASE WHEN asked.kind = 'wait' THEN usage ELSE jsonb_build_object('decision', decided) END,
                error = CASE verdict
                    WHEN 'reject' THEN jsonb_build_object('type', 'rejected', 'message',
                        format('%s was rejected%s.', asked.name, COALESCE(': ' || reason, '')), 'decision', decided)
                    WHEN 'fail' THEN jsonb_build_object('type', 'tool_error', 'message',
                        format('Step %s (%s) was interrupted and did not happen%s.', asked.number, asked.name,
                               COALESCE(': ' || reason, '')), 'decision', decided)
                    WHEN 'again' THEN jsonb_build_object('type', 'interrupted', 'message', 'It is retried.',
                        'retryable', true, 'decision', decided) END
            WHERE task_id = t AND number = asked.number;
        PERFORM minion_count_down(t, 1);
    END IF;
    RETURN jsonb_build_object(
        'state', (SELECT state FROM task_status WHERE task_id = t), 'step', asked.number, 'name', asked.name,
        'proposal', minion_proposal(asked), 'verdict', verdict, 'value', value, 'value_order', value_order,
        'approvals', CASE WHEN required IS NOT NULL THEN jsonb_array_length(COALESCE(given->'by', '[]')) END,
        'people', required->'people');
END $$;

-- For orchestrators of release 0.2.
CREATE OR REPLACE FUNCTION minion_decide(t uuid, step_number integer, verdict text, content jsonb, reason text, who text)
RETURNS text LANGUAGE sql AS $$
    SELECT minion_decide_v2(t, step_number, NULL, verdict, content, NULL, reason, who, NULL)->>'state'
$$;

-- The oldest signal of that name that no other wait has consumed finishes the step.
CREATE OR REPLACE FUNCTION minion_take_signal(t uuid, wait_step integer, signal text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    taken signals;
BEGIN
    UPDATE signals SET step = wait_step WHERE id = (
            SELECT id FROM signals WHERE task_id = t AND name = signal AND step IS NULL ORDER BY id LIMIT 1)
        RETURNING * INTO taken;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE steps SET status = 'finished', finished_at = now(), output_order = taken.payload_order,
            output = jsonb_build_object('signal', signal, 'payload', taken.payload, 'sent_at', taken.created_at)
        WHERE task_id = t AND number = wait_step;
    RETURN true;
END $$;

-- For orchestrators of release 0.2.
CREATE OR REPLACE FUNCTION minion_signal(t uuid, signal text, content jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT minion_signal_v2(t, signal, content, NULL)
$$;

-- Sends a signal to a task. It is kept until the task waits for it. `content_order` is the order of its keys
-- (`minion_key_order`). Returns the current state of the task.
CREATE OR REPLACE FUNCTION minion_signal_v2(t uuid, signal text, content jsonb, content_order jsonb) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at task_status;
    wait_step integer;
BEGIN
    SELECT * INTO now_at FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task %.', t USING ERRCODE = 'MN008';
    ELSIF now_at.state IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
        RAISE EXCEPTION 'The task % has ended (%): it accepts no more signals.', t, now_at.state USING ERRCODE = 'MN009';
    END IF;
    PERFORM minion_check_json(content, 'The payload');
    INSERT INTO signals (task_id, name, payload, payload_order) VALUES (t, signal, content, content_order);
    IF now_at.state = 'waiting' THEN
        SELECT number INTO wait_step FROM steps WHERE task_id = t AND kind = 'wait' AND status = 'started'
            AND input->>'signal' = signal ORDER BY number LIMIT 1;
        IF FOUND AND minion_take_signal(t, wait_step, signal) THEN
            PERFORM minion_count_down(t, 1);
        END IF;
    END IF;
    RETURN (SELECT state FROM task_status WHERE task_id = t);
END $$;

-- Wakes scheduled tasks that are due, and waiting ones whose time ran out. A wait that timed out is a finished step
-- with that result.
CREATE OR REPLACE FUNCTION minion_wake_due(most integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
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

-- The reason for which a task waits; approvals take precedence, so that the person who must act is shown first.
CREATE OR REPLACE FUNCTION minion_waits_for(t uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN bool_or(s.input ? 'approval') OR EXISTS (
                    SELECT 1 FROM remote_calls r WHERE r.task_id = t AND r.state = 'input_required') THEN 'approval'
                WHEN bool_or(s.kind = 'subtask') THEN 'subtask'
                WHEN bool_or(s.input->>'signal' IS NOT NULL) THEN 'signal'
                WHEN minion_open_remote(t) > 0 THEN 'remote_task' ELSE 'timer' END
        FROM steps s WHERE s.task_id = t AND s.kind IN ('subtask', 'wait') AND s.status = 'started'
$$;

-- Counts down finished waits of a waiting task and wakes it once, at zero. The caller must hold its lock.
CREATE OR REPLACE FUNCTION minion_count_down(t uuid, over integer) RETURNS boolean LANGUAGE plpgsql AS $$
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

-- Wakes waiting tasks without open steps, whatever their count says. A safety net: the count is kept in the transactions
-- that end the waits. It checks `most` waiting tasks at a time, those after the task `after`: a stretch of two indexes,
-- which are compared as a whole. A wait that began in the future began now, and ends as much earlier: the clock was put
-- back (`minion_heal_clock`).
-- A generic plan does not know how long the stretch is, and reads the ended tasks in it too.
-- Returns the number of woken tasks, and the last checked one; NULL: there are no more.
CREATE OR REPLACE FUNCTION minion_heal_waits(after uuid, most integer, OUT woken integer, OUT last uuid) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    first uuid := COALESCE(after, '00000000-0000-0000-0000-000000000000');
    until uuid;
    early record;
BEGIN
    SELECT s.task_id INTO last FROM task_status s
        WHERE s.state = 'waiting' AND s.task_id > first ORDER BY s.task_id OFFSET most - 1 LIMIT 1;
    until := COALESCE(last, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    FOR early IN
        SELECT s.task_id, s.updated_at - clock_timestamp() AS extra FROM task_status s
            WHERE s.state = 'waiting' AND s.task_id > first AND s.task_id <= until
              AND s.updated_at > clock_timestamp() + interval '1 s'
            ORDER BY s.task_id FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE steps SET due_at = due_at - early.extra
            WHERE task_id = early.task_id AND kind = 'wait' AND status = 'started';
        UPDATE task_status SET due_at = due_at - early.extra, updated_at = updated_at - early.extra
            WHERE task_id = early.task_id;
    END LOOP;
    UPDATE task_status SET state = 'pending', wait_reason = NULL, open_waits = 0, due_at = NULL, updated_at = now()
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.state = 'waiting' AND s.task_id > first AND s.task_id <= until
                  AND s.updated_at < now() - interval '10 s'
                  AND (s.wait_reason IN ('subtask', 'signal', 'timer', 'approval', 'remote_task')
                       AND NOT EXISTS (SELECT 1 FROM remote_calls r WHERE r.task_id = s.task_id
                                         AND r.state IN ('working', 'input_required'))
                       AND NOT EXISTS (SELECT 1 FROM steps w WHERE w.task_id = s.task_id AND w.status = 'started'
                                         AND w.kind IN ('subtask', 'wait')
                                         AND w.task_id > first AND w.task_id <= until)
                       OR s.wait_reason = 'batch'
                       AND NOT EXISTS (SELECT 1 FROM batch_calls b WHERE b.task_id = s.task_id AND b.result IS NULL))
                FOR NO KEY UPDATE OF s SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
END $$;
