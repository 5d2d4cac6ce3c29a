"""Ledger, releases, approval requests, intervals, windows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "ledger",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("key", sa.String(1024)),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_ledger"),
        sa.UniqueConstraint("kind", "subject", "key", name="uq_ledger_kind"),
    )
    op.create_index("ix_ledger_model", "ledger", ["model"])
    op.create_table(
        "releases",
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("evidence_digest", sa.String(64)),
        sa.Column("strategy", sa.String(32), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.Column("previous_revision", sa.Integer()),
        sa.Column("restores", sa.Integer()),
        sa.Column("replaces", sa.Integer()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.String(255)),
        sa.Column("request", sa.String(512)),
        sa.Column("route", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "endpoint", "revision", name="pk_releases"),
        sa.UniqueConstraint("environment", "endpoint", "request", name="uq_releases_environment"),
    )
    op.create_table(
        "approval_requests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("evidence_digest", sa.String(64), nullable=False),
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("task_id", sa.String(250), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("assigned", sa.Text(), nullable=False),
        sa.Column("opened_at", _MOMENT, nullable=False),
        sa.Column("closed_at", _MOMENT),
        sa.Column("outcome", sa.String(16)),
        sa.Column("superseded_by", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_approval_requests"),
        sa.UniqueConstraint("dag_id", "run_id", "task_id", "attempt", name="uq_approval_requests_dag_id"),
    )
    op.create_index("ix_approval_requests_evidence_digest", "approval_requests", ["evidence_digest"])
    op.create_index("ix_approval_requests_open", "approval_requests", ["model", "outcome"])
    op.create_table(
        "intervals",
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("start", _MOMENT, nullable=False),
        sa.Column("end", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dag_id", "run_id", name="pk_intervals"),
    )
    op.create_table(
        "windows",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("start", _MOMENT, nullable=False),
        sa.Column("end", _MOMENT, nullable=False),
        sa.Column("recorded_at", _MOMENT, nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "endpoint", "start", "end", name="pk_windows"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("windows", "intervals", "approval_requests", "releases", "ledger"):
        op.drop_table(table)
