-- Calls that an MCP server finishes later, without a worker of ours: as its own task, which is polled, or after a person
-- has answered its questions. The step of the call stays `started`, and its row in `remote_calls` says how far the call
-- is. A row is written before anything waits for it, in the transaction that has the fence.
--
-- States: `working` and `input_required` as the server says; `answered`: the worker must repeat a plain call with the
-- answers; `sent`: it has begun to; `done`: the result has arrived; `cancelling`: the task of ours that waited has ended,
-- and the server gets a cancellation. Only rows with a `remote_id` are polled.
--
-- Lock order: a task's row, then its rows of `remote_calls`.

-- Writes journal steps under the fence, and the call of one of them, which the server finishes later. A call that an
-- earlier claim began is replaced, and calls of steps that have ended are deleted. False: the fence is lost.
CREATE OR REPLACE FUNCTION minion_begin_remote(t uuid, c integer, journal jsonb, call jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN false;
    END IF;
    PERFORM minion_put_steps(t, c, journal);
    DELETE FROM remote_calls r WHERE r.task_id = t AND (r.step = (call->>'step')::integer OR EXISTS (
        SELECT 1 FROM steps s WHERE s.task_id = t AND s.number = r.step AND s.status <> 'started'));
    INSERT INTO remote_calls (task_id, step, namespace, server, server_version_id, remote_id, state, message, requests,
                              form, proposed, request_state, round, poll_seconds, due_at, expires_at)
        SELECT t, n.step, n.namespace, n.server, n.server_version_id, n.remote_id, n.state, n.message, n.requests, n.form,
               n.proposed, n.request_state, n.round, n.poll_seconds, now() + n.poll_seconds * interval '1 s',
               now() + n.ttl_seconds * interval '1 s'
            FROM jsonb_to_record(call) AS n (
                step integer, namespace text, server text, server_version_id uuid, remote_id text, state text, message text, requests text,
                form text, proposed jsonb, request_state text, round integer, poll_seconds double precision,
                ttl_seconds double precision);
    RETURN true;
END $$;

-- Begins to repeat a plain call with a person's answers, under the fence. False: the fence is lost.
CREATE OR REPLACE FUNCTION minion_resume_remote(t uuid, c integer, number integer) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN false;
    END IF;
    UPDATE remote_calls SET state = 'sent' WHERE task_id = t AND step = number AND state = 'answered';
    RETURN true;
END $$;

-- Forgets an earlier attempt at a step that is about to begin again, under the fence.
CREATE OR REPLACE FUNCTION minion_forget_remote(t uuid, c integer, number integer) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF minion_fence(t, c) THEN
        DELETE FROM remote_calls WHERE task_id = t AND step = number;
    END IF;
END $$;

-- The number of a task's calls that have neither a result nor an answer yet.
CREATE OR REPLACE FUNCTION minion_open_remote(t uuid) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT count(*)::integer FROM remote_calls r WHERE r.task_id = t AND r.state IN ('working', 'input_required')
$$;

-- Shows a change of what a waiting task waits for, also to those that follow it.
CREATE OR REPLACE FUNCTION minion_show_remote(t uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    reason text := minion_waits_for(t);
BEGIN
    UPDATE task_status SET wait_reason = reason, updated_at = now()
        WHERE task_id = t AND state = 'waiting' AND open_waits > 0 AND wait_reason <> 'answer' AND wait_reason <> reason;
    IF FOUND THEN
        INSERT INTO task_events (task_id, number, type, data) VALUES (
            t, 1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = t), 1), 'task.waiting',
            (SELECT jsonb_strip_nulls(jsonb_build_object('claim', claim, 'attempts', attempts, 'reason', wait_reason,
                                                         'due_at', due_at)) FROM task_status WHERE task_id = t));
    END IF;
END $$;

-- Claims up to `most` polls and cancellations that are due, for `hold`: another orchestrator makes them then. Each server
-- gets at most `each` at a time; `busy` has the number of those that the caller still has open, by namespace and server.
CREATE OR REPLACE FUNCTION minion_claim_remote(most integer, each integer, busy jsonb, hold interval)
RETURNS SETOF remote_calls LANGUAGE sql SET jit = off AS $$
    WITH servers AS MATERIALIZED (
        SELECT DISTINCT r.namespace, r.server FROM remote_calls r
            WHERE r.due_at <= now() AND r.remote_id IS NOT NULL AND r.state IN ('working', 'input_required', 'cancelling')
    ), chosen AS MATERIALIZED (
        SELECT d.task_id, d.step FROM servers s CROSS JOIN LATERAL (
            SELECT r.task_id, r.step, r.due_at FROM remote_calls r
                WHERE r.due_at <= now() AND r.remote_id IS NOT NULL
                  AND r.state IN ('working', 'input_required', 'cancelling')
                  AND r.namespace = s.namespace AND r.server = s.server
                ORDER BY r.due_at
                LIMIT GREATEST(0, each - COALESCE((busy->>(s.namespace || '/' || s.server))::integer, 0))
                FOR NO KEY UPDATE SKIP LOCKED) d
            ORDER BY d.due_at LIMIT most
    )
    UPDATE remote_calls r SET due_at = now() + hold FROM chosen c
        WHERE r.task_id = c.task_id AND r.step = c.step RETURNING r.*
$$;

-- Records what a server said about its task: {state, message, poll_seconds, ttl_seconds, requests, form, proposed,
-- asks, answered, result, error}. With a `result` the call is over, and the waiting task continues. `requests` are new
-- questions, and `asks` identifies them. `answered` is the number of answers that the server had before it was asked.
-- `error` says why it could not be asked. False: the call is no longer open.
CREATE OR REPLACE FUNCTION minion_remote_polled(t uuid, number integer, remote text, news jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    known remote_calls;
    next_state text := COALESCE(news->>'state', 'working');
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t FOR NO KEY UPDATE;
    SELECT * INTO known FROM remote_calls r
        WHERE r.task_id = t AND r.step = number AND r.remote_id = remote AND r.state IN ('working', 'input_required')
        FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF NOT news ? 'result'
          AND (known.answer IS NOT NULL OR cardinality(known.answered) > (news->>'answered')::integer) THEN
        -- A person has answered in the meantime: the server gets the answers first, and is asked again then.
        RETURN true;
    ELSIF news ? 'error' THEN
        UPDATE remote_calls SET error = news->>'error', failures = failures + 1,
                failing_since = COALESCE(failing_since, now()),
                due_at = now() + (news->>'poll_seconds')::double precision * interval '1 s'
            WHERE task_id = t AND step = number;
        RETURN true;
    ELSIF news ? 'result' THEN
        UPDATE remote_calls SET state = 'done', result = news->>'result', message = news->>'message', error = NULL,
                requests = NULL, form = NULL, proposed = NULL, polled_at = now(), changed_at = now()
            WHERE task_id = t AND step = number;
        UPDATE steps s SET usage = s.usage - 'asks', approvals = NULL
            WHERE s.task_id = t AND s.number = minion_remote_polled.number AND s.status = 'started' AND s.usage ? 'asks';
        PERFORM minion_count_down(t, 1);
        RETURN true;
    END IF;
    UPDATE remote_calls r SET state = next_state, message = news->>'message', error = NULL, failures = 0,
            failing_since = NULL, polled_at = now(),
            requests = CASE WHEN next_state = 'input_required' THEN COALESCE(news->>'requests', r.requests) END,
            form = CASE WHEN next_state = 'input_required' THEN COALESCE(news->>'form', r.form) END,
            proposed = CASE WHEN next_state = 'input_required' THEN COALESCE(news->'proposed', r.proposed) END,
            round = r.round + (news ? 'requests')::integer,
            poll_seconds = (news->>'poll_seconds')::double precision,
            due_at = now() + (news->>'poll_seconds')::double precision * interval '1 s',
            expires_at = CASE WHEN news ? 'ttl_seconds'
                              THEN r.created_at + (news->>'ttl_seconds')::double precision * interval '1 s'
                              ELSE r.expires_at END,
            changed_at = CASE WHEN next_state <> r.state OR news ? 'requests' THEN now() ELSE r.changed_at END
        WHERE r.task_id = t AND r.step = number;
    IF next_state <> known.state OR news ? 'requests' THEN
        UPDATE steps s SET approvals = NULL, usage = CASE
                WHEN next_state = 'input_required' THEN s.usage || jsonb_build_object('asks', news->'asks')
                ELSE s.usage - 'asks' END
            WHERE s.task_id = t AND s.number = minion_remote_polled.number AND s.status = 'started';
        PERFORM minion_show_remote(t);
    END IF;
    RETURN true;
END $$;

-- Keeps a person's answer to the questions of a call, which its server gets next. The caller has decided that the person
-- may answer, and holds the task's lock. `given`: {verdict, value, decision}.
CREATE OR REPLACE FUNCTION minion_answer_remote(t uuid, number integer, given jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    is_plain boolean;
BEGIN
    UPDATE remote_calls SET answer = given, changed_at = now(), due_at = now(), form = NULL, proposed = NULL,
                            state = CASE WHEN remote_id IS NULL THEN 'answered' ELSE 'working' END
        WHERE task_id = t AND step = number AND state = 'input_required' RETURNING remote_id IS NULL INTO is_plain;
    UPDATE steps s SET usage = jsonb_set(s.usage - 'asks', '{answers}',
            COALESCE(s.usage->'answers', '[]') || jsonb_build_array(given->'decision' || jsonb_build_object(
                'verdict', given->'verdict')))
        WHERE s.task_id = t AND s.number = minion_answer_remote.number AND s.status = 'started';
    IF is_plain THEN
        PERFORM minion_count_down(t, 1);
    ELSE
        PERFORM minion_show_remote(t);
    END IF;
END $$;

-- Records that a server has received the answers to the questions `keys`. It is asked about its task `delay` later.
CREATE OR REPLACE FUNCTION minion_remote_taken(t uuid, number integer, remote text, keys text[], delay interval)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE remote_calls SET answer = NULL, requests = NULL, answered = answered || keys, due_at = now() + delay,
                            error = NULL, failures = 0, failing_since = NULL
        WHERE task_id = t AND step = number AND remote_id = remote AND state = 'working' AND answer IS NOT NULL;
    RETURN FOUND;
END $$;

-- Ends the calls of tasks that have ended. The caller must hold the tasks' locks. A task of a server that may still run
-- is cancelled first.
CREATE OR REPLACE FUNCTION minion_end_remote(ended uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM remote_calls WHERE task_id = ANY (ended) AND (remote_id IS NULL OR state = 'done');
    UPDATE remote_calls SET state = 'cancelling', due_at = now(), failures = 0, failing_since = NULL,
                            message = NULL, requests = NULL, form = NULL, proposed = NULL, answer = NULL
        WHERE task_id = ANY (ended);
END $$;
