-- Files that tasks and conversations refer to. While one does, its file cannot be deleted.

-- The ids of our files in messages (`source.file_id`) and in an input (`{"$file": id}`).
CREATE OR REPLACE FUNCTION minion_file_ids(messages jsonb, input jsonb) RETURNS SETOF text LANGUAGE sql IMMUTABLE AS $$
    SELECT DISTINCT f.id FROM (
            SELECT jsonb_path_query(messages, 'lax $.**.source.file_id') #>> '{}'
            UNION ALL SELECT jsonb_path_query(input, 'lax $.**."$file"') #>> '{}') AS f (id)
        WHERE f.id ~ '^file_[0-9a-f]{64}$' ORDER BY f.id
$$;

CREATE OR REPLACE FUNCTION minion_refuse_missing_files(ns text, ids text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    missing text;
BEGIN
    -- Locked, so that none of them is deleted before this transaction ends.
    PERFORM FROM files f WHERE f.namespace = ns AND f.id = ANY (ids) ORDER BY f.id FOR KEY SHARE;
    SELECT i.id INTO missing FROM unnest(ids) AS i (id)
        WHERE NOT EXISTS (SELECT FROM files f WHERE f.namespace = ns AND f.id = i.id) LIMIT 1;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'There is no file % in this namespace. Upload it with POST /v1/files, and use the id of the answer.',
            missing USING ERRCODE = 'MN007';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION minion_hold_files_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ids text[] := ARRAY(SELECT minion_file_ids(NEW.messages, NEW.input));
BEGIN
    PERFORM minion_refuse_missing_files(NEW.namespace, ids);
    INSERT INTO task_files (task_id, namespace, file_id) SELECT NEW.id, NEW.namespace, i.id FROM unnest(ids) AS i (id)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- Workers of release 0.2 know neither blocks nor files: they hand such a task back, and one of this release takes it.
-- A trial has a format that they do not know either.
CREATE OR REPLACE FUNCTION minion_mark_blocks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.journal_format := GREATEST(NEW.journal_format, 2);
    RETURN NEW;
END $$;

-- A conversation keeps its messages when retention deletes their tasks.
CREATE OR REPLACE FUNCTION minion_hold_files_of_message() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversation_files (namespace, conversation_id, file_id)
        SELECT NEW.namespace, NEW.conversation_id, f.id FROM minion_file_ids(NEW.content, NULL) AS i (id)
            JOIN files f ON f.namespace = NEW.namespace AND f.id = i.id
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
