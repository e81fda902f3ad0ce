"""Events, budgets, replays from a step, limits of models. Runs before the new release starts, like 0002."""

from __future__ import annotations

from alembic import op

from migrations.sql import run_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    connection = op.get_bind()
    connection.exec_driver_sql("SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)")
    run_file(connection, "0003_events.sql")
    run_file(connection, "0003_budgets.sql")
    run_file(connection, "0003_conversations.sql")
    run_file(connection, "0003_limits.sql")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release.")
