"""The snapshots of a model that are in the lake, and what needs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, safe_name
from ml_lifecycle.delivery.lineage import read_training, read_version
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import Snapshot, from_json
from ml_lifecycle.stages.ingest import Reading
from ml_lifecycle.stages.validate import Validated


class SnapshotUnknownError(LifecycleError):
    """The model has no such snapshot, or several that the text stands for. Retry: no."""


@dataclass(frozen=True)
class Kept:
    """A snapshot that is there.

    :param as_of: the newest moment that a run read it for
    :param versions: registered versions that were trained on it
    :param validated: whether it passed its validation
    """

    snapshot: Snapshot
    as_of: datetime
    versions: tuple[str, ...]
    validated: bool

    @property
    def rows(self) -> int:
        """In all tables."""
        return sum(table.rows for table in self.snapshot.tables.values())


def history(lake: Lake, model: str) -> list[Kept]:
    """The model's snapshots, the newest first."""
    newest: dict[str, datetime] = {}
    for path in lake.list(f"readings/{safe_name(model)}"):
        reading = from_json(Reading, lake.read_json(path))
        newest[reading.snapshot_path] = max(reading.as_of, newest.get(reading.snapshot_path, reading.as_of))
    trained, validated = _trained_on(lake, model), validations_of(lake, model)
    found = []
    for snapshot in all_snapshots(lake, model):
        as_of = newest.get(snapshot.path, snapshot.run.as_of)
        versions = tuple(trained.get(snapshot.digest, ()))
        found.append(Kept(snapshot, as_of, versions, snapshot.digest in validated))
    return sorted(found, key=lambda kept: (kept.as_of, kept.snapshot.digest), reverse=True)


def all_snapshots(lake: Lake, model: str) -> list[Snapshot]:
    """Those whose manifest is there, in no order."""
    found = []
    for path in lake.list(f"snapshots/{safe_name(model)}"):
        try:
            found.append(from_json(Snapshot, lake.read_json(path)))
        except LakeFileMissingError:
            continue  # it went meanwhile
    return found


def find(lake: Lake, model: str, text: str) -> Snapshot:
    """The snapshot whose digest begins with ``text``.

    :raises SnapshotUnknownError: there is none, or more than one. Retry: no.
    """
    digests = {snapshot.digest: snapshot for snapshot in all_snapshots(lake, model)}
    matching = [digest for digest in digests if digest.startswith(text)]
    if len(matching) != 1:
        known = ", ".join(sorted(digest[:12] for digest in digests)) or "none"
        which = f"{len(matching) or 'no'} snapshots that begin with {text!r}"
        raise SnapshotUnknownError(f"{model} has {which}; there are: {known}")
    return digests[matching[0]]


def validations_of(lake: Lake, model: str) -> dict[str, list[str]]:
    """Digest of a snapshot that passed its validation → the entries that say so."""
    found: dict[str, list[str]] = {}
    for path in lake.list(f"validated/{safe_name(model)}"):
        found.setdefault(from_json(Validated, lake.read_json(path)).snapshot.digest, []).append(path)
    return found


def _trained_on(lake: Lake, model: str) -> dict[str, list[str]]:
    """Digest of a snapshot → registered versions."""
    found: dict[str, list[str]] = {}
    for version in sorted(lake.folders(f"versions/{safe_name(model)}"), key=lambda name: (len(name), name)):
        training = read_training(lake, read_version(lake, model, version).training_path)
        found.setdefault(training.snapshot_digest, []).append(version)
    return found
