-- Trigger functions that refuse invalid changes.

CREATE OR REPLACE FUNCTION minion_transition_allowed(before text, after text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (before, after) IN (
        ('scheduled', 'pending'), ('pending', 'queued'), ('queued', 'running'), ('queued', 'pending'),
        ('running', 'waiting'), ('waiting', 'pending'), ('running', 'pending'), ('running', 'succeeded'),
        ('pending', 'failed'), ('running', 'failed'), ('waiting', 'failed'),
        ('scheduled', 'cancelled'), ('pending', 'cancelled'), ('queued', 'cancelled'), ('running', 'cancelled'),
        ('waiting', 'cancelled'), ('scheduled', 'expired'), ('pending', 'expired'), ('queued', 'expired'),
        ('running', 'expired'), ('waiting', 'expired'))
$$;

CREATE OR REPLACE FUNCTION minion_check_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state NOT IN ('scheduled', 'pending') THEN
            RAISE EXCEPTION 'a task cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NOT minion_transition_allowed(OLD.state, NEW.state) THEN
        RAISE EXCEPTION 'a task cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION minion_claims_only_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a claim number must not decrease (% to %)', OLD.claim, NEW.claim
        USING ERRCODE = 'check_violation';
END $$;

CREATE OR REPLACE FUNCTION minion_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % must not change; store a new version', TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$;
