-- Refuses messages of tools and blocks that are not text, by their place, as `shared/tasks/messages.py` does.
CREATE OR REPLACE FUNCTION minion_refuse_content(messages jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found record;
BEGIN
    SELECT m.n - 1 AS message, b.n - 1 AS block, b.value->>'type' AS type INTO found
        FROM jsonb_array_elements(CASE jsonb_typeof(messages) WHEN 'array' THEN messages END)
                WITH ORDINALITY AS m (value, n)
            LEFT JOIN LATERAL jsonb_array_elements(
                CASE jsonb_typeof(m.value->'content') WHEN 'array' THEN m.value->'content' END)
                WITH ORDINALITY AS b (value, n) ON true
        WHERE m.value->>'role' = 'tool' OR b.value->>'type' NOT IN ('text', 'input_text', 'output_text')
        ORDER BY m.n, b.n LIMIT 1;
    IF found.type IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%].content[%]: blocks of type % are not supported yet. Send its text, or a link to it, '
            'as a block of type ''text''.', found.message, found.block, quote_literal(left(found.type, 50))
            USING ERRCODE = 'MN007';
    ELSIF found.message IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%]: messages of role ''tool'' are not supported yet. Put what the tool returned into a '
            'user message.', found.message USING ERRCODE = 'MN007';
    END IF;
END $$;

-- For SQL callers, whatever their search_path: the task exists if and only if their transaction commits.
-- They need only EXECUTE on this function, which lets them read nothing: it runs with its owner's rights. They can
-- therefore not choose the search_path and the limit of the input's size.
-- Without input and messages the input is {}. If another task holds the unique key, that task's id is returned.
CREATE OR REPLACE FUNCTION minion_submit(
    agent text,
    input jsonb DEFAULT NULL,
    capability text DEFAULT NULL,
    messages jsonb DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    key text DEFAULT NULL,
    labels jsonb DEFAULT NULL,
    priority integer DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    deadline timestamptz DEFAULT NULL,
    conversation_id text DEFAULT NULL,
    namespace text DEFAULT 'default',
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_while text DEFAULT 'running',
    budget jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE sql SECURITY DEFINER
SET search_path FROM CURRENT SET minion.max_input_bytes = '' AS $$
    SELECT minion_refuse_content(messages);
    SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'capability', capability, 'messages', messages,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)
        || CASE WHEN input IS NOT NULL OR messages IS NULL
                THEN jsonb_build_object('input', COALESCE(input, '{}'::jsonb)) ELSE '{}'::jsonb END)
$$;

-- Refuses objects with a repeated key, as HTTP does: jsonb would keep the last value.
CREATE OR REPLACE FUNCTION minion_refuse_repeated_keys(value json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    twice text;
BEGIN
    WITH RECURSIVE parts (part) AS (
        SELECT value
        UNION ALL SELECT m.part FROM parts p CROSS JOIN LATERAL (
                SELECT o.value FROM json_each(CASE json_typeof(p.part) WHEN 'object' THEN p.part END) AS o
                UNION ALL
                SELECT a.value FROM json_array_elements(CASE json_typeof(p.part) WHEN 'array' THEN p.part END) AS a
            ) AS m (part)
            WHERE json_typeof(m.part) IN ('object', 'array')
    )
    SELECT k.key INTO twice FROM parts p CROSS JOIN LATERAL (
            SELECT o.key FROM json_object_keys(CASE json_typeof(p.part) WHEN 'object' THEN p.part END) AS o (key)
                GROUP BY o.key HAVING count(*) > 1) AS k
        LIMIT 1;
    IF twice IS NOT NULL THEN
        RAISE EXCEPTION 'The input has the key % twice in one object.', quote_literal(left(twice, 50))
            USING ERRCODE = 'MN007';
    END IF;
END $$;

-- `minion_submit` for an input whose keys keep their order: jsonb has none. PUBLIC may not execute it either.
CREATE OR REPLACE FUNCTION minion_submit_json(
    agent text,
    input json,
    capability text DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    key text DEFAULT NULL,
    labels jsonb DEFAULT NULL,
    priority integer DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    deadline timestamptz DEFAULT NULL,
    conversation_id text DEFAULT NULL,
    namespace text DEFAULT 'default',
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_while text DEFAULT 'running',
    budget jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET minion.max_input_bytes = '' AS $$
BEGIN
    input := COALESCE(input, '{}');
    PERFORM minion_check_json(input::jsonb, 'The input');
    PERFORM minion_refuse_repeated_keys(input);
    RETURN (SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'input', input, 'input_order', minion_key_order(input), 'capability', capability,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)));
END $$;
REVOKE ALL ON FUNCTION minion_submit_json FROM PUBLIC;
