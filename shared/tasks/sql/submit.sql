-- Refuses messages of tools and blocks of unknown types, by their place. The orchestrator checks the blocks before the task
-- is queued, as `shared/contracts/content.py` does for the other entry points.
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
        WHERE m.value->>'role' = 'tool' OR b.value->>'type' NOT IN (
                'text', 'image', 'document', 'search_result', 'tool_use', 'tool_result', 'thinking', 'redacted_thinking',
                'server_tool_use', 'web_search_tool_result', 'web_fetch_tool_result', 'code_execution_tool_result',
                'bash_code_execution_tool_result', 'text_editor_code_execution_tool_result', 'tool_search_tool_result',
                'advisor_tool_result', 'mcp_tool_use', 'mcp_tool_result', 'mcp_tool_listing', 'container_upload',
                'compaction', 'fallback', 'input_text', 'output_text', 'image_url', 'input_image',
                'file', 'input_file', 'text-plain')
        ORDER BY m.n, b.n LIMIT 1;
    IF found.type IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%].content[%]: blocks of type % are not supported here. Send one of text, image, document, '
            'search_result, tool_result, or a text that says the same.', found.message, found.block,
            quote_literal(left(found.type, 50)) USING ERRCODE = 'MN007';
    ELSIF found.message IS NOT NULL THEN
        RAISE EXCEPTION 'messages[%]: messages of role ''tool'' are not supported yet. Put what the tool returned into a '
            'user message.', found.message USING ERRCODE = 'MN007';
    END IF;
END $$;

-- The bounds of the role that submits: of the session's login, or else of the role that it has set, or of the one role
-- with bounds that this is a member of. NULL: none. `minion_submit` calls it with its owner's rights; a caller cannot change
-- `session_user`, and can set only a role that it is a member of. A role to which EXECUTE was granted itself, as release 0.2
-- documents it, is not bound, nor is the owner. Returns a row of `sql_submitters`.
CREATE OR REPLACE FUNCTION minion_session_bounds() RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    entry oid[] := ARRAY(SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
                             AND proname IN ('minion_submit', 'minion_submit_json'));
    candidates jsonb[];
BEGIN
    IF NOT EXISTS (SELECT FROM sql_submitters) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(to_jsonb(b) ORDER BY b.role <> session_user) INTO candidates FROM sql_submitters b
        WHERE b.role IN (session_user, caller);
    IF candidates IS NOT NULL THEN
        RETURN candidates[1];
    ELSIF pg_has_role(caller, current_user, 'MEMBER') OR EXISTS (
            SELECT FROM pg_proc p, aclexplode(p.proacl) a
                WHERE p.oid = ANY (entry) AND a.grantee = quote_ident(caller)::regrole) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(to_jsonb(b)) INTO candidates FROM sql_submitters b JOIN pg_roles r ON r.rolname = b.role
        WHERE pg_has_role(caller, r.oid, 'MEMBER');
    IF cardinality(candidates) > 1 THEN
        RAISE EXCEPTION 'The role % is a member of several roles that may submit tasks: %. Choose one with SET ROLE.', caller,
            (SELECT string_agg(c.one->>'role', ', ' ORDER BY c.one->>'role') FROM unnest(candidates) AS c (one)) USING ERRCODE = 'MN010';
    ELSIF candidates IS NULL AND NOT EXISTS (
            SELECT FROM unnest(entry) AS e (function) WHERE has_function_privilege(caller, e.function, 'EXECUTE')) THEN
        -- It calls a function that runs with the rights of another role, whose bounds are not known here.
        RAISE EXCEPTION 'The role % may not submit tasks. `minion grant-submit %` permits it.', caller, caller
            USING ERRCODE = 'MN010';
    END IF;
    RETURN candidates[1];
END $$;

-- Refuses a request that would join a conversation, or return a task, of other agents than `agents` (empty: of any).
CREATE OR REPLACE FUNCTION minion_check_reach(request jsonb, agents text[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    ns text := COALESCE(request->>'namespace', 'default');
    talk text := request->>'conversation_id';
    once text := request->>'idempotency_key';
    alone text := request->>'unique_key';
BEGIN
    IF agents = '{}' THEN
        RETURN;
    END IF;
    -- Messages outlive their tasks: if none of the tasks is left, nothing shows whose they are.
    IF talk IS NOT NULL AND (
            SELECT COALESCE(bool_or(COALESCE(t.agent_name <> ALL (agents), true)), EXISTS (
                       SELECT FROM messages m WHERE m.namespace = ns AND m.conversation_id = talk))
                FROM tasks t WHERE t.namespace = ns AND t.conversation_id = talk AND t.parent_id IS NULL) THEN
        RAISE EXCEPTION 'The conversation has tasks of agents that this submitter may not use, so it must not add one to it.'
            USING ERRCODE = 'MN009';
    ELSIF EXISTS (
            SELECT FROM tasks t WHERE COALESCE(t.agent_name <> ALL (agents), true) AND t.id IN (
                SELECT i.task_id FROM idempotency_keys i WHERE i.namespace = ns AND i.key = once
                UNION ALL
                SELECT u.task_id FROM unique_tasks u WHERE u.namespace = ns AND u.key = alone)) THEN
        RAISE EXCEPTION 'A task of an agent that this submitter may not use has the same idempotency key or unique key. '
            'Choose another.' USING ERRCODE = 'MN009';
    END IF;
END $$;

-- Returns a request with everything that the bounds imply, as `shared.access.scope.Scope.narrow` does for API keys.
-- Names that a tenant chooses become its own.
CREATE OR REPLACE FUNCTION minion_within_bounds(request jsonb, bounds jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    who text := bounds->>'role';
    ns text := bounds->>'namespace';
    bound text := bounds->>'tenant';
    agents text[] := ARRAY(SELECT jsonb_array_elements_text(bounds->'agents'));
    any_of boolean := right(bound, 1) = '*';
    tenant text := COALESCE(request->>'key', CASE WHEN NOT any_of THEN bound END);
    field text;
    named text;
BEGIN
    IF COALESCE(request->>'namespace', ns) <> ns THEN
        RAISE EXCEPTION 'The role % may submit tasks to the namespace % only: leave `namespace` out.', who,
            quote_literal(ns) USING ERRCODE = 'MN010';
    END IF;
    request := request || jsonb_build_object('namespace', ns);
    IF agents <> '{}' THEN
        request := request || jsonb_build_object('agent', COALESCE(
            request->>'agent', CASE cardinality(agents) WHEN 1 THEN agents[1] END));
        IF COALESCE(request->>'agent' <> ALL (agents), true) THEN
            RAISE EXCEPTION 'The role % may submit tasks only to: %. `agent` must name one of them.', who,
                array_to_string(agents, ', ') USING ERRCODE = 'MN010';
        END IF;
    END IF;
    IF bound IS NOT NULL THEN
        IF (CASE WHEN any_of THEN starts_with(tenant, left(bound, -1)) ELSE tenant = bound END) IS NOT TRUE
                OR position(chr(31) IN tenant) > 0 THEN
            RAISE EXCEPTION 'The role % may submit tasks of the tenant % only: `key` must %.', who,
                quote_literal(bound), CASE WHEN any_of THEN 'begin with ' || quote_literal(left(bound, -1))
                                                   ELSE 'be ' || quote_literal(bound) END USING ERRCODE = 'MN010';
        END IF;
        request := request || jsonb_build_object('key', tenant);
        FOREACH field IN ARRAY '{conversation_id,idempotency_key,unique_key}'::text[] LOOP
            named := NULLIF(request->>field, '');
            CONTINUE WHEN named IS NULL;
            IF position(chr(31) IN named) > 0 THEN
                RAISE EXCEPTION 'Invalid %: it must not contain the character U+001F.', field USING ERRCODE = 'MN007';
            ELSIF char_length(tenant) + 1 + char_length(named) > 255 THEN
                RAISE EXCEPTION '% is too long: it and the tenant key must have at most 254 characters together.', field
                    USING ERRCODE = 'MN007';
            END IF;
            request := request || jsonb_build_object(field, tenant || chr(31) || named);
        END LOOP;
    END IF;
    RETURN request;
END $$;

-- Applies the default limit of an input's size until the caller applies the returned one again, or its transaction ends.
-- (`SET` in a function's header would do it too, but only a superuser may define that for a parameter of ours.)
CREATE OR REPLACE FUNCTION minion_limit_inputs(most text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text := COALESCE(current_setting('minion.max_input_bytes', true), '');
BEGIN
    PERFORM set_config('minion.max_input_bytes', most, true);
    RETURN before;
END $$;

-- Accepts one request of an SQL caller, within the bounds of its role.
CREATE OR REPLACE FUNCTION minion_accept_bounded(request jsonb) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    bounds jsonb := minion_session_bounds();
    agents text[] := ARRAY(SELECT jsonb_array_elements_text(bounds->'agents'));
    most text := minion_limit_inputs();
    accepted record;
BEGIN
    IF bounds IS NOT NULL THEN
        request := minion_within_bounds(request, bounds);
        PERFORM minion_check_reach(request, agents);
    END IF;
    SELECT * INTO accepted FROM minion_accept(request);
    PERFORM minion_limit_inputs(most);
    IF NOT accepted.created THEN
        -- Another session may have taken the key since.
        PERFORM minion_check_reach(request - 'conversation_id', agents);
    END IF;
    RETURN accepted.task_id;
END $$;

-- For SQL callers, whatever their search_path: the task exists if and only if their transaction commits.
-- They need only EXECUTE on this function, which lets them read nothing: it runs with its owner's rights. They can
-- therefore not choose the search_path and the limit of the input's size. `minion grant-submit` bounds a role to a
-- namespace, agents and a tenant: see `minion_session_bounds`.
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
    namespace text DEFAULT NULL,
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_while text DEFAULT 'running',
    budget jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE sql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
    SELECT minion_refuse_content(messages);
    SELECT minion_accept_bounded(jsonb_build_object(
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
    namespace text DEFAULT NULL,
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_while text DEFAULT 'running',
    budget jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    most text := minion_limit_inputs();
BEGIN
    input := COALESCE(input, '{}');
    PERFORM minion_check_json(input::jsonb, 'The input');
    PERFORM minion_refuse_repeated_keys(input);
    PERFORM minion_limit_inputs(most);
    RETURN minion_accept_bounded(jsonb_build_object(
        'agent', agent, 'input', input, 'input_order', minion_key_order(input), 'capability', capability,
        'idempotency_key', idempotency_key, 'key', key, 'labels', labels, 'priority', priority,
        'run_at', run_at, 'deadline', deadline, 'conversation_id', conversation_id,
        'namespace', namespace, 'traceparent', traceparent, 'submitted_by', 'sql:' || session_user,
        'unique_key', unique_key, 'unique_while', unique_while, 'budget', budget));
END $$;
REVOKE ALL ON FUNCTION minion_submit_json FROM PUBLIC;
