-- Functions that the tables' defaults, generated columns and triggers call. They are created before the tables.

-- UUIDv7 (RFC 9562, method 3): milliseconds, then the fraction of a millisecond in 12 bits, then random bits.
-- PostgreSQL 18 has its own function, which the migration uses there.
CREATE OR REPLACE FUNCTION minion_uuidv7() RETURNS uuid LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $$
DECLARE
    micros bigint := floor(extract(epoch FROM clock_timestamp()) * 1000000);
    fraction integer := ((micros % 1000) * 4096 / 1000)::integer;
    bytes bytea := uuid_send(gen_random_uuid());
BEGIN
    bytes := overlay(bytes PLACING substring(int8send(micros / 1000) FROM 3) FROM 1 FOR 6);
    bytes := set_byte(bytes, 6, 112 | (fraction >> 8));   -- 0x70: version 7
    bytes := set_byte(bytes, 7, fraction & 255);
    RETURN encode(bytes, 'hex')::uuid;
END $$;

-- The search text for routing by message: "SearchAgent" is also found as "search agent".
CREATE OR REPLACE FUNCTION minion_search_text(name text, description text, capabilities text[]) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT setweight(to_tsvector('english'::regconfig, translate(
               regexp_replace(name, '([a-z0-9])([A-Z])', '\1 \2', 'g'), '_.-', '   ')), 'A')
        || setweight(to_tsvector('english'::regconfig, translate(
               array_to_string(capabilities, ' '), '_.-', '   ')), 'B')
        || setweight(to_tsvector('english'::regconfig, description), 'C')
$$;

-- A task's position in the queue: lower numbers come first. A point of priority outweighs a minute of waiting, so that
-- no task waits indefinitely and the order never has to be recomputed. Microseconds.
CREATE OR REPLACE FUNCTION minion_rank(since timestamptz, priority integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM since) * 1000000)::bigint - priority::bigint * 60000000
$$;

-- The rank of a task that waits for its predecessor in a conversation: at the end of every queue, where no query looks.
CREATE OR REPLACE FUNCTION minion_parked() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 9000000000000000000
$$;
