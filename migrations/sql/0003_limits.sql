-- ---------------------------------------------------------------------------------------------- limits of models

-- Limits of models: requests in `rate`, and tokens. They do not act where tasks start, but where a model is asked.
ALTER TABLE limits
    ADD COLUMN input_tokens integer,
    ADD COLUMN input_tokens_seconds double precision,
    ADD COLUMN output_tokens integer,
    ADD COLUMN output_tokens_seconds double precision,
    DROP CONSTRAINT limits_scope_check,
    DROP CONSTRAINT limits_something_check,
    ADD CONSTRAINT limits_scope_check CHECK (scope IN ('capability', 'agent', 'key', 'model')),
    ADD CONSTRAINT limits_something_check CHECK (num_nonnulls(max_running, rate, input_tokens, output_tokens) > 0),
    ADD CONSTRAINT limits_model_check CHECK (
        CASE scope WHEN 'model' THEN max_running IS NULL ELSE num_nonnulls(input_tokens, output_tokens) = 0 END),
    ADD CONSTRAINT limits_input_tokens_check CHECK (
        (input_tokens IS NULL) = (input_tokens_seconds IS NULL) AND input_tokens > 0 AND input_tokens_seconds > 0),
    ADD CONSTRAINT limits_output_tokens_check CHECK (
        (output_tokens IS NULL) = (output_tokens_seconds IS NULL) AND output_tokens > 0 AND output_tokens_seconds > 0);

-- ---------------------------------------------------------------------------------------------- routing

-- What has chosen the agent of a message that named none, and by which scores.
ALTER TABLE tasks ADD COLUMN routing jsonb;

CREATE FUNCTION minion_route_by(t uuid, version uuid, queue text, decision jsonb) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT minion_route(t, version, queue) THEN
        RETURN false;
    END IF;
    UPDATE tasks SET routing = decision WHERE id = t AND decision IS NOT NULL;
    RETURN true;
END $$;

ALTER FUNCTION minion_route_by SET enable_seqscan = off;
ALTER FUNCTION minion_route_by SET jit = off;
