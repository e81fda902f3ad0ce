-- Marks of ended work: the transaction that ended it, from which statistics are counted.
--
-- Statistics must count each end once, also that of a transaction that commits late. Times and ids cannot decide that,
-- because such a transaction has early ones. Its number can: all transactions below the oldest running one have ended.

CREATE OR REPLACE FUNCTION minion_mark_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.ended_in := CASE WHEN NEW.finished_at IS NOT NULL THEN pg_current_xact_id()::text::bigint END;
    RETURN NEW;
END $$;

-- A step that is retried ends again, perhaps before its first end is counted.
CREATE OR REPLACE FUNCTION minion_keep_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO retried_steps (task_id, number, ended_in, claim, kind, name, status, usage, cost_microdollars,
                               function_version_id, started_at, finished_at)
        VALUES (OLD.task_id, OLD.number, OLD.ended_in, OLD.claim, OLD.kind, OLD.name, OLD.status, OLD.usage,
                OLD.cost_microdollars, OLD.function_version_id, OLD.started_at, OLD.finished_at)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- The cluster whose transactions have these numbers; null if this role may not know. A restored dump is in another one.
CREATE OR REPLACE FUNCTION minion_cluster() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system());
EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
    RETURN NULL;
END $$;

-- A number of a step's usage, which any worker may have written; 0 if there is none.
CREATE OR REPLACE FUNCTION minion_used(usage jsonb, name text) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE jsonb_typeof(usage->name) WHEN 'number' THEN LEAST(GREATEST((usage->name)::numeric, 0), 1e12)::bigint
                ELSE 0 END
$$;
