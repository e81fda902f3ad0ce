CREATE TRIGGER mcp_server_versions_immutable BEFORE UPDATE ON mcp_server_versions
    FOR EACH ROW EXECUTE FUNCTION minion_refuse_change();
