"""From a release back to what it was made of: version, evaluation, training, feature registry."""

from __future__ import annotations

from dataclasses import dataclass

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, sha256
from ml_lifecycle.delivery.release_history import ReleaseHistory
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Evaluation, Evidence, ModelVersion, Release, Training, TrainingSet, from_json
from ml_lifecycle.spec.model import ModelSpec


@dataclass(frozen=True)
class RegistryFile:
    """An export of the feature registry in the source lake; servers resolve entity keys with it."""

    path: str
    digest: str


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
    release = ReleaseHistory(database).champion(spec.endpoint)
    if release is None:
        return None
    return Champion(
        release, read_training(lake, read_version(lake, spec.name, release.version).training_path)
    )


def read_version(lake: Lake, model: str, version: str) -> ModelVersion:
    """The record of a registered version.

    :raises LakeFileMissingError: there is no such version. Retry: no.
    """
    path = f"versions/{model}/{version}/manifest.json"
    try:
        return from_json(ModelVersion, lake.read_json(path))
    except LakeFileMissingError as error:
        raise LakeFileMissingError(f"{model} has no version {version}: {error}") from error


def read_training(lake: Lake, path: str) -> Training:
    """The record of a training, by its folder."""
    return from_json(Training, lake.read_json(f"{path}/manifest.json"))


def read_evaluation(lake: Lake, path: str) -> Evaluation:
    """The record of an evaluation, by its folder."""
    return from_json(Evaluation, lake.read_json(f"{path}/manifest.json"))


def trained_as(
    model_digest: str, spec: ModelSpec, lake: Lake, database: Database, environment: str
) -> Training | None:
    """The training behind a model that an environment has served; None if it never did."""
    for release in ReleaseHistory(database).history(environment, spec.endpoint):
        if release.model_digest == model_digest:
            return read_training(lake, read_version(lake, spec.name, release.version).training_path)
    return None


def read_registry(lake: Lake, evidence: Evidence) -> RegistryFile:
    """The feature registry that belongs to the evidence's training set."""
    training = read_training(lake, evidence.training_path)
    training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
    return RegistryFile(training_set.registry_path, sha256(lake.read_bytes(training_set.registry_path)))
