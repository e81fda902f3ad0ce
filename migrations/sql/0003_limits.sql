-- Model limits: requests in `rate`, and tokens. They apply when a model is called, not when a task starts.
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

-- How the agent was chosen for a message that named none, with the scores.
ALTER TABLE tasks ADD COLUMN routing jsonb;
