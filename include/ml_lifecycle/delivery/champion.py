"""The champion and everything known about it, from its release back to its training."""

from __future__ import annotations

from dataclasses import dataclass

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Evaluation, ModelVersion, Release, Training, from_json
from ml_lifecycle.spec.model import ModelSpec


@dataclass(frozen=True)
class Champion:
    """The version in production."""

    release: Release
    training: Training

    @property
    def version(self) -> str:
        """Its registry version."""
        return self.release.version


def find_champion(spec: ModelSpec, lake: Lake, database: Database) -> Champion | None:
    """The version in production; None before the first release, which is a state of its own.

    :raises LakeFileMissingError: the lake lost the version's records. Retry: no.
    """
    release = Releases(database).champion(spec.endpoint)
    if release is None:
        return None
    return Champion(release, read_training(lake, read_version(lake, spec.name, release.version).training_path))


def read_version(lake: Lake, model: str, version: str) -> ModelVersion:
    """The record of a registered version.

    :raises LakeFileMissingError: there is no such version. Retry: no.
    """
    return from_json(ModelVersion, lake.read_json(f"versions/{model}/{version}/manifest.json"))


def read_training(lake: Lake, path: str) -> Training:
    """The record of a training, by its folder."""
    return from_json(Training, lake.read_json(f"{path}/manifest.json"))


def read_evaluation(lake: Lake, path: str) -> Evaluation:
    """The record of an evaluation, by its folder."""
    return from_json(Evaluation, lake.read_json(f"{path}/manifest.json"))
