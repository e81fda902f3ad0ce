"""The database schema's history (alembic), shipped inside the wheel."""
