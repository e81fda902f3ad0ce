-- Events of a task, in order, for clients that follow it.
--
-- Triggers write them, so that no function can forget one. Numbers have no gaps and no duplicates, because the writer
-- of a task's state or its steps holds the lock of its status row (or has just created the task). Two events are not
-- stored: number 1, that the task was accepted, is its row; the last one, the end of the task, is its outcome.
--
-- The triggers' plans are cached for a session, and every function that fires them has enable_seqscan off: to set it
-- here too would cost as much as the rest.

-- A queued task that goes back to pending does not concern followers: to them it was pending all along.
CREATE OR REPLACE FUNCTION minion_record_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO task_events (task_id, number, type, data) VALUES (
        NEW.task_id,
        1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = NEW.task_id), 1),
        'task.' || NEW.state,
        jsonb_strip_nulls(jsonb_build_object(
            'claim', NEW.claim, 'attempts', NEW.attempts, 'reason', NEW.wait_reason,
            'due_at', CASE WHEN NEW.wait_reason <> 'answer' THEN NEW.due_at END)));
    RETURN NULL;
END $$;

-- A sub-task that ends after its parent changes the parent's step, but the parent's events are over.
CREATE OR REPLACE FUNCTION minion_record_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.child_id IS NOT NULL
            AND EXISTS (SELECT 1 FROM task_outcomes WHERE task_id = NEW.task_id) THEN
        RETURN NULL;
    END IF;
    INSERT INTO task_events (task_id, number, type, data) VALUES (
        NEW.task_id,
        1 + COALESCE((SELECT max(number) FROM task_events WHERE task_id = NEW.task_id), 1),
        'step.' || NEW.status,
        jsonb_strip_nulls(jsonb_build_object(
            'step', NEW.number, 'kind', NEW.kind, 'name', NEW.name, 'claim', NEW.claim, 'child_id', NEW.child_id,
            -- A step that is executed again loses it.
            'error', CASE WHEN NEW.status = 'failed' THEN NULLIF(jsonb_strip_nulls(jsonb_build_object(
                'type', NEW.error->'type', 'message', left(NEW.error->>'message', 2000))), '{}') END)));
    RETURN NULL;
END $$;
