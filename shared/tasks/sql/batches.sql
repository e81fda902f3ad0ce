-- The batch lane: model calls that wait, without a worker, for their answers from a Message Batch.
--
-- A call is added in the transaction that begins its step. An orchestrator puts calls into a batch (a row of
-- `message_batches`), commits that, and then creates the batch at the API; its id is written afterwards. A row without an
-- id is an attempt whose answer may have been lost: it is looked for at the API, and its calls are sent again only when
-- they are known not to be there.
--
-- Lock order: a task's row, then its row of `batch_calls`, then budgets.

-- The name of a call in a batch: another one in each claim that begins it, and in each batch that it is sent in.
CREATE OR REPLACE FUNCTION minion_custom_id(t uuid, step integer, c integer, attempt integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT concat_ws('_', replace(t::text, '-', ''), step, c, attempt)
$$;

-- `minion_spend` with the call of the step that begins: {step, model, body}. A repeated call changes nothing. One that was
-- answered before this claim, with a refusal that was free, makes room for the new one.
CREATE OR REPLACE FUNCTION minion_begin_batched(t uuid, c integer, journal jsonb, reserve jsonb, call jsonb) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    flags jsonb;
    number integer := call->>'step';
    name text := minion_custom_id(t, number, c, 1);
BEGIN
    PERFORM 1 FROM task_status WHERE task_id = t AND claim = c AND state = 'running' FOR NO KEY UPDATE;
    IF FOUND THEN
        DELETE FROM batch_calls WHERE task_id = t AND step = number AND claim < c AND result IS NOT NULL;
    END IF;
    flags := minion_spend(t, c, journal, reserve, NULL);
    IF flags IS NULL OR flags ?| '{breach,stopped,unreserved}' OR flags->'cancel' = 'true' THEN
        RETURN flags;
    END IF;
    INSERT INTO batch_calls (task_id, step, claim, custom_id, model, body, bytes)
        VALUES (t, number, c, name, call->>'model', call->>'body', octet_length(call->>'body'))
        ON CONFLICT (task_id, step) DO UPDATE SET
            claim = c, custom_id = name, attempt = 1, model = EXCLUDED.model, body = EXCLUDED.body, bytes = EXCLUDED.bytes,
            batch = NULL, together = NULL, result = NULL, answered_at = NULL, usage = NULL, error = NULL,
            created_at = now(), due_at = now()
            WHERE batch_calls.claim <> c;
    RETURN flags;
END $$;

-- Suspends a running task until the answer to its call has arrived. NULL: the fence is lost. Else its current state.
CREATE OR REPLACE FUNCTION minion_await_batch(t uuid, c integer, result jsonb) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    state_now text := minion_stop_running(t, c, result);
BEGIN
    IF state_now IS DISTINCT FROM 'running' THEN
        RETURN state_now;
    ELSIF EXISTS (SELECT 1 FROM batch_calls b WHERE b.task_id = t AND b.result IS NULL) THEN
        UPDATE task_status SET state = 'waiting', worker_id = NULL, wait_reason = 'batch', updated_at = now()
            WHERE task_id = t;
        RETURN 'waiting';
    END IF;
    UPDATE task_status SET state = 'pending', worker_id = NULL, updated_at = now() WHERE task_id = t;
    PERFORM minion_notify_pending();
    RETURN 'pending';
END $$;

-- Whether a reservation belongs to a call that waits for its answer. No process holds it then.
CREATE OR REPLACE FUNCTION minion_is_batched(t uuid, number integer, c integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM batch_calls b
                       WHERE b.task_id = t AND b.step = number AND b.claim = c AND b.result IS NULL)
$$;

-- The calls that may be sent now. Those of tasks that have ended, or to which a stop applies, may not.
CREATE OR REPLACE FUNCTION minion_sendable_calls() RETURNS SETOF batch_calls LANGUAGE sql STABLE AS $$
    WITH of_whom AS MATERIALIZED (
        SELECT DISTINCT s.namespace, s.agent_name, COALESCE(s.key, '') AS key FROM batch_calls b JOIN task_status s ON s.task_id = b.task_id
            WHERE b.batch IS NULL AND b.result IS NULL AND EXISTS (SELECT 1 FROM stops)
    ), stopped AS MATERIALIZED (
        SELECT * FROM of_whom o WHERE minion_stop_of(o.namespace, o.agent_name, o.key) IS NOT NULL
    )
    SELECT b.* FROM batch_calls b JOIN task_status s ON s.task_id = b.task_id
        WHERE b.batch IS NULL AND b.result IS NULL AND b.due_at <= now()
          AND s.state NOT IN ('succeeded', 'failed', 'cancelled', 'expired')
          AND NOT EXISTS (SELECT 1 FROM stopped o WHERE o.namespace = s.namespace AND o.agent_name = s.agent_name
                                                        AND o.key = COALESCE(s.key, ''))
$$;

-- Puts calls of one model into a new batch, if there are `most` of them, or `largest` bytes, or the oldest has waited for
-- `age`. Calls of a batch that was refused as a whole are sent again in smaller ones (`together`), at once. Returns the
-- batch, which the caller must commit before it creates it at the API; NULL: there is none to create.
CREATE OR REPLACE FUNCTION minion_gather_calls(most integer, largest bigint, age interval) RETURNS uuid LANGUAGE plpgsql
SET jit = off AS $$
DECLARE
    ripe record;
    new_batch uuid;
    gathered integer;
BEGIN
    SELECT b.model, b.together INTO ripe FROM minion_sendable_calls() b GROUP BY b.model, b.together
        HAVING b.together IS NOT NULL OR count(*) >= most OR sum(b.bytes) >= largest OR min(b.created_at) <= now() - age
        ORDER BY min(b.created_at) LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO message_batches (model) VALUES (ripe.model) RETURNING id INTO new_batch;
    WITH oldest AS (
        SELECT b.task_id, b.step, b.bytes, b.created_at FROM minion_sendable_calls() b
            WHERE b.model = ripe.model AND b.together IS NOT DISTINCT FROM ripe.together
            ORDER BY b.created_at, b.task_id LIMIT LEAST(most, ripe.together)
    ), chosen AS (
        SELECT o.*, sum(o.bytes) OVER line AS total, row_number() OVER line AS nth FROM oldest o
            WINDOW line AS (ORDER BY o.created_at, o.task_id)
    )
    UPDATE batch_calls b SET batch = new_batch, error = NULL FROM chosen c
        WHERE b.task_id = c.task_id AND b.step = c.step AND b.batch IS NULL AND (c.total <= largest OR c.nth = 1);
    GET DIAGNOSTICS gathered = ROW_COUNT;
    IF gathered = 0 THEN
        -- Another orchestrator was faster.
        DELETE FROM message_batches WHERE id = new_batch;
        RETURN NULL;
    END IF;
    UPDATE message_batches SET calls = gathered WHERE id = new_batch;
    RETURN new_batch;
END $$;

-- Records the API's id of a batch, also in the steps of its calls. False: its calls have been given back in the meantime.
CREATE OR REPLACE FUNCTION minion_batch_created(b uuid, api_id text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE message_batches SET batch_id = api_id, submitted_at = now(), due_at = now(), error = NULL
        WHERE id = b AND batch_id IS NULL;
    IF NOT FOUND THEN
        -- Another orchestrator may have found it.
        RETURN EXISTS (SELECT 1 FROM message_batches m WHERE m.batch_id = api_id);
    END IF;
    UPDATE steps s SET usage = jsonb_build_object('batch', api_id) FROM batch_calls c
        WHERE c.batch = b AND c.result IS NULL AND s.task_id = c.task_id AND s.number = c.step AND s.status = 'started';
    RETURN true;
END $$;

-- Gives back the calls of a batch that the API does not have: they are sent again after `delay`, at most `most` together
-- (NULL: as usual). Returns their number.
CREATE OR REPLACE FUNCTION minion_batch_refused(b uuid, why text, delay interval, most integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    freed integer;
BEGIN
    PERFORM 1 FROM message_batches WHERE id = b AND batch_id IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    UPDATE batch_calls SET batch = NULL, error = why, due_at = now() + delay, together = COALESCE(most, together)
        WHERE batch = b AND result IS NULL;
    GET DIAGNOSTICS freed = ROW_COUNT;
    DELETE FROM message_batches WHERE id = b;
    RETURN freed;
END $$;

-- Records the answer to a call of a batch, settles its reservations, and wakes its task. `used`: {tokens, microdollars},
-- whose nulls are unknown; `usage`: the use for the journal, with `cost_microdollars`. False: it has an answer already, or
-- is no call of this batch.
CREATE OR REPLACE FUNCTION minion_answer_call(b uuid, name text, answer text, used jsonb, usage_of_step jsonb) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    call batch_calls;
BEGIN
    SELECT * INTO call FROM batch_calls WHERE custom_id = name AND batch = b AND result IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM task_status WHERE task_id = call.task_id FOR NO KEY UPDATE;
    UPDATE batch_calls SET result = answer, answered_at = now(), usage = usage_of_step, body = NULL, error = NULL
        WHERE custom_id = name AND batch = b AND result IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM minion_settle_step(call.task_id, call.claim, used || jsonb_build_object('step', call.step));
    UPDATE task_status SET state = 'pending', wait_reason = NULL, updated_at = now()
        WHERE task_id = call.task_id AND state = 'waiting' AND wait_reason = 'batch';
    IF FOUND THEN
        PERFORM minion_notify_pending();
    END IF;
    RETURN true;
END $$;

-- Gives a call of a batch back that the batch has not answered, and that is not charged: it is sent again, with another
-- name. False: it is no open call of this batch.
CREATE OR REPLACE FUNCTION minion_return_call(b uuid, name text, why text, delay interval) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE batch_calls SET batch = NULL, attempt = attempt + 1, error = why, due_at = now() + delay,
                           custom_id = minion_custom_id(task_id, step, claim, attempt + 1)
        WHERE custom_id = name AND batch = b AND result IS NULL;
    RETURN FOUND;
END $$;

-- Tidies up `most` calls: those whose step has ended; those of ended tasks, which are dropped if they were not sent, and
-- whose cost is recorded if they were answered. Also forgets batches that ended 30 days ago. Returns the number of calls.
CREATE OR REPLACE FUNCTION minion_tidy_calls(most integer) RETURNS integer LANGUAGE plpgsql SET jit = off AS $$
DECLARE
    over record;
    tidied integer := 0;
BEGIN
    FOR over IN
        -- Two parts, each with an index: most calls are in batches, and have no answer.
        SELECT b.* FROM batch_calls b WHERE b.result IS NOT NULL AND (
                EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = b.task_id)
                OR EXISTS (SELECT 1 FROM steps s WHERE s.task_id = b.task_id AND s.number = b.step AND s.status <> 'started'))
            UNION ALL
            SELECT b.* FROM batch_calls b WHERE b.batch IS NULL AND b.result IS NULL
                AND EXISTS (SELECT 1 FROM task_outcomes o WHERE o.task_id = b.task_id)
            LIMIT most
    LOOP
        PERFORM 1 FROM task_status WHERE task_id = over.task_id FOR NO KEY UPDATE;
        -- It may have been put into a batch, or have begun again, since.
        DELETE FROM batch_calls b WHERE b.task_id = over.task_id AND b.step = over.step AND b.claim = over.claim
            AND b.batch IS NOT DISTINCT FROM over.batch AND (b.result IS NULL) = (over.result IS NULL);
        CONTINUE WHEN NOT FOUND;
        tidied := tidied + 1;
        IF over.result IS NULL THEN
            PERFORM minion_settle_step(over.task_id, over.claim,
                jsonb_build_object('step', over.step, 'tokens', 0, 'microdollars', 0));
        ELSE
            UPDATE steps SET status = 'failed', finished_at = now(), usage = over.usage - 'cost_microdollars',
                    cost_microdollars = COALESCE((over.usage->>'cost_microdollars')::bigint, 0),
                    error = '{"type": "cancelled", "message": "The answer came when the task had ended."}'
                WHERE task_id = over.task_id AND number = over.step AND status = 'started';
            UPDATE executions SET input_tokens = input_tokens + minion_used(over.usage, 'input_tokens'),
                    output_tokens = output_tokens + minion_used(over.usage, 'output_tokens'),
                    cost_microdollars = cost_microdollars + minion_used(over.usage, 'cost_microdollars')
                WHERE FOUND AND task_id = over.task_id AND claim = over.claim;
        END IF;
    END LOOP;
    DELETE FROM message_batches m WHERE m.ended_at < now() - interval '30 days';
    RETURN tidied;
END $$;
