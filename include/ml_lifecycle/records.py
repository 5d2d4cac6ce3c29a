"""What stages hand to each other: small frozen dataclasses that travel as plain JSON.

Airflow refuses to read unknown classes back from XCom, so operators return :func:`to_json`'s dicts, each
with a ``schema`` key (``"snapshot/1"``). Data stays in the lake; a record holds paths and digests only.

All paths are relative to the lake they were written to. All digests are lower-case SHA-256 hex. All
times are timezone-aware UTC; intervals are half open, ``start <= t < end``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from ml_lifecycle.errors import LifecycleError

TaskType = Literal["binary", "multiclass", "regression"]
Severity = Literal["informational", "warning", "critical"]


class RecordError(LifecycleError):
    """A dict is not the record it should be: another schema or a missing key. Retry: no."""


def _utc(moment: datetime, name: str) -> datetime:
    """The same moment in UTC, so that equal moments have equal digests."""
    if moment.tzinfo is None:
        raise ValueError(f"{name} ({moment.isoformat()}) has no time zone")
    return moment.astimezone(UTC)


@dataclass(frozen=True)
class Interval:
    """A half-open UTC interval: ``start <= t < end``."""

    start: AwareDatetime
    end: AwareDatetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _utc(self.start, "start"))
        object.__setattr__(self, "end", _utc(self.end, "end"))
        if self.start > self.end:
            raise ValueError(
                f"interval starts ({self.start.isoformat()}) after it ends ({self.end.isoformat()})"
            )

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Record:
    """Base of the records: ``schema`` names the class and its version."""

    # Holds for the plain dataclasses within as well.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    schema: ClassVar[str]


@dataclass(frozen=True)
class Run(Record):
    """Which run this is and the time it stands for; every later record carries it unchanged.

    :param model: the model's name
    :param run_id: the orchestrator's id of the run, for lineage
    :param as_of: nothing known after this moment may be used
    :param interval: the span of new data this run is about
    :param requested_by: the user who started it; None for schedules and triggers
    """

    schema: ClassVar[str] = "run/1"
    model: str
    run_id: str
    as_of: AwareDatetime
    interval: Interval
    requested_by: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_of", _utc(self.as_of, "as_of"))


@dataclass(frozen=True)
class SnapshotFile:
    """One immutable Parquet file of a snapshot.

    :param partition: the partition's label, e.g. ``2013-04`` (``all`` for an unpartitioned table)
    :param digest: of the rows' content, not of the file's bytes
    :param min_time: earliest event time within, None for tables without one
    :param max_time: latest event time within
    """

    partition: str
    path: str
    digest: str
    rows: int
    min_time: AwareDatetime | None = None
    max_time: AwareDatetime | None = None


@dataclass(frozen=True)
class SnapshotTable:
    """The files of one source within a snapshot, and their columns as ``name → Arrow type``."""

    files: tuple[SnapshotFile, ...]
    columns: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Snapshot(Record):
    """One version of a model's data: every source up to ``run.as_of``. ``digest`` is the data version."""

    schema: ClassVar[str] = "snapshot/1"
    run: Run
    digest: str
    path: str
    tables: dict[str, SnapshotTable]


@dataclass(frozen=True)
class RuleResult:
    """One contract rule, measured on one source.

    :param rule: e.g. ``not_null``, ``range``, ``allowed_values``, ``unique``, ``freshness``
    :param observed: the measured number or text; None if it could not be computed
    :param error: why it could not be computed; such a rule has not passed
    """

    source: str
    rule: str
    field: str | None
    passed: bool
    halts: bool
    expected: str
    observed: float | str | None = None
    unexpected_rows: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Validation(Record):
    """The verdict on a snapshot. The full report is a file; failed rules travel here."""

    schema: ClassVar[str] = "validation/1"
    run: Run
    digest: str
    path: str
    snapshot_digest: str
    snapshot_path: str
    rules: int
    failed: tuple[RuleResult, ...]
    report_path: str

    @property
    def page_path(self) -> str:
        """The report as a page."""
        return f"{self.report_path.removesuffix('.json')}.html"

    @property
    def halted(self) -> bool:
        """Whether a rule that halts was broken."""
        return any(result.halts for result in self.failed)


@dataclass(frozen=True)
class InputRules:
    """What a contract says of each single value of a feature that holds one of its fields unchanged.

    :param contract: the field, as ``contract.field``
    :param type: the field's; a whole number may come in a column of floats
    :param nullable: false where no value may be missing
    :param pattern: regular expression that the whole of each text must match
    """

    contract: str
    type: Literal["string", "integer", "float", "boolean"]
    nullable: bool = True
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[str | int | float | bool, ...] | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class ColumnSpec:
    """A named, typed model input. Nullable floats are NaN; a null string is the empty string.

    :param personal: a contract marks it ``pii``: its values stand in no report
    :param rules: what a contract says of its values, proved on the training set; None where it says nothing.
        Then it is not written either, so that routes and digests are what they were before there were such
    """

    name: str
    type: Literal["float", "int", "string", "bool"]
    nullable: bool = False
    personal: bool = False
    rules: Annotated[InputRules | None, Field(exclude_if=lambda rules: rules is None)] = None


@dataclass(frozen=True)
class TrainingSet(Record):
    """Point-in-time correct rows, split in training rows and the later holdout.

    Both files hold the feature columns of ``columns``, then ``label``, ``event_timestamp`` and the
    entity keys.

    :param label_column: the label's name in the files
    :param personal: columns of the files, keys and label included, whose values stand in no report
    :param train_end: no training row's event time is at or after it
    :param holdout: the holdout's event times; it starts an embargo (the label delay) after ``train_end``
    """

    schema: ClassVar[str] = "training_set/1"
    run: Run
    digest: str
    path: str
    snapshot_digest: str
    code_digest: str
    train_path: str
    holdout_path: str
    train_rows: int
    holdout_rows: int
    train_end: AwareDatetime
    holdout: Interval
    columns: tuple[ColumnSpec, ...]
    label_column: str
    entity_keys: tuple[str, ...]
    personal: tuple[str, ...] = ()

    @property
    def registry_path(self) -> str:
        """The feature registry that a server of the model resolves entity keys with."""
        return f"{self.path}/registry.pb"

    @property
    def profile_path(self) -> str:
        """The training rows' profile, made as they were written.

        Without one (sets of older versions, those that a search makes for its trials), or with one of
        other segments, each training makes its own.
        """
        return f"{self.path}/profile.json"


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


@dataclass(frozen=True)
class Evidence(Record):
    """Everything an approver judges. ``digest`` is over all other fields but ``path``.

    :param train_end: where the training rows end
    """

    schema: ClassVar[str] = "evidence/1"
    model: str
    version: str
    digest: str
    path: str
    model_digest: str
    evaluation_digest: str
    snapshot_digest: str
    code_digest: str
    train_end: AwareDatetime
    champion_version: str | None
    champion_digest: str | None
    evaluation_path: str
    training_path: str
    requested_by: str | None

    @property
    def report_path(self) -> str:
        """The evaluation's report."""
        return f"{self.evaluation_path}/report.html"


@dataclass(frozen=True)
class Approval(Record):
    """A human's yes, as it stands in the ledger."""

    schema: ClassVar[str] = "approval/1"
    model: str
    version: str
    evidence_digest: str
    approved_by: str
    approved_at: AwareDatetime
    ledger_seq: int
    reason: str = ""


@dataclass(frozen=True)
class Release(Record):
    """One change of what an endpoint serves.

    :param environment: the environment's name in the spec, e.g. ``production``
    :param kind: ``deploy`` of a new version, ``restore`` of an earlier release's, or ``withdraw``: nothing is
        served, because the first release ever failed
    :param state: ``superseded`` once the release has gone on to its next step, which is a revision of its own
    :param previous_revision: what was live when it began
    :param restores: the ``deploy`` release whose version a ``restore`` serves again
    :param replaces: the release that a ``restore`` or ``withdraw`` takes out of service
    :param requested_by: who asked for it; None for schedules and triggers
    :param request: which wish of people to go back it fulfils; None for deployments and automatic rollbacks
    """

    schema: ClassVar[str] = "release/1"
    model: str
    environment: str
    endpoint: str
    revision: int
    state: Literal["intent", "applied", "confirmed", "rolled_back", "superseded"]
    version: str
    model_digest: str
    evidence_digest: str | None
    strategy: str
    created_at: AwareDatetime
    previous_revision: int | None = None
    reason: str = ""
    kind: Literal["deploy", "restore", "withdraw"] = "deploy"
    restores: int | None = None
    replaces: int | None = None
    requested_by: str | None = None
    request: str | None = None


@dataclass(frozen=True)
class Finding:
    """One monitored condition, measured. ``error`` says why it could not be; that is a finding too.

    :param metric: e.g. ``psi``, ``missing_share``, ``skill``, ``calibration_error``, ``latency_p99_ms``
    :param column: the feature or output it is about; None for the window as a whole
    :param severity: None while below every threshold
    :param low: with ``high``, between which values the metric is in 95 of 100 cases; None where nobody knows
    :param segment: ``column=value`` of the rows it is about; None for all
    :param p_value: of the test that belongs to the metric; it decides nothing
    :param p_adjusted: the same, corrected for the number of tests of the window
    """

    metric: str
    column: str | None
    value: float | None
    n: int
    threshold: str | None = None
    severity: Severity | None = None
    action: Literal["notify", "retrain"] | None = None
    error: str | None = None
    low: float | None = None
    high: float | None = None
    segment: str | None = None
    p_value: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Monitoring(Record):
    """One window's findings. ``alerts`` are those that crossed a threshold."""

    schema: ClassVar[str] = "monitoring/1"
    run: Run
    digest: str
    path: str
    endpoint: str
    window: Interval
    predictions: int
    labelled: int
    versions: tuple[str, ...]
    alerts: tuple[Finding, ...]
    metrics: dict[str, float]
    report_path: str
    html_path: str | None
    retrain: bool


@dataclass(frozen=True)
class RowSlice:
    """Some of the rows that there are to score: ``rows`` from ``first`` on.

    So they are counted among the ``of`` rows whose moment lies in ``window``, ordered by moment and keys.
    """

    window: Interval
    first: int
    rows: int
    of: int


@dataclass(frozen=True)
class ScoringPlan(Record):
    """What is scored, and by which version, for several tasks that share the slices.

    :param digest: of what the plan follows from; names it
    :param snapshot_path: of the snapshot's manifest
    :param training_path: folder of the training whose model scores
    :param code_digest: of the model folder that the slices were planned with
    """

    schema: ClassVar[str] = "scoring_plan/1"
    run: Run
    digest: str
    path: str
    snapshot_path: str
    snapshot_digest: str
    training_path: str
    version: str
    code_digest: str
    slices: tuple[RowSlice, ...]


@dataclass(frozen=True)
class ScoredFile:
    """One partition's answers: a Parquet file.

    :param partition: what it is of the input: a file of the lake, or a span of time
    :param digest: of the file's bytes
    """

    partition: str
    path: str
    digest: str
    rows: int


@dataclass(frozen=True)
class ScoredPartition(Record):
    """A finished partition, by the digest of all that its answers follow from.

    :param columns: of the file, as ``name → Arrow type``
    """

    schema: ClassVar[str] = "scored_partition/1"
    file: ScoredFile
    columns: dict[str, str]


@dataclass(frozen=True)
class ScoredShare(Record):
    """What one of several tasks that share a scoring has seen to.

    :param plan: the plan's digest
    :param share: its number, from 0
    """

    schema: ClassVar[str] = "scored_share/1"
    run: Run
    plan: str
    share: int
    partitions: int
    rows: int


@dataclass(frozen=True)
class Scoring(Record):
    """Rows scored with a version's ONNX file, written to the lake as Parquet.

    :param output_path: the folder with the files
    :param files: one a partition, in the partitions' order
    :param columns: of each file, as ``name → Arrow type``; none if there was no partition
    """

    schema: ClassVar[str] = "scoring/2"
    run: Run
    digest: str
    path: str
    output_path: str
    rows: int
    version: str
    model_digest: str
    files: tuple[ScoredFile, ...]
    columns: dict[str, str]


R = TypeVar("R", bound=Record)


_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {}


def _adapter(cls: type[Record]) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def to_json(record: Record) -> dict[str, Any]:
    """The record as a JSON-ready dict whose ``schema`` key names its class and version."""
    dumped: dict[str, Any] = _adapter(type(record)).dump_python(record, mode="json")
    return {"schema": record.schema, **dumped}


def from_json(cls: type[R], data: dict[str, Any]) -> R:
    """Read :func:`to_json`'s dict back.

    :raises RecordError: another schema, an unknown or a missing key, or a value of another type. Retry: no.
    """
    found = data.get("schema") if isinstance(data, dict) else data
    if found != cls.schema:
        raise RecordError(f"expected a record of schema {cls.schema!r}, got {found!r}")
    body = {key: value for key, value in data.items() if key != "schema"}
    try:
        return cast("R", _adapter(cls).validate_python(body))
    except ValidationError as error:
        reasons = (
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise RecordError(f"{cls.schema}: {'; '.join(reasons)}") from error


def canonical_json(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of :func:`canonical_json`: the name of whatever ``value`` are the inputs of."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sortable(moment: datetime) -> str:
    """Text that sorts as moments do and may be a path segment: ``20130401T000000.000000Z``."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
