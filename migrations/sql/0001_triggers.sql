-- Triggers that refuse invalid changes, and the view that presents a task to users.

CREATE TRIGGER task_status_transition BEFORE UPDATE OF state ON task_status
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION minion_check_transition();
CREATE TRIGGER task_status_beginning BEFORE INSERT ON task_status
    FOR EACH ROW EXECUTE FUNCTION minion_check_transition();

CREATE TRIGGER task_status_claim BEFORE UPDATE OF claim ON task_status
    FOR EACH ROW WHEN (NEW.claim < OLD.claim) EXECUTE FUNCTION minion_claims_only_grow();

CREATE TRIGGER agent_versions_immutable BEFORE UPDATE ON agent_versions
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER tool_versions_immutable BEFORE UPDATE ON tool_versions
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER function_versions_immutable BEFORE UPDATE ON function_versions
    FOR EACH ROW WHEN (to_jsonb(OLD) - '{status,status_reason,released_at}'::text[]
                       IS DISTINCT FROM to_jsonb(NEW) - '{status,status_reason,released_at}'::text[])
    EXECUTE FUNCTION minion_refuse_change();
-- The tools that an agent version pins, and the agents that it calls, are part of that version.
CREATE TRIGGER agent_version_tools_immutable BEFORE UPDATE ON agent_version_tools
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER relations_immutable BEFORE UPDATE ON relations
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER contents_immutable BEFORE UPDATE ON contents
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER task_outcomes_immutable BEFORE UPDATE ON task_outcomes
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
CREATE TRIGGER tasks_immutable BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (
        (OLD.agent_version_id IS NOT NULL AND NEW.agent_version_id IS DISTINCT FROM OLD.agent_version_id)
        OR (OLD.agent_name IS NOT NULL AND NEW.agent_name IS DISTINCT FROM OLD.agent_name)
        OR (OLD.id, OLD.namespace, OLD.root_id, OLD.origin_id, OLD.depth, OLD.created_at)
            IS DISTINCT FROM (NEW.id, NEW.namespace, NEW.root_id, NEW.origin_id, NEW.depth, NEW.created_at)
        OR (OLD.input, OLD.messages, OLD.parent_id, OLD.parent_step, OLD.conversation_id)
            IS DISTINCT FROM (NEW.input, NEW.messages, NEW.parent_id, NEW.parent_step, NEW.conversation_id)
        OR (OLD.capability, OLD.key, OLD.labels, OLD.submitted_by, OLD.traceparent, OLD.journal_format, OLD.deadline)
            IS DISTINCT FROM (NEW.capability, NEW.key, NEW.labels, NEW.submitted_by, NEW.traceparent,
                              NEW.journal_format, NEW.deadline)
        -- The task that was replayed may be deleted.
        OR (NEW.replay_of IS NOT NULL AND NEW.replay_of IS DISTINCT FROM OLD.replay_of))
    EXECUTE FUNCTION minion_refuse_change();

-- A task as presented to users.
CREATE VIEW task_overview AS
    SELECT t.id, t.namespace, t.agent_name AS agent, v.number AS agent_version, s.state,
           COALESCE(s.capability, t.capability) AS capability, s.priority, t.input, t.messages,
           COALESCE(o.output, c.value) AS output, o.error, o.error_fingerprint, t.conversation_id, t.key, t.labels,
           t.parent_id, t.root_id, t.depth, t.replay_of, t.origin_id, t.submitted_by, t.traceparent,
           t.agent_version_id, s.claim, s.attempts, s.losses, s.worker_id, s.open_waits, s.wait_reason, s.due_at,
           s.cancel_requested, t.deadline, t.created_at, s.queued_at, s.updated_at, o.finished_at
        FROM tasks t JOIN task_status s ON s.task_id = t.id
        LEFT JOIN task_outcomes o ON o.task_id = t.id
        LEFT JOIN contents c ON c.sha256 = o.output_sha256
        LEFT JOIN agent_versions v ON v.id = t.agent_version_id;
