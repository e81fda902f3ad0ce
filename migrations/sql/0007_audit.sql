-- The audit log: see `shared/tasks/sql/audit.sql` and `docs/audit.md`.

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_log_pkey PRIMARY KEY,
    nonce uuid NOT NULL CONSTRAINT audit_log_nonce_key UNIQUE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    act text NOT NULL,
    actor text NOT NULL,
    key_prefix text,
    claimed text,
    address text,
    request_id text,
    namespace text,
    target text,
    before json,
    after json,
    signature bytea,
    position bigint CONSTRAINT audit_log_position_key UNIQUE,
    hash bytea,
    CONSTRAINT audit_log_place_check CHECK (num_nulls(position, hash) IN (0, 2)),
    CONSTRAINT audit_log_hash_check CHECK (octet_length(hash) = 32 AND octet_length(signature) = 32)
);
CREATE INDEX audit_log_unsealed_idx ON audit_log (id) WHERE position IS NULL;
CREATE INDEX audit_log_act_idx ON audit_log (act, at);
CREATE INDEX audit_log_namespace_idx ON audit_log (namespace, id);

-- `start`: what is left of the rows that retention deleted. `head`: the last row that has a place in the chain.
CREATE TABLE audit_ends (
    name text NOT NULL CONSTRAINT audit_ends_pkey PRIMARY KEY,
    position bigint NOT NULL,
    hash bytea NOT NULL,
    signature bytea NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT audit_ends_name_check CHECK (name IN ('start', 'head'))
);

-- The addresses from which keys were used lately.
CREATE TABLE key_addresses (
    key text NOT NULL,
    address text NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT key_addresses_pkey PRIMARY KEY (key, address)
);

CREATE TRIGGER audit_log_kept BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION minion_keep_audit_row();
CREATE TRIGGER audit_log_not_emptied BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION minion_keep_audit();
CREATE TRIGGER audit_ends_not_emptied BEFORE DELETE OR TRUNCATE ON audit_ends
    FOR EACH STATEMENT EXECUTE FUNCTION minion_keep_audit();
REVOKE ALL ON audit_log, audit_ends FROM PUBLIC;
