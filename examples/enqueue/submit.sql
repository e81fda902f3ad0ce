BEGIN;
CREATE TEMPORARY TABLE orders (id bigint, note text) ON COMMIT DROP;
INSERT INTO orders VALUES (4711, 'Please refund the second payment');
SELECT minion_submit('triage', jsonb_build_object('text', note), idempotency_key => 'refund-of-' || id, priority => 5)
    FROM orders;
COMMIT;
