-- Summaries of conversations.

-- The step that summarises a conversation is paid for once: its output is kept in the same transaction, for the
-- conversation's next task.
CREATE OR REPLACE FUNCTION minion_keep_summary() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversation_summaries (namespace, conversation_id, through, summary, task_id)
        SELECT k.namespace, k.conversation_id, (NEW.output->>'through')::uuid, NEW.output->>'summary', k.id
            FROM tasks k JOIN conversations c ON c.namespace = k.namespace AND c.id = k.conversation_id
            WHERE k.id = NEW.task_id
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
