-- Security events of functions, and quarantine.

-- Stores a security event of a function version, and quarantines the version at the `threshold`-th that counts since
-- it was stored or last released (0: never). Denied actions always count. A limit or a crash may be caused by the
-- input: it counts for an hour, and once for each task. Returns the version's current status.
CREATE OR REPLACE FUNCTION minion_security_event(version uuid, task uuid, what text, facts jsonb, threshold integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    head function_versions;
    since timestamptz;
    seen integer;
BEGIN
    SELECT * INTO head FROM function_versions WHERE id = version FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    INSERT INTO security_events (function_version_id, task_id, kind, detail) VALUES (version, task, what, facts);
    since := COALESCE(head.released_at, head.created_at);
    SELECT count(*) INTO seen FROM security_events
        WHERE function_version_id = version AND created_at >= since
          AND kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security');
    seen := seen + (SELECT count(DISTINCT COALESCE(task_id, id)) FROM security_events
        WHERE function_version_id = version AND created_at >= GREATEST(since, now() - interval '1 hour')
          AND kind NOT IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security'));
    IF threshold > 0 AND seen >= threshold AND head.status <> 'quarantined' THEN
        UPDATE function_versions SET status = 'quarantined',
                status_reason = format('%s security events, the last one %s', seen, what)
            WHERE id = version RETURNING * INTO head;
    END IF;
    RETURN head.status;
END $$;
