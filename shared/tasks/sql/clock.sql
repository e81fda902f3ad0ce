-- Times of the past that lie in the future: the clock of the database's host was put back.

-- Such times count as of now, or their tasks would stall for as long as the clock went back: a worker that has died would
-- count as alive, a lost message as just sent, a limit as used up. Waits are healed by `minion_heal_waits`. A second ahead
-- is none: the clock is read before rows are. Returns the number of rows that were changed.
CREATE OR REPLACE FUNCTION minion_heal_clock() RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    moment timestamptz;
    ahead timestamptz;
    healed integer;
    changed integer;
BEGIN
    -- Waits here for a migration, not after the clock was read: right times would then lie in the future.
    -- In the migration's order.
    LOCK TABLE rate_holds, schedules, task_status, webhook_deliveries, workers IN ROW EXCLUSIVE MODE;
    moment := clock_timestamp();
    ahead := moment + interval '1 s';
    UPDATE workers SET last_seen = LEAST(last_seen, moment),
                       idle_since = CASE WHEN idle_since > moment THEN moment ELSE idle_since END
        WHERE status = 'online' AND (last_seen > ahead OR idle_since > ahead);
    GET DIAGNOSTICS healed = ROW_COUNT;

    UPDATE task_status SET queued_at = LEAST(queued_at, moment), published_at = LEAST(published_at, moment),
                           updated_at = LEAST(updated_at, moment)
        WHERE task_id IN (
            SELECT s.task_id FROM task_status s
                WHERE s.state IN ('queued', 'running') AND (s.published_at > ahead OR s.updated_at > ahead)
                ORDER BY s.task_id FOR NO KEY UPDATE SKIP LOCKED);
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;

    -- A hold lasts until its limit permits one more task. One that is too long may go: the limiter makes another.
    DELETE FROM rate_holds h WHERE h.until_at > moment + interval '1 minute' AND NOT EXISTS (
        SELECT 1 FROM limits l WHERE l.namespace = h.namespace AND l.scope = h.scope AND l.name IN (h.name, '*')
            AND h.until_at <= moment + 2 * l.period_seconds / l.rate * interval '1 s');
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;
    IF changed > 0 THEN
        PERFORM minion_notify_pending();
    END IF;

    -- Not those with a cron expression, whose runs are times of the day. A schedule that cannot be read is set aside for
    -- five minutes.
    UPDATE schedules SET next_at = moment + interval_seconds * interval '1 s'
        WHERE id IN (
            SELECT c.id FROM schedules c
                WHERE c.enabled AND c.next_at > moment + (c.interval_seconds + 300) * interval '1 s'
                FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;

    UPDATE webhook_deliveries SET next_at = moment
        WHERE status = 'pending' AND attempts = 0 AND next_at > ahead;
    GET DIAGNOSTICS changed = ROW_COUNT;
    healed := healed + changed;
    IF changed > 0 THEN
        PERFORM pg_notify('minion_webhooks', '');
    END IF;
    RETURN healed;
END $$;
