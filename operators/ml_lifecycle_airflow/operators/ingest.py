"""Ingest: a snapshot of every source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_lifecycle_airflow.operators.base import Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Snapshot


class IngestOperator(StageOperator):
    """Make the snapshot of the run's data; the first task of a run, it settles ``as_of`` and the interval."""

    def stage(self, resources: Resources, context: Context) -> Snapshot:
        """Return the snapshot."""
        from ml_lifecycle.stages.ingest import ingest
        from ml_lifecycle_airflow.hooks.lake import source_options
        from ml_lifecycle_airflow.hooks.origins import source_origins

        spec = resources.spec
        run = resources.run(context)
        snapshot = ingest(
            spec,
            resources.lake(),
            run,
            contracts=resources.model.contracts,
            storage_options=source_options(spec),
            origins=source_origins(spec),
        )
        for name, table in snapshot.tables.items():
            self.log.info("%s: %d rows in %d files", name, table.rows, len(table.files))
        return snapshot
