-- Images and PDF are compressed already.
ALTER TABLE files ALTER COLUMN data SET STORAGE EXTERNAL;

-- The input as text is searched in half the time of a walk through it.
CREATE TRIGGER tasks_blocks BEFORE INSERT ON tasks FOR EACH ROW
    WHEN (jsonb_path_exists(NEW.messages, 'strict $[*].content ? (@.type() == "array")', '{}', true)
          OR strpos(NEW.input::text, '"$file"') > 0)
    EXECUTE FUNCTION minion_mark_blocks();
CREATE TRIGGER tasks_files AFTER INSERT ON tasks FOR EACH ROW WHEN (NEW.journal_format = 2)
    EXECUTE FUNCTION minion_hold_files_of_task();
CREATE TRIGGER messages_files AFTER INSERT ON messages FOR EACH ROW
    WHEN (jsonb_path_exists(NEW.content, 'lax $.**.source.file_id'))
    EXECUTE FUNCTION minion_hold_files_of_message();
