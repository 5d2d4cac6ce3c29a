"""Alembic's entry: migrates over the connection of :meth:`Database.migrate`, inside its transaction."""

from __future__ import annotations

from alembic import context

from ml_lifecycle.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
