"""Records of train, evaluate and register: a training, its gates, its version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime

from ml_lifecycle.records.data import ColumnSpec
from ml_lifecycle.records.record import Record, Run

TaskType = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True)
class Training(Record):
    """A trained model: what the pod left behind whose attempt counts, published by the train stage.

    :param digest: of the inputs (training set, code, parameters): names the result
    :param attempt: number of the pod that made it
    :param model_digest: SHA-256 of the ONNX file
    :param classes: class labels in output order, empty for regression
    :param reference_path: the original estimator's answers to the holdout and to probe rows (Parquet)
    :param profile_path: the reference profile (JSON)
    :param metrics_path: the metrics, and why others could not be computed (JSON)
    :param resources: wall and CPU seconds and peak memory in bytes, as measured in the pod
    :param image: what the pod ran in, by digest; empty where there are no images
    :param reproducible: whether the same job ends in the same model, however often it is interrupted
    :param not_reproducible_because: why it does not, as ``train()`` or the frameworks said
    :param search_path: folder of the search that found the parameters; empty without one
    """

    schema: ClassVar[str] = "training/2"
    run: Run
    digest: str
    path: str
    attempt: int
    training_set_path: str
    snapshot_digest: str
    code_digest: str
    spec_digest: str
    train_end: AwareDatetime
    model_path: str
    model_digest: str
    columns: tuple[ColumnSpec, ...]
    classes: tuple[str, ...]
    reference_path: str
    profile_path: str
    metrics_path: str
    parameters: dict[str, Any]
    metrics: dict[str, float]
    packages: dict[str, str]
    resources: dict[str, float]
    mlflow_run_id: str | None = None
    image: str = ""
    reproducible: bool = True
    not_reproducible_because: tuple[str, ...] = ()
    search_path: str = ""


@dataclass(frozen=True)
class GateResult:
    """One gate: what was measured, the threshold and the verdict. An uncomputable gate has not passed."""

    gate: str
    passed: bool
    threshold: str
    measured: float | None = None
    champion: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Evaluation(Record):
    """A model judged on the holdout, on the ONNX file that will be served.

    :param champion_version: registry version compared with on the same rows; None without a champion
    :param golden_path: a few rows with the answers expected of a server (JSON, a V2 request and response)
    :param for_record: its data end before the champion's: whatever its gates say, it is no candidate
    """

    schema: ClassVar[str] = "evaluation/1"
    run: Run
    digest: str
    path: str
    training_path: str
    model_digest: str
    passed: bool
    gates: tuple[GateResult, ...]
    metrics: dict[str, float]
    champion_metrics: dict[str, float]
    champion_version: str | None
    champion_digest: str | None
    golden_path: str
    report_path: str
    holdout_rows: int
    for_record: bool = False


@dataclass(frozen=True)
class ModelVersion(Record):
    """A registered version.

    :param role: ``candidate`` (passed its gates and its data are not older than the champion's) or ``record``
    :param requested_by: who started the training; may not approve it
    """

    schema: ClassVar[str] = "model_version/1"
    run: Run
    name: str
    version: str
    role: Literal["candidate", "record"]
    model_digest: str
    training_path: str
    evaluation_path: str
    mlflow_run_id: str
    requested_by: str | None
