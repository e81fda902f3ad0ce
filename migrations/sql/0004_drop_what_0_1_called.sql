DROP FUNCTION minion_claim(uuid, integer, uuid);
DROP FUNCTION minion_suspend(uuid, integer, jsonb, jsonb);
