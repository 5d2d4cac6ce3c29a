"""The attempts at each training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; trainings of before have no attempts in it."""
    op.create_table(
        "attempts",
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("try_number", sa.Integer, nullable=False),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("memory_factor", sa.Float, nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(32)),
        sa.Column("message", sa.Text),
        sa.Column("usage", sa.Text),
        sa.PrimaryKeyConstraint("job", "number", name="pk_attempts"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("attempts")
