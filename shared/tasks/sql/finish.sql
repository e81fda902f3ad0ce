-- The end of a claim and of a task.

CREATE OR REPLACE FUNCTION minion_close_execution(t uuid, c integer, how text, result jsonb) RETURNS void LANGUAGE sql AS $$
    UPDATE executions SET
        outcome = how, finished_at = now(), error = NULLIF(result->'error', 'null'::jsonb),
        cpu_seconds = (result->>'cpu_seconds')::double precision,
        peak_memory_bytes = (result->>'peak_memory_bytes')::bigint,
        input_tokens = COALESCE((result->>'input_tokens')::bigint, 0),
        output_tokens = COALESCE((result->>'output_tokens')::bigint, 0),
        cost_microdollars = COALESCE((result->>'cost_microdollars')::bigint, 0)
    WHERE task_id = t AND claim = c AND outcome = 'running'
$$;

-- Stores a large value once. Users of the value lock it, so that retention cannot delete it before they commit.
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

-- Groups failures: the kind of error, and its text without quoted values, URLs, paths, ids and numbers.
CREATE OR REPLACE FUNCTION minion_fingerprint(error jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(convert_to(COALESCE(error->>'type', '') || ':' || left(regexp_replace(left(
        COALESCE(error->>'message', ''), 10000),
        -- An apostrophe within a word begins no quotation; the letter of a Python literal (b'…') does not either.
        '(?<!\w)(?:[bruf]{1,2})?''[^'']*''|"[^"]*"|`[^`]*`|“[^”]*”|‘[^’]*’|„[^“”]*[“”]|‚[^‘’]*[‘’]'
        '|”[^”]*”|«[^»]*»|»[^«]*«|‹[^›]*›'
        -- A URL, an e-mail address, a path (a relative one if it ends with a file's extension), a word with a digit.
        '|[a-z][a-z0-9+.-]*://\S*[\w/]|[\w.%+-]+@[\w.-]*\w|(?<!\w)(?:~|\.{1,2})?(?:/[\w.@%+~-]+)+/?'
        '|(?:[\w.@%+~-]+/)+[\w@%+~-]*\.\w+|(?<!\w)(?:[a-z]:|\\)\\\S*\w'
        '|[\w-]*\d(?:[\w.,:-]*\w)?', '#', 'gi'), 500),
        'UTF8')), 'hex'), 16)
$$;

-- Creates the webhook deliveries for a task that has ended, in the same transaction.
CREATE OR REPLACE FUNCTION minion_owe_webhooks(t uuid, final text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM webhooks WHERE enabled) THEN
        RETURN;
    END IF;
    INSERT INTO webhook_deliveries (webhook_id, task_id, state)
        SELECT w.id, t, final FROM webhooks w JOIN tasks k ON k.id = t
            -- The ends of trials are no news of the production.
            WHERE w.enabled AND 'tasks' = ANY (w.events) AND w.namespace = k.namespace AND k.journal_format <> 3
              AND (w.states = '{}' OR final = ANY (w.states))
              AND (w.agents = '{}' OR k.agent_name = ANY (w.agents)) AND k.labels @> w.labels
              AND (k.parent_id IS NULL OR NOT w.roots_only)
            -- A webhook that is being removed is waited for and left out: its foreign key would fail the task's end.
            FOR KEY SHARE OF w
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM pg_notify('minion_webhooks', '');
    END IF;
END $$;

-- Ends a task for good and notifies its parent. The caller must hold the locks: the parent's row, then the task's.
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
    INSERT INTO task_outcomes (task_id, state, output, output_sha256, output_order, error, error_fingerprint)
    VALUES (t, final, CASE WHEN NOT large THEN value END, CASE WHEN large THEN minion_store_content(value) END,
            CASE WHEN value <> 'null' THEN NULLIF(result->'output_order', 'null'::jsonb) END,
            failure, CASE WHEN failure IS NOT NULL THEN minion_fingerprint(failure) END);
    DELETE FROM unique_tasks WHERE task_id = t;
    IF EXISTS (SELECT 1 FROM remote_calls WHERE task_id = t) THEN
        PERFORM minion_end_remote(ARRAY[t]);
    END IF;
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

CREATE OR REPLACE FUNCTION minion_lock_parent(t uuid) RETURNS void LANGUAGE sql AS $$
    SELECT 1 FROM task_status WHERE task_id = (SELECT parent_id FROM tasks WHERE id = t) FOR NO KEY UPDATE
$$;

-- A minion ends its task under the fence: last steps, execution, messages and outcome in one transaction.
-- `result`: {output, output_order, error, steps, messages, cpu_seconds, peak_memory_bytes, input_tokens, output_tokens,
-- cost_microdollars}. NULL: the fence is lost. Else the final state: an earlier cancellation or deadline wins.
CREATE OR REPLACE FUNCTION minion_finish(t uuid, c integer, final text, result jsonb) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at record;
    late jsonb;
    owner record;
BEGIN
    PERFORM minion_lock_parent(t);
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    SELECT cancel_requested, deadline INTO now_at FROM task_status WHERE task_id = t;
    PERFORM minion_put_steps(t, c, COALESCE(result->'steps', '[]'::jsonb));
    IF now_at.cancel_requested THEN
        final := 'cancelled';
        result := result || '{"output": null, "error": {"type": "cancelled", "message": "Cancelled while it ran."}}';
    ELSIF now_at.deadline <= clock_timestamp() THEN
        late := jsonb_strip_nulls(jsonb_build_object('type', 'expired', 'cause', result->'error',
            'message', 'The task''s deadline passed before it was done.'));
        PERFORM minion_close_execution(t, c, 'expired', result || jsonb_build_object('error', late));
        RETURN minion_end_tree(t, 'expired', late);
    END IF;
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

-- Releases a running task, to run again after `delay`: a retryable error, a lost child or worker, a hand-back.
-- `charged` counts an attempt; a task whose attempts are used up fails with the error. Lost workers are not
-- charged, but a task that has lost as many workers as it has attempts (at least three) is stopped too.
-- NULL: the fence is lost. Else the current state of the task.
CREATE OR REPLACE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb)
RETURNS text LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
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

-- `minion_release`, if this worker (NULL: any) holds the claim: a caller that only had the message for the claim may
-- not have received the claim itself.
CREATE OR REPLACE FUNCTION minion_release(t uuid, c integer, how text, charged boolean, delay interval, result jsonb, w uuid)
RETURNS text LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    PERFORM minion_lock_parent(t);
    PERFORM 1 FROM task_status WHERE task_id = t AND (w IS NULL OR worker_id = w) FOR NO KEY UPDATE;
    RETURN CASE WHEN FOUND THEN minion_release(t, c, how, charged, delay, result) END;
END $$;

-- Ends a task and everything below it. The task itself becomes `final` ('cancelled' or 'expired'); everything below
-- is cancelled. A running task that is cancelled is asked to stop; one that expires loses its claim immediately.
-- Returns the current state of the task.
CREATE OR REPLACE FUNCTION minion_end_tree(t uuid, final text, failure jsonb) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
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
    -- One generation after the other: locked tasks create no more children, so the next query finds them all.
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
