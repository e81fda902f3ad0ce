-- For SQL callers, whatever their search_path: the task exists if and only if their transaction commits.
-- EXECUTE on it is the only right that they need, and lets them read nothing: it runs with its owner's rights. The
-- search_path and the limit of the input's size are therefore not theirs to choose.
-- Without input and messages the input is {}. While another task holds the unique key, the id is that one's.
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
    SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'capability', capability, 'messages', messages,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)
        || CASE WHEN input IS NOT NULL OR messages IS NULL
                THEN jsonb_build_object('input', COALESCE(input, '{}'::jsonb)) ELSE '{}'::jsonb END)
$$;

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
    RETURN (SELECT task_id FROM minion_accept(jsonb_build_object(
        'agent', agent, 'input', input, 'input_order', minion_key_order(input), 'capability', capability,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget)));
END $$;
REVOKE ALL ON FUNCTION minion_submit_json FROM PUBLIC;
