-- Approval policies: which keys may decide about a call, and how many must approve it.

-- The policy of a step: that of the agent or tool version which its task has pinned. NULL: it has none. The first step of
-- an agent that requires approval concerns the agent's own input. The policy of a tool also says who may answer the
-- questions of its server.
CREATE OR REPLACE FUNCTION minion_approval_policy(s steps) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT CASE jsonb_typeof(found.policy) WHEN 'object' THEN found.policy END FROM (
        SELECT CASE WHEN s.number = 1 AND s.kind = 'wait' AND v.definition->'config'->'approval' <> 'false'
                    THEN v.definition->'config'->'approval' ELSE k.definition->'approval' END AS policy
            FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id
            LEFT JOIN tool_versions k ON k.id = COALESCE(v.tool_version_id, (
                SELECT o.id FROM agent_version_tools l JOIN tool_versions o ON o.id = l.tool_version_id
                    WHERE l.agent_version_id = v.id AND o.name = s.name))
            WHERE t.id = s.task_id AND (s.kind = 'wait' AND s.input ? 'approval' OR minion_asks(s))) AS found
$$;

-- What an approval needs: {people, not_submitter, approvers: [{roles, keys}]}; a key must be among all `approvers`.
-- `rules`: the positions of the rules whose conditions match the arguments. NULL: all of them.
CREATE OR REPLACE FUNCTION minion_required(policy jsonb, rules integer[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object(
            'people', max(COALESCE((part->>'people')::integer, 1)),
            'not_submitter', COALESCE(bool_or((part->>'not_submitter')::boolean), false),
            'approvers', COALESCE(jsonb_agg(jsonb_build_object(
                'roles', COALESCE(part->'roles', '[]'), 'keys', COALESCE(part->'keys', '[]')) ORDER BY n)
                FILTER (WHERE part ?| ARRAY['roles', 'keys']), '[]'))
        FROM (SELECT policy, 0 UNION ALL
              SELECT r.part, r.n FROM jsonb_array_elements(policy->'rules') WITH ORDINALITY AS r (part, n)
                  WHERE rules IS NULL OR r.n - 1 = ANY (rules)) AS parts (part, n)
$$;

-- The keys that may decide, in words: "the key ann or a key with the role approver".
CREATE OR REPLACE FUNCTION minion_approvers(required jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT COALESCE(string_agg(concat_ws(' or ',
            'the key ' || NULLIF(array_to_string(ARRAY(SELECT jsonb_array_elements_text(a.one->'keys')), ' or '), ''),
            'a key with the role '
                || NULLIF(array_to_string(ARRAY(SELECT jsonb_array_elements_text(a.one->'roles')), ' or '), '')),
            ', which must also be ' ORDER BY n), 'any key that may decide about tasks')
        || CASE WHEN required->'not_submitter' = 'true' THEN ', but no key that submitted the task' ELSE '' END
        FROM jsonb_array_elements(required->'approvers') WITH ORDINALITY AS a (one, n)
$$;

-- The approvals of a step's current arguments that still count: [{key, by, at, reason}]. Those of a key that was revoked
-- since do not.
CREATE OR REPLACE FUNCTION minion_standing_approvals(s steps) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT COALESCE(jsonb_agg(a.one ORDER BY a.n), '[]')
        FROM jsonb_array_elements(s.approvals->'by') WITH ORDINALITY AS a (one, n)
        WHERE NOT EXISTS (SELECT FROM api_keys k WHERE k.id::text = a.one->>'key' AND k.revoked_at IS NOT NULL)
$$;

-- Refuses a decision that the policy of a step does not permit; returns what an approval needs. `approver`: {key, name,
-- role, rules}: the id of the deciding key, `bootstrap` for the administrator's, or `user:` and the id of a user without a
-- key, whose name and role count; and the rules for `minion_required`. NULL: the caller is no key, or an orchestrator of
-- release 0.2, which can judge no policy.
CREATE OR REPLACE FUNCTION minion_check_approver(s steps, policy jsonb, verdict text, approver jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    required jsonb := minion_required(policy, CASE jsonb_typeof(approver->'rules') WHEN 'array' THEN ARRAY(
        SELECT jsonb_array_elements_text(approver->'rules')::integer) END);
    who record;
BEGIN
    IF approver IS NULL THEN
        RAISE EXCEPTION 'Step % (%) has an approval policy: % may decide about it, through an orchestrator of release 0.3 '
            'or later.', s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN009';
    ELSIF approver->>'key' = 'bootstrap' THEN
        SELECT 'bootstrap' AS id, 'bootstrap' AS name, 'admin' AS role INTO who;
    ELSIF approver->>'key' LIKE 'user:%' THEN
        SELECT approver->>'key' AS id, approver->>'name' AS name, approver->>'role' AS role INTO who;
    ELSE
        SELECT k.id::text AS id, k.name, k.role INTO who FROM api_keys k
            WHERE k.id = (approver->>'key')::uuid AND k.revoked_at IS NULL AND COALESCE(k.expires_at > now(), true);
    END IF;
    IF who.id IS NULL THEN
        RAISE EXCEPTION 'The API key was revoked, or has expired.' USING ERRCODE = 'MN010';
    ELSIF EXISTS (
            SELECT FROM jsonb_array_elements(required->'approvers') AS a (one)
                WHERE NOT (a.one->'roles' ? who.role OR a.one->'keys' ?| ARRAY[who.name, who.id])) THEN
        RAISE EXCEPTION 'The key % (role %) may not decide about step %, %. Its approval policy names %.', who.name,
            who.role, s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN010';
    ELSIF verdict = 'approve' AND required->'not_submitter' = 'true' AND who.id = ANY (
            COALESCE((SELECT submitter_keys FROM tasks WHERE id = s.task_id), '{}')) THEN
        RAISE EXCEPTION 'The key % submitted this task, and so may not approve step %, %. Its approval policy names %.',
            who.name, s.number, s.name, minion_approvers(required) USING ERRCODE = 'MN010';
    END IF;
    RETURN required;
END $$;

-- The keys that submitted a task: that of its own submitter, those that wrote its schedule, and those of its parent and of
-- the task that it replays. The administrator's key is `bootstrap`.
CREATE OR REPLACE FUNCTION minion_submitters(submitter text, key text, ns text, parent text[], replayed text[]) RETURNS text[]
LANGUAGE sql STABLE AS $$
    SELECT NULLIF(ARRAY(SELECT DISTINCT k.id FROM unnest(
        ARRAY[key, CASE WHEN submitter ~ '^api(:|$)' THEN 'bootstrap' END] || parent || replayed
        || (SELECT s.submitter_keys FROM schedules s WHERE submitter LIKE 'schedule:%' AND s.namespace = ns
                AND s.name = substr(submitter, 10))) AS k (id) WHERE k.id IS NOT NULL ORDER BY k.id), '{}')
$$;

-- Adds an approval of these arguments to those that a step has. Other arguments than those approved before reset them,
-- and a second approval by one key replaces its first. Returns the new value of `steps.approvals`: {people, by,
-- arguments, order, edited}; `edited`: they are not the proposed ones.
CREATE OR REPLACE FUNCTION minion_add_approval(s steps, people integer, value jsonb, value_order jsonb, one jsonb)
RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'people', people, 'arguments', value, 'order', value_order,
        -- As text: 1 and 1.0 are equal as jsonb.
        'edited', value::text <> (CASE WHEN s.kind = 'wait' THEN s.input->'approval' ELSE (
            SELECT r.proposed FROM remote_calls r WHERE r.task_id = s.task_id AND r.step = s.number) END)::text,
        'by', COALESCE(jsonb_agg(e.earlier ORDER BY e.n) FILTER (
            WHERE e.earlier->>'key' <> one->>'key' AND (s.approvals->'arguments')::text = value::text), '[]') || one)
        FROM (SELECT) AS always
            LEFT JOIN jsonb_array_elements(minion_standing_approvals(s)) WITH ORDINALITY AS e (earlier, n) ON true
$$;

-- Refuses to replay a task as `new` with an edited approval if one key alone could not have given it.
CREATE OR REPLACE FUNCTION minion_check_edited_approval(s steps, new uuid, policy jsonb, approver jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    required jsonb;
BEGIN
    -- The keys that submitted the replay are those of the original, and the one that edits.
    s.task_id := new;
    required := minion_check_approver(s, policy, 'approve', approver);
    IF (required->>'people')::integer > 1 THEN
        RAISE EXCEPTION 'Step % (%) must be approved by % different keys, so a replay cannot set its arguments. Replay from '
            'step % without an edit: the new task asks for the approvals.', s.number, s.name, required->'people', s.number
            USING ERRCODE = 'MN010';
    END IF;
END $$;
