-- Order within a conversation: its root tasks run one after the other.

-- The predecessor of a root task in its conversation, in the order of the ids: a task that was accepted before and has
-- not ended comes first, and so does one that has begun, whatever its id. NULL: there is none.
-- Reads the first entry of an index, however many tasks of the conversation wait or have ended. (Only root tasks have a
-- conversation in `task_status`.)
CREATE OR REPLACE FUNCTION minion_predecessor(t uuid, ns text, conversation text) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT e.task_id FROM task_status e
        WHERE e.namespace = ns AND e.conversation_id = conversation AND e.task_id <> t
          AND e.state IN ('pending', 'queued', 'running', 'waiting') AND (e.claim = 0, e.task_id) < (true, t)
        ORDER BY e.claim = 0, e.task_id LIMIT 1
$$;

-- A task's rank from now on: `minion_parked` while it waits for its predecessor in the conversation.
CREATE OR REPLACE FUNCTION minion_place(t uuid, ns text, conversation text, since timestamptz, priority integer) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN conversation IS NOT NULL AND minion_predecessor(t, ns, conversation) IS NOT NULL
                THEN minion_parked() ELSE minion_rank(since, priority) END
$$;

-- Gives the next task of a conversation its rank. If another transaction has locked that task, the healer does it
-- later.
CREATE OR REPLACE FUNCTION minion_next_turn(ns text, conversation text) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    successor task_status;
BEGIN
    SELECT s.* INTO successor FROM task_status s
        WHERE s.namespace = ns AND s.conversation_id = conversation AND s.state = 'pending' AND s.rank = minion_parked()
        ORDER BY s.task_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE task_status s SET rank = minion_place(s.task_id, ns, conversation, k.created_at, s.priority)
            FROM tasks k WHERE s.task_id = successor.task_id AND k.id = s.task_id;
        PERFORM minion_notify_pending();
    END IF;
END $$;

-- Ranks tasks whose predecessor is done: a task that is accepted while its predecessor ends may have missed that. Only
-- the first waiting task of a conversation can be concerned. Also deletes expired rate holds.
CREATE OR REPLACE FUNCTION minion_heal_turns(most integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    woken integer;
BEGIN
    UPDATE task_status s SET rank = minion_rank(k.created_at, s.priority)
        FROM tasks k WHERE k.id = s.task_id AND s.task_id IN (
            SELECT p.task_id FROM task_status p JOIN (
                    SELECT DISTINCT ON (f.namespace, f.conversation_id) f.task_id, f.namespace, f.conversation_id
                        FROM task_status f WHERE f.state = 'pending' AND f.rank = minion_parked()
                        ORDER BY f.namespace, f.conversation_id, f.task_id) AS first ON first.task_id = p.task_id
                WHERE p.state = 'pending' AND p.rank = minion_parked()
                  AND minion_predecessor(first.task_id, first.namespace, first.conversation_id) IS NULL
                LIMIT most FOR NO KEY UPDATE OF p SKIP LOCKED);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM minion_notify_pending();
    END IF;
    DELETE FROM rate_holds WHERE until_at < now() - interval '1 minute';
    RETURN woken;
END $$;
