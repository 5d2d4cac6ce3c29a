"""The moment until which an answer to an approval request counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; requests of before have no deadline here, Airflow alone keeps theirs."""
    op.add_column("approval_requests", sa.Column("deadline", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("approval_requests") as table:
        table.drop_column("deadline")
