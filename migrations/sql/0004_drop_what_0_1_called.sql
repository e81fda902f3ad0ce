DROP FUNCTION IF EXISTS minion_claim(uuid, integer, uuid);
DROP FUNCTION IF EXISTS minion_suspend(uuid, integer, jsonb, jsonb);
