"""API keys, roles and their permissions, scopes, and actors for the record."""
