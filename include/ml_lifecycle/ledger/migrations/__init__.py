"""Alembic migrations, run by :meth:`ml_lifecycle.ledger.database.Database.migrate`."""
