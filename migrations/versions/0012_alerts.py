"""Alerts, silences, their receivers, and what is remembered of queues. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    """Create the tables. Webhooks of release 0.2 get messages about tasks only."""
    op.execute("ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS events text[] NOT NULL DEFAULT '{tasks}'")
    op.create_check_constraint(
        "events", "webhooks", "events <> '{}' AND events <@ ARRAY['tasks', 'alerts'] AND cardinality(events) <= 2"
    )
    keep_alerts()
    keep_receivers()
    op.create_table(
        "watched_hours",
        sa.Column("bucket", MOMENT, nullable=False),
        sa.Column("namespace", sa.Text(), server_default="", nullable=False),
        sa.Column("capability", sa.Text(), server_default="", nullable=False),
        sa.Column("samples", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("seconds", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("bucket", "namespace", "capability", name="watched_hours_pkey"),
    )


def keep_alerts() -> None:
    """Create the tables of alerts and silences."""
    op.create_table(
        "alerts",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=True),
        sa.Column("capability", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="firing", nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("value", "usual", "low", "high")),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("facts", postgresql.JSONB(none_as_null=True), server_default=sa.text("'{}'::jsonb"), nullable=False),
        *(
            sa.Column(name, MOMENT, server_default=NOW, nullable=False)
            for name in ("first_seen", "last_seen", "changed_at")
        ),
        sa.Column("resolved_at", MOMENT, nullable=True),
        sa.Column("acknowledged_at", MOMENT, nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="alerts_pkey"),
        sa.CheckConstraint("state IN ('firing', 'acknowledged', 'silenced', 'resolved')", name="state"),
        sa.CheckConstraint("(state = 'resolved') = (resolved_at IS NOT NULL)", name="resolved"),
    )
    op.create_index("alerts_namespace_idx", "alerts", ["namespace", "id"])
    op.create_index("alerts_changed_at_idx", "alerts", ["changed_at"])
    op.create_index(
        "alerts_open_idx",
        "alerts",
        ["rule", sa.text("COALESCE(namespace, '')"), "subject"],
        unique=True,
        postgresql_where=sa.text("state <> 'resolved'"),
    )
    op.create_table(
        "alert_silences",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=True)
            for name in ("namespace", "rule", "agent", "capability", "subject")
        ),
        sa.Column("until_at", MOMENT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="alert_silences_pkey"),
        sa.CheckConstraint("num_nonnulls(rule, agent, capability, subject) > 0", name="matcher"),
    )


def keep_receivers() -> None:
    """Create the tables of receivers, and of what they were notified of."""
    op.create_table(
        "alert_receivers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.UUID(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("used_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("name", name="alert_receivers_pkey"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name="alert_receivers_webhook_id_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("alert_receivers_webhook_id_idx", "alert_receivers", ["webhook_id"])
    op.create_table(
        "alert_notices",
        sa.Column("alert_id", sa.UUID(), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("alert_id", "receiver", name="alert_notices_pkey"),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name="alert_notices_alert_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["receiver"], ["alert_receivers.name"], name="alert_notices_receiver_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("alert_notices_receiver_idx", "alert_notices", ["receiver", "at"])


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
