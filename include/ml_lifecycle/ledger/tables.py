"""The lifecycle database's tables. Times are UTC; JSON is kept as canonical text, to make digests of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. SQLite keeps no offset, so UTC goes in and comes out; a naive time is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware → UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no offset: times in the database are UTC")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """UTC → aware."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


_NAMING = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
}

metadata = MetaData(naming_convention=_NAMING)

# What an entry is about (an evidence digest, a release) is its subject; ``key`` is given where the same
# thing must not be written twice. NULL keys never collide.
ledger = Table(
    "ledger",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("model", String(64), nullable=False, index=True),
    Column("subject", String(255), nullable=False),
    Column("key", String(1024)),
    Column("payload", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    UniqueConstraint("kind", "subject", "key"),
)

releases = Table(
    "releases",
    metadata,
    Column("environment", String(64), primary_key=True),
    Column("endpoint", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("model", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", String(64), nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("evidence_digest", String(64)),
    Column("strategy", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("previous_revision", Integer),
    Column("restores", Integer),
    Column("replaces", Integer),
    Column("reason", Text, nullable=False),
    Column("requested_by", String(255)),
    Column("request", String(512)),
    Column("route", Text, nullable=False),
    UniqueConstraint("environment", "endpoint", "request"),
)

approval_requests = Table(
    "approval_requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("evidence_digest", String(64), nullable=False, index=True),
    Column("dag_id", String(250), nullable=False),
    Column("run_id", String(250), nullable=False),
    Column("task_id", String(250), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("assigned", Text, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime),
    Column("closed_at", UtcDateTime),
    Column("outcome", String(16)),
    Column("superseded_by", String(64)),
    UniqueConstraint("dag_id", "run_id", "task_id", "attempt"),
)
Index("ix_approval_requests_open", approval_requests.c.model, approval_requests.c.outcome)

intervals = Table(
    "intervals",
    metadata,
    Column("dag_id", String(250), primary_key=True),
    Column("run_id", String(250), primary_key=True),
    Column("start", UtcDateTime, nullable=False),
    Column("end", UtcDateTime, nullable=False),
)

# A pod's go at a training. Numbers rise by job; of one owner only the newest attempt's result counts.
attempts = Table(
    "attempts",
    metadata,
    Column("job", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("model", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("try_number", Integer, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("memory_factor", Float, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
    Column("outcome", String(32)),
    Column("message", Text),
    Column("usage", Text),
)

# Optuna's journal of each search, entry by entry.
study_entries = Table(
    "study_entries",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("endpoint", String(64), primary_key=True),
    Column("start", UtcDateTime, primary_key=True),
    Column("end", UtcDateTime, primary_key=True),
    Column("recorded_at", UtcDateTime, nullable=False),
    Column("payload", Text, nullable=False),
)
