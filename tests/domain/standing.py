"""What stands before something goes wrong, as digests: lake, lifecycle database, MLflow's registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import metadata

_PROMISES = ("manifest.json", "pointer.json")


@dataclass(frozen=True)
class Standing:
    """Everything that a reader sees, and no more than its digests.

    :param files: digest by path; temporary files nobody sees
    :param rows: digest of each table of the lifecycle database
    :param versions: MLflow's registered versions and where their aliases point
    """

    files: dict[str, str]
    rows: dict[str, str] = field(default_factory=dict)
    versions: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, lake: Lake, database: Database | None = None, tracking_uri: str | None = None) -> Standing:
        """What stands now."""
        return cls(
            files={path: sha256(lake.read_bytes(path)) for path in _paths(lake)},
            rows=_rows(database) if database is not None else {},
            versions=_versions(tracking_uri) if tracking_uri is not None else [],
        )

    def check(self, now: Standing, *finished: str) -> None:
        """All of it is as it was; what came beside it promises nothing: no manifest, no pointer, no row.

        :param finished: folders of the lake in which stages before the one that failed left their results
        """
        changed = {path for path, digest in self.files.items() if now.files.get(path) != digest}
        assert not changed, f"changed or gone: {sorted(changed)}"
        new = {path for path in now.files.keys() - self.files.keys() if path.endswith(_PROMISES)}
        unfinished = {path for path in new if path.split("/")[0] not in finished}
        assert not unfinished, f"there should be no {sorted(unfinished)}"
        assert (now.rows, now.versions) == (self.rows, self.versions)


def _paths(lake: Lake) -> list[str]:
    return [path for top in lake.filesystem.ls(lake.root, detail=False) for path in lake.list(Path(top).name)]


def _rows(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return {
            table.name: sha256(repr(sorted(map(repr, connection.execute(table.select())))).encode())
            for table in metadata.sorted_tables
        }


def _versions(tracking_uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    versions = [
        (found.name, found.version, sorted(found.tags.items())) for found in client.search_model_versions()
    ]
    # A name without a version is nothing yet.
    models = [model for model in client.search_registered_models() if model.aliases]
    return sorted(versions) + sorted((model.name, sorted(model.aliases.items())) for model in models)
