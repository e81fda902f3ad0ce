-- Writing journal steps under the fence.

CREATE OR REPLACE FUNCTION minion_put_steps(t uuid, c integer, journal jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input, input_order, output,
                       output_order, error, stdout, usage, cost_microdollars, function_version_id, started_at,
                       finished_at, program, line)
    SELECT t, s.number, s.kind, s.name, s.status, COALESCE(s.effect, 'pure'), s.request_hash, c, s.input, s.input_order,
           s.output, s.output_order, s.error, s.stdout, s.usage, COALESCE(s.cost_microdollars, 0),
           s.function_version_id, COALESCE(s.started_at, now()), s.finished_at, s.program, s.line
        FROM jsonb_to_recordset(journal) AS s (
            number integer, kind text, name text, status text, effect text, request_hash text, input jsonb,
            input_order jsonb, output jsonb, output_order jsonb, error jsonb, stdout text, usage jsonb,
            cost_microdollars bigint, function_version_id uuid, started_at timestamptz, finished_at timestamptz,
            program integer, line integer)
    ON CONFLICT (task_id, number) DO UPDATE SET
        status = EXCLUDED.status, output = EXCLUDED.output, output_order = EXCLUDED.output_order,
        error = EXCLUDED.error, stdout = EXCLUDED.stdout,
        usage = EXCLUDED.usage, cost_microdollars = EXCLUDED.cost_microdollars, claim = EXCLUDED.claim,
        finished_at = EXCLUDED.finished_at
        WHERE steps.status IN ('started', 'failed')
$$;

-- Commits steps under the fence. NULL: the fence is lost, stop; else the flags that the minion must obey. If a step must
-- not begin (`minion_refusal`), nothing is written.
CREATE OR REPLACE FUNCTION minion_write_steps(t uuid, c integer, journal jsonb) RETURNS jsonb LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    refusal jsonb;
BEGIN
    IF NOT minion_fence(t, c) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT 1 FROM stops) OR EXISTS (SELECT 1 FROM standing_budgets)
            OR EXISTS (SELECT 1 FROM batch_calls WHERE task_id = t) THEN
        refusal := minion_refusal(t, c, journal);
        IF refusal IS NOT NULL THEN
            RETURN refusal;
        END IF;
    END IF;
    PERFORM minion_put_steps(t, c, journal);
    RETURN (SELECT jsonb_build_object('cancel', cancel_requested) FROM task_status WHERE task_id = t);
END $$;
