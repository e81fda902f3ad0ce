-- Replays from a step, and summaries of conversations.

-- ---------------------------------------------------------------------------------------------- replaying from a step

-- A new task that goes on where an ended one was: `request` is as for `minion_accept` and pins the same versions; the
-- journal before step `first` stands in the new one as what claim 0 made, without its costs. `edited`, {output}: step
-- `first` too, with this output. The caller has made sure that these steps can be read back.
CREATE FUNCTION minion_replay_from(request jsonb, source uuid, first integer, edited jsonb, who text) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    old record;
    new uuid;
BEGIN
    SELECT k.journal_format, COALESCE(k.history_before, o.finished_at) AS history_before INTO old
        FROM tasks k JOIN task_outcomes o ON o.task_id = k.id
        -- Retention waits until its steps are copied.
        WHERE k.id = source FOR KEY SHARE OF k;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task % that has ended.', source USING ERRCODE = 'MN008';
    END IF;
    SELECT a.task_id INTO new FROM minion_accept(request) AS a;
    UPDATE tasks SET from_step = first + (edited IS NOT NULL)::integer, history_before = old.history_before
        WHERE id = new AND journal_format = old.journal_format;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'The journal of task % has the format % of another release, and cannot be gone on with. '
            'Replay the task from its beginning.', source, old.journal_format USING ERRCODE = 'MN009';
    END IF;
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, output, error, stdout,
                       usage, child_id, function_version_id, due_at, started_at, finished_at, copied_from)
        SELECT new, s.number, s.kind, s.name, s.status, s.effect, s.request_hash, 0, s.input,
               -- The sub-task may be deleted before its outcome is read.
               CASE WHEN s.kind = 'subtask' AND s.copied_from IS NULL THEN jsonb_build_object(
                        'task_id', o.task_id, 'state', o.state, 'output', COALESCE(o.output, c.value), 'error', o.error)
                    ELSE s.output END,
               s.error, s.stdout,
               CASE WHEN s.usage ? 'decision' THEN jsonb_build_object('decision', s.usage->'decision') END,
               s.child_id, s.function_version_id, s.due_at, s.started_at, s.finished_at,
               COALESCE(s.copied_from, source)
        FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
        WHERE s.task_id = source AND s.number < first + (edited IS NOT NULL)::integer;
    UPDATE steps s SET status = 'finished', error = NULL, finished_at = now(),
            output = CASE WHEN s.kind = 'subtask' THEN s.output || jsonb_build_object(
                              'state', 'succeeded', 'output', edited->'output', 'error', NULL)
                          ELSE edited->'output' END,
            usage = COALESCE(s.usage, '{}'::jsonb) || jsonb_build_object(
                'edited', jsonb_build_object('by', who, 'at', now()))
        WHERE s.task_id = new AND s.number = first AND edited IS NOT NULL;
    RETURN new;
END $$;

-- A journal as the next run reads it: the steps in order, a finished sub-task with its outcome.
CREATE OR REPLACE FUNCTION minion_journal(t uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT COALESCE(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'number', s.number, 'kind', s.kind, 'name', s.name, 'status', s.status, 'effect', s.effect,
               'request_hash', s.request_hash, 'error', s.error,
               'child_id', CASE WHEN s.kind = 'subtask' THEN COALESCE(s.output->>'task_id', s.child_id::text) END))
           || jsonb_build_object('output', s.output)
           || CASE WHEN s.kind = 'subtask' AND s.copied_from IS NOT NULL THEN jsonb_build_object('outcome', s.output)
                   WHEN o.task_id IS NULL THEN '{}'::jsonb
                   ELSE jsonb_build_object('outcome', jsonb_build_object(
                       'state', o.state, 'output', COALESCE(o.output, c.value), 'error', o.error)) END
           ORDER BY s.number), '[]'::jsonb)
    FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
    WHERE s.task_id = t
$$;

-- ---------------------------------------------------------------------------------------------- conversations

-- The step that sums up a conversation is paid for once: what it says is kept in the same transaction, for the
-- conversation's next task.
CREATE FUNCTION minion_keep_summary() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversation_summaries (namespace, conversation_id, through, summary, task_id)
        SELECT k.namespace, k.conversation_id, (NEW.output->>'through')::uuid, NEW.output->>'summary', k.id
            FROM tasks k JOIN conversations c ON c.namespace = k.namespace AND c.id = k.conversation_id
            WHERE k.id = NEW.task_id
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER steps_summary AFTER INSERT OR UPDATE ON steps FOR EACH ROW
    WHEN (NEW.kind = 'model_call' AND NEW.status = 'finished' AND NEW.claim > 0
          AND NEW.output ?& ARRAY['summary', 'through'])
    EXECUTE FUNCTION minion_keep_summary();

-- ---------------------------------------------------------------------------------------------- plans

ALTER FUNCTION minion_replay_from SET enable_seqscan = off;
ALTER FUNCTION minion_replay_from SET jit = off;
