BEGIN;
CREATE TABLE IF NOT EXISTS orders (number bigint PRIMARY KEY, note text NOT NULL);
INSERT INTO orders VALUES (4711, 'Please refund the second payment');
SELECT minion_submit('triage', jsonb_build_object('text', note), labels => '{"team": "billing"}', priority => 5)
    FROM orders WHERE number = 4711;
COMMIT;
