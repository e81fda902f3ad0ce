-- Replays from a step.

-- A new task that continues an ended one: `request` is as for `minion_accept` and pins the same versions. The journal
-- before step `first` is copied to the new task as the work of claim 0, without its costs. `edited`, {output,
-- output_order, approver}: step `first` is copied too, with this output. To edit an approval is to approve, by its policy
-- and by `approver`: see `minion_check_approver`. A program that made a call after these steps runs again, and reads them
-- back. The caller must ensure that these steps can be read back.
CREATE OR REPLACE FUNCTION minion_replay_from(request jsonb, source uuid, first integer, edited jsonb, who text) RETURNS uuid
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    old record;
    new uuid;
    step steps;
    policy jsonb;
BEGIN
    SELECT k.journal_format, COALESCE(k.history_before, o.finished_at) AS history_before INTO old
        FROM tasks k JOIN task_outcomes o ON o.task_id = k.id
        -- Retention waits until the steps are copied.
        WHERE k.id = source FOR KEY SHARE OF k;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'There is no task % that has ended.', source USING ERRCODE = 'MN008';
    END IF;
    SELECT a.task_id INTO new FROM minion_accept(request) AS a;
    UPDATE tasks SET from_step = first + (edited IS NOT NULL)::integer, history_before = old.history_before
        WHERE id = new AND journal_format = old.journal_format;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'The journal of task % has the format % of another release, and cannot be continued. '
            'Replay the task from its beginning.', source, old.journal_format USING ERRCODE = 'MN009';
    END IF;
    SELECT * INTO step FROM steps s WHERE s.task_id = source AND s.number = first AND edited IS NOT NULL;
    policy := minion_approval_policy(step);
    IF policy IS NOT NULL THEN
        PERFORM minion_check_edited_approval(step, new, policy, NULLIF(edited->'approver', 'null'));
    END IF;
    -- The step after an approval is the call that it permits.
    SELECT * INTO step FROM steps s
        WHERE s.task_id = source AND s.number = first - 1 AND s.output ? 'arguments' AND edited IS NULL;
    IF minion_approval_policy(step) IS NOT NULL THEN
        RAISE EXCEPTION 'Step % (%) has an approval policy, and was approved for one call: replay from step %, so that the '
            'new task asks again.', step.number, step.name, step.number USING ERRCODE = 'MN009';
    END IF;
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, child_id, function_version_id, due_at, started_at,
                       finished_at, copied_from, approvals, program, line)
        SELECT new, s.number, s.kind, s.name, s.status, s.effect, s.request_hash, 0, s.input, s.input_order,
               -- The sub-task may be deleted before its outcome is read.
               CASE WHEN s.kind = 'subtask' AND s.copied_from IS NULL THEN jsonb_build_object(
                        'task_id', o.task_id, 'state', o.state, 'output', COALESCE(o.output, c.value), 'error', o.error)
                    ELSE s.output END,
               CASE WHEN s.kind = 'subtask' AND s.copied_from IS NULL THEN o.output_order ELSE s.output_order END,
               s.error, s.stdout,
               CASE WHEN s.usage ? 'decision' THEN jsonb_build_object('decision', s.usage->'decision') END,
               s.child_id, s.function_version_id, s.due_at, s.started_at, s.finished_at,
               COALESCE(s.copied_from, source), s.approvals, s.program, s.line
        FROM steps s LEFT JOIN task_outcomes o ON o.task_id = s.child_id LEFT JOIN contents c ON c.sha256 = o.output_sha256
        WHERE s.task_id = source AND s.number < first + (edited IS NOT NULL)::integer;
    UPDATE steps p SET status = 'started', output = NULL, output_order = NULL, error = NULL, stdout = NULL,
                       finished_at = NULL
        WHERE p.task_id = new AND p.program = p.number AND p.number < first AND EXISTS (
            SELECT 1 FROM steps later WHERE later.task_id = source AND later.program = p.number
                AND later.number >= first + (edited IS NOT NULL)::integer);
    -- What tools returned in these steps may be files.
    INSERT INTO task_files (task_id, namespace, file_id)
        SELECT new, f.namespace, f.file_id FROM task_files f WHERE f.task_id = source ON CONFLICT DO NOTHING;
    UPDATE steps s SET status = 'finished', error = NULL, finished_at = now(),
            output = CASE WHEN s.kind = 'subtask' THEN s.output || jsonb_build_object(
                              'state', 'succeeded', 'output', edited->'output', 'error', NULL)
                          ELSE edited->'output' END,
            output_order = NULLIF(edited->'output_order', 'null'::jsonb),
            usage = COALESCE(s.usage, '{}'::jsonb) || jsonb_build_object(
                'edited', jsonb_build_object('by', who, 'at', now())),
            approvals = CASE WHEN policy IS NOT NULL THEN minion_add_approval(
                s, 1, edited->'output'->'arguments', NULL,
                jsonb_build_object('key', edited->'approver'->'key', 'by', who, 'at', now())) END
        WHERE s.task_id = new AND s.number = first AND edited IS NOT NULL;
    RETURN new;
END $$;
