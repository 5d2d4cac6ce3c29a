"""The typed form of ``model.yaml``: everything about one model that is not code."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from ml_lifecycle.records import Severity, TaskType
from ml_lifecycle.spec.delivery import Delivery
from ml_lifecycle.spec.replay import Replay
from ml_lifecycle.spec.sagemaker import SageMaker
from ml_lifecycle.spec.source import Source
from ml_lifecycle.spec.spark import Engine, Spark
from ml_lifecycle.spec.training import Training
from ml_lifecycle.spec.types import (
    ConnectionId,
    Cron,
    Duration,
    FieldError,
    Name,
    PositiveDuration,
    Strict,
    Tag,
    Text,
    TimeZone,
    format_duration,
)
from ml_lifecycle.spec.watch import segment_names


class Labels(Strict):
    """What is predicted, and when it becomes known.

    :param table: the frame that ``features.py``'s ``tables()`` returns with the labels
    :param column: the label's column in it; a label whose newest revision is null is unknown from then on
    :param keys: entity keys that join a label to its prediction
    :param event_time: column with the moment the prediction is for
    :param known_at: column with the moment the label became known
    :param delay: how late a label may become known; the embargo between training rows and holdout
    """

    table: Text = "labels"
    column: Text
    keys: tuple[Text, ...] = Field(min_length=1)
    event_time: Text = "event_timestamp"
    known_at: Text = "known_at"
    delay: Duration = timedelta(0)


class Features(Strict):
    """The Feast feature service that makes the model's inputs.

    :param service: name of the FeatureService in ``features.py``
    :param lookback: the longest span of events that a feature's value depends on; a materialisation then
        computes from that much history before the oldest rows that count. None computes from all there is.
    :param entities: the frame of ``tables()`` that says what there is to predict: entity keys and
        ``event_timestamp``; only batch scoring needs it
    :param not_found: what a server does with entity keys that the online store has nothing of (Feast's
        NOT_FOUND): ``answer`` from missing values, as Feast does, or ``refuse`` the request (404)
    :param broken_rules: what a server does with a vector that breaks a rule of the contract field that a
        feature's tag names: ``report`` it in a metric and answer, or ``refuse`` the request (400)
    """

    service: Text
    entities: Text = "entities"
    lookback: Duration | None = None
    not_found: Literal["answer", "refuse"] = "answer"
    broken_rules: Literal["report", "refuse"] = "report"


class Gate(Strict):
    """One condition a candidate must meet.

    :param metric: what is measured, e.g. ``roc_auc``, ``log_loss``, ``skill``, ``accuracy``, ``rmse``
    :param max_regression: how much worse than the champion on the same rows is still accepted
    :param max_segment_gap: how much worse than the whole the worst segment of ``segment`` may be
    """

    metric: Name
    min: float | None = None
    max: float | None = None
    max_regression: float | None = Field(default=None, ge=0)
    max_segment_gap: float | None = Field(default=None, ge=0)
    segment: Text | None = None
    min_segment_rows: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _has_a_condition(self) -> Gate:
        if (
            self.min is None
            and self.max is None
            and self.max_regression is None
            and self.max_segment_gap is None
        ):
            raise ValueError("a gate needs min, max, max_regression or max_segment_gap")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise FieldError("min", f"{self.min:g} is above max ({self.max:g})")
        if (self.max_segment_gap is None) != (self.segment is None):
            raise ValueError("max_segment_gap and segment go together")
        return self


class Parity(Strict):
    """How far the ONNX file's answers may be from the original estimator's, on every holdout row.

    For regression ``absolute`` and ``relative_floor`` are in standard deviations of the holdout's labels.

    :param absolute: largest absolute difference of a probability or prediction
    :param relative: largest relative difference where the answer is at least ``relative_floor``
    :param flips: rows whose decision may differ
    """

    absolute: float = Field(default=1e-4, ge=0)
    relative: float = Field(default=1e-2, ge=0)
    relative_floor: float = Field(default=1e-2, gt=0)
    flips: int = Field(default=0, ge=0)


class Evaluation(Strict):
    """The gates. Parity with the original estimator and finite answers are always checked."""

    gates: tuple[Gate, ...] = Field(min_length=1)
    parity: Parity = Parity()
    threshold: float = Field(default=0.5, gt=0, lt=1)


class Approvers(Strict):
    """Who may approve. Whoever started the training or the promotion is taken off the list.

    :param users: Airflow user names
    :param deadline: an unanswered request counts as rejected after this long
    """

    users: tuple[Text, ...] = Field(min_length=1)
    deadline: PositiveDuration = timedelta(days=3)


class Environment(Strict):
    """Airflow connections of one place where models are served; nothing is shared between two.

    :param server: the model servers (host, port, password = token); with ``sagemaker`` an Amazon connection
    :param lake: the lake that routes and models are served from and predictions logged to
    :param online_store: Feast's online store
    :param sagemaker: what Amazon SageMaker runs, instead of model servers that are there already
    """

    server: ConnectionId
    lake: ConnectionId
    online_store: ConnectionId
    sagemaker: SageMaker | None = None


class Alert(Strict):
    """Condition, threshold and severity mapped to an action.

    :param metric: a finding's metric, e.g. ``psi``, ``missing_share``, ``skill``, ``calibration_error``
    :param columns: only these columns; all by default
    :param segments: ``column=value`` of ``monitoring.segments``: only these; by default the window as a whole
    :param min_rows: below this many rows the condition is measured but never alerts
    """

    metric: Name
    above: float | None = None
    below: float | None = None
    columns: tuple[Text, ...] | None = None
    segments: tuple[Text, ...] | None = None
    severity: Severity = "warning"
    action: Literal["notify", "retrain"] = "notify"
    min_rows: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _one_direction(self) -> Alert:
        if (self.above is None) == (self.below is None):
            raise ValueError("an alert needs exactly one of above and below")
        return self


class Scoring(Strict):
    """How ``<model>__score`` scores a batch.

    :param parallel: how many tasks share the rows, each on whichever worker is free; with 1 one task does all
    :param partition_rows: at most so many rows have one file, are joined with their features at once, and are
        lost with a task that is killed
    :param threads: of ONNX Runtime a task
    """

    parallel: int = Field(default=1, ge=1, le=100)
    partition_rows: int = Field(default=250_000, ge=1)
    threads: int = Field(default=1, ge=1, le=256)


class Monitoring(Strict):
    """What is watched, a window at a time.

    :param window: how much traffic a run looks at, up to its end, unless its conf has an ``interval``.
        Quality is measured on what of it is older than ``labels.delay``, and estimated of the rest
    :param segments: column to the values whose rows are also compared apart, as in ``delivery.watch``, each
        with the same segment of the training rows. Time and the profile's size grow with their number
    :param replay: how many served requests of a window are taken through the training path once more
    :param keep_predictions: how long the prediction log is kept, by the day that rows are about; None keeps
        it for ever. Whole days go, with a run of the monitor
    """

    window: PositiveDuration = timedelta(days=1)
    keep_predictions: PositiveDuration | None = None
    segments: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    replay: Replay = Replay()
    alerts: tuple[Alert, ...] = ()

    @model_validator(mode="after")
    def _segments_are_named(self) -> Monitoring:
        names = segment_names(self.segments)
        for number, alert in enumerate(self.alerts):
            if unknown := [name for name in alert.segments or () if name not in names]:
                raise FieldError(
                    "alerts", f"number {number + 1}: {unknown[0]} is not in segments: {', '.join(names)}"
                )
        return self


class Notify(Strict):
    """An Airflow notifier by import path, with its arguments."""

    notifier: Text
    arguments: dict[str, Any] = Field(default_factory=dict)
    min_severity: Severity = "warning"


class Schedules(Strict):
    """Cron expressions of the scheduled DAGs; None leaves a DAG to REST and triggers.

    :param timezone: whose clock the crons go by, an IANA name such as Europe/Berlin. Where clocks change, a
        day's interval is 23 or 25 hours long
    """

    train: Cron | None = None
    monitor: Cron | None = None
    score: Cron | None = None
    timezone: TimeZone = "UTC"


class Connections(Strict):
    """Airflow connections that all of a model's stages share."""

    lake: ConnectionId = "ml_lifecycle_lake"
    database: ConnectionId = "ml_lifecycle_database"
    mlflow: ConnectionId = "ml_lifecycle_mlflow"
    pods: ConnectionId = "ml_lifecycle_pods"


class ModelSpec(Strict):
    """``model.yaml``, version 1.

    :param engine: what computes the stages with many rows, with the same results; ``polars`` on one machine
    """

    spec: Literal[1]
    name: Name
    description: str
    task: TaskType
    engine: Engine = "polars"
    spark: Spark = Spark()
    owner: Text
    team: Tag | None = None
    tags: tuple[Tag, ...] = ()
    access_control: dict[str, Any] = Field(default_factory=dict)
    schedules: Schedules = Schedules()
    connections: Connections = Connections()
    sources: dict[Name, Source] = Field(min_length=1)
    labels: Labels
    features: Features
    training: Training
    evaluation: Evaluation
    approvers: Approvers
    environments: dict[Name, Environment]
    delivery: Delivery = Delivery()
    scoring: Scoring = Scoring()
    monitoring: Monitoring = Monitoring()
    notify: tuple[Notify, ...] = ()

    @model_validator(mode="after")
    def _spark_has_its_engine(self) -> ModelSpec:
        if self.engine != "spark" and self.spark != Spark():
            raise FieldError("spark", "goes with engine: spark")
        return self

    @model_validator(mode="after")
    def _watch_fits_the_task(self) -> ModelSpec:
        watch, regression = self.delivery.watch, self.task == "regression"
        late = [name for name in self._known_late() if watch.criteria[name].required]
        if late and watch.deadline <= self.labels.delay:
            delay = format_duration(self.labels.delay)
            message = f"must be longer than labels.delay ({delay}), or nothing of {late[0]} is known in time"
            raise FieldError("delivery", message, "watch", "deadline")
        if regression and watch.disagreement is not None:
            message = "compares decisions, and a regression makes none"
            raise FieldError("delivery", message, "watch", "disagreement")
        if watch.labels is not None and (watch.labels.loss in ("absolute", "squared")) != regression:
            message = f"{watch.labels.loss} does not fit {self.task}"
            raise FieldError("delivery", message, "watch", "labels", "loss")
        return self

    @model_validator(mode="after")
    def _labels_meet_their_predictions(self) -> ModelSpec:
        keep, needed = self.monitoring.keep_predictions, self.monitoring.window + self.labels.delay
        if keep is not None and keep < needed:
            message = (
                f"must be at least monitoring.window and labels.delay together ({format_duration(needed)})"
            )
            raise FieldError("monitoring", message, "keep_predictions")
        return self

    def _known_late(self) -> Iterator[str]:
        """What is watched and becomes known with the labels; of other tables nobody says when."""
        if self.delivery.watch.labels is not None:
            yield "labels"
        for name, metric in self.delivery.watch.business.items():
            if metric.table in (None, self.labels.table):
                yield name

    @model_validator(mode="after")
    def _needs_staging_and_production(self) -> ModelSpec:
        if missing := [name for name in ("staging", "production") if name not in self.environments]:
            raise FieldError("environments", f"lacks {' and '.join(missing)}")
        if "staging" not in self.before("production"):
            raise FieldError("environments", "must list staging before production: releases go in this order")
        return self

    def before(self, environment: str) -> tuple[str, ...]:
        """The environments listed before one: each confirms a version before that takes it."""
        names = list(self.environments)
        return tuple(names[: names.index(environment)])

    @property
    def endpoint(self) -> str:
        """The name clients call the model by."""
        return self.delivery.endpoint or self.name
