-- Canaries: a share of an agent's new tasks gets another version than the active one.

-- Whether a version, or an evaluator, gets `unit`: a conversation, a tenant key or a root task, which keep their version;
-- or a task that has ended. A larger share, in hundredths of a percent, keeps the units of a smaller one. The hash is that
-- of hash partitions, so it does not change.
CREATE OR REPLACE FUNCTION minion_drawn(salt uuid, unit text, share integer) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (hashtextextended(salt::text || '/' || unit, 0) & 9223372036854775807) % 10000 < share
$$;

-- The canary in force beside an active version, for a request with these fields (as `minion_resolve` reads them). None
-- for a request that names a version, or a capability that the canary does not offer. `same_input`: both versions have the
-- same input schema.
CREATE OR REPLACE FUNCTION minion_canary_for(request jsonb, active uuid)
RETURNS TABLE (version_id uuid, share integer, same_input boolean) LANGUAGE sql STABLE AS $$
    SELECT c.version_id, c.share,
           NULLIF(v.input_schema, 'null'::jsonb) IS NOT DISTINCT FROM NULLIF(b.input_schema, 'null'::jsonb)
        FROM canaries c JOIN agent_versions v ON v.id = c.version_id JOIN agent_versions b ON b.id = c.baseline_id
        WHERE c.baseline_id = active AND c.ended_at IS NULL AND request->>'agent_version_id' IS NULL
          AND COALESCE(request->>'capability' = ANY (v.capabilities), true)
$$;

-- The version that a request will get, to check it beforehand. `has_canary`: that depends on its conversation or key,
-- or else on `draw`, any text that comes with the request.
CREATE OR REPLACE FUNCTION minion_resolve_drawn(request jsonb, OUT version_id uuid, OUT agent_name text,
                                                OUT has_canary boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    canary record;
BEGIN
    SELECT r.version_id, r.agent_name INTO version_id, agent_name FROM minion_resolve(request) AS r;
    SELECT * INTO canary FROM minion_canary_for(request, version_id);
    has_canary := FOUND;
    IF has_canary AND minion_drawn(canary.version_id, COALESCE(request->>'conversation_id', request->>'key',
                                                                   request->>'draw'), canary.share) THEN
        version_id := canary.version_id;
    END IF;
END $$;

-- The version of a stored task that was routed to an agent with this active version.
CREATE OR REPLACE FUNCTION minion_routed_version(t uuid, active uuid) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT COALESCE((
        SELECT c.version_id FROM minion_canary_for('{}', active) AS c JOIN tasks k ON k.id = t JOIN tasks r ON r.id = k.root_id
            WHERE k.replay_of IS NULL AND minion_drawn(
                c.version_id, COALESCE(k.conversation_id, r.conversation_id, k.key, k.root_id::text), c.share)), active)
$$;
