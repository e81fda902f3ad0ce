-- The audit log. Rows are only ever added. One process at a time gives them their places in a chain of keyed hashes
-- (`shared/audit/chain.py`), and retention removes the beginning of that chain through `minion_prune_audit` alone.

-- Refuses every change of a row but the one that gives it its place.
CREATE OR REPLACE FUNCTION minion_keep_audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.position IS NULL AND NEW.position IS NOT NULL
            AND ROW(OLD.id, OLD.nonce, OLD.at, OLD.act, OLD.actor, OLD.key_prefix, OLD.claimed, OLD.address,
                    OLD.request_id, OLD.namespace, OLD.target, OLD.before::text, OLD.after::text, OLD.signature)
                IS NOT DISTINCT FROM
                ROW(NEW.id, NEW.nonce, NEW.at, NEW.act, NEW.actor, NEW.key_prefix, NEW.claimed, NEW.address,
                    NEW.request_id, NEW.namespace, NEW.target, NEW.before::text, NEW.after::text, NEW.signature) THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' AND OLD.position <= (SELECT e.position FROM audit_ends e WHERE e.name = 'start') THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: its rows must not be changed or removed'
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE OR REPLACE FUNCTION minion_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % must not be emptied', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- Deletes the rows up to a place in the chain, and leaves the signed checkpoint that replaces them. Returns their number.
CREATE OR REPLACE FUNCTION minion_prune_audit(through bigint, chained bytea, proof bytea) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    pruned bigint;
BEGIN
    INSERT INTO audit_ends (name, position, hash, signature) VALUES ('start', through, chained, proof)
        ON CONFLICT (name) DO UPDATE SET position = EXCLUDED.position, hash = EXCLUDED.hash,
            signature = EXCLUDED.signature, at = now()
            WHERE audit_ends.position < EXCLUDED.position;
    DELETE FROM audit_log WHERE position <= through;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$;
REVOKE ALL ON FUNCTION minion_prune_audit(bigint, bytea, bytea) FROM PUBLIC;
