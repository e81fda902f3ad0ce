-- Each row that ends gets the number of its transaction: see `shared/tasks/sql/ends.sql`. Default or trigger, so that
-- processes of every release leave it.

ALTER TABLE task_outcomes ALTER COLUMN ended_in SET DEFAULT (pg_current_xact_id()::text::bigint);
ALTER TABLE security_events ALTER COLUMN ended_in SET DEFAULT (pg_current_xact_id()::text::bigint);

CREATE TRIGGER executions_end BEFORE INSERT OR UPDATE OF finished_at ON executions
    FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION minion_mark_end();
CREATE TRIGGER webhook_deliveries_end BEFORE UPDATE OF finished_at ON webhook_deliveries
    FOR EACH ROW WHEN (OLD.finished_at IS DISTINCT FROM NEW.finished_at) EXECUTE FUNCTION minion_mark_end();

-- Steps that a replay copied have ended elsewhere.
CREATE TRIGGER steps_begin_end BEFORE INSERT ON steps
    FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL AND NEW.copied_from IS NULL) EXECUTE FUNCTION minion_mark_end();
CREATE TRIGGER steps_change_end BEFORE UPDATE OF finished_at ON steps
    FOR EACH ROW WHEN (OLD.finished_at IS DISTINCT FROM NEW.finished_at AND NEW.copied_from IS NULL)
    EXECUTE FUNCTION minion_mark_end();
CREATE TRIGGER steps_retried AFTER UPDATE OF finished_at ON steps
    FOR EACH ROW WHEN (OLD.ended_in IS NOT NULL AND OLD.finished_at IS DISTINCT FROM NEW.finished_at)
    EXECUTE FUNCTION minion_keep_end();

-- After a restore into another cluster, marks that have another meaning there are removed.
DROP TRIGGER task_outcomes_immutable ON task_outcomes;
CREATE TRIGGER task_outcomes_immutable BEFORE UPDATE ON task_outcomes
    FOR EACH ROW WHEN (to_jsonb(OLD) - 'ended_in'::text IS DISTINCT FROM to_jsonb(NEW) - 'ended_in'::text)
    EXECUTE FUNCTION minion_refuse_change();
