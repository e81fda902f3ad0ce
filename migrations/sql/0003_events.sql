-- Events of a task, in order: see `shared/tasks/sql/events.sql`.

CREATE TABLE task_events (
    task_id uuid NOT NULL CONSTRAINT task_events_task_id_fkey REFERENCES tasks (id) ON DELETE CASCADE,
    number integer NOT NULL,
    type text NOT NULL,
    data jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_events_pkey PRIMARY KEY (task_id, number)
);

CREATE TRIGGER task_status_event AFTER UPDATE OF state ON task_status
    FOR EACH ROW WHEN (OLD.state <> NEW.state AND (NEW.state IN ('running', 'waiting')
                       OR NEW.state = 'pending' AND OLD.state IN ('scheduled', 'running', 'waiting')))
    EXECUTE FUNCTION minion_record_state();

CREATE TRIGGER steps_begin_event AFTER INSERT ON steps
    FOR EACH ROW EXECUTE FUNCTION minion_record_step();
CREATE TRIGGER steps_change_event AFTER UPDATE OF status ON steps
    FOR EACH ROW WHEN ((OLD.status, OLD.claim) IS DISTINCT FROM (NEW.status, NEW.claim))
    EXECUTE FUNCTION minion_record_step();
