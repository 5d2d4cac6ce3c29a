"""The studies of hyperparameter searches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "study_entries",
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("study", "number", name="pk_study_entries"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("study_entries")
