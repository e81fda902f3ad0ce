"""Files, and the tasks and conversations that refer to them. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.sql import run_file

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None
PHASE = "before"

FILE = ["files.namespace", "files.id"]


def upgrade() -> None:
    """Create the tables and the triggers that fill them."""
    op.create_table(
        "files",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("pages", sa.Integer(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("uploaded_by", sa.Text(), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "id", name="files_pkey"),
    )
    op.create_index("files_number_idx", "files", ["namespace", "number"])
    op.create_index("files_uploaded_at_idx", "files", ["uploaded_at"])
    op.create_table(
        "task_files",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "namespace", "file_id", name="task_files_pkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="task_files_task_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["namespace", "file_id"], FILE, name="task_files_file_fkey"),
    )
    op.create_index("task_files_file_idx", "task_files", ["namespace", "file_id"])
    op.create_table(
        "conversation_files",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "conversation_id", "file_id", name="conversation_files_pkey"),
        sa.ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            name="conversation_files_conversation_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["namespace", "file_id"], FILE, name="conversation_files_file_fkey"),
    )
    op.create_index("conversation_files_file_idx", "conversation_files", ["namespace", "file_id"])
    run_file(op.get_bind(), "0018_files.sql")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
