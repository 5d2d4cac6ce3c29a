"""Windows of generated traffic through a real model: quiet ones, drifting ones and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import SCHEMA, PredictionWindow
from ml_lifecycle.errors import NoSpaceError
from ml_lifecycle.governor import retraining_run_id
from ml_lifecycle.profiles.profile import SCORE_COLUMN, Profile
from ml_lifecycle.profiles.profiling import make_profile
from ml_lifecycle.records import (
    ColumnSpec,
    Finding,
    Interval,
    Monitoring,
    Run,
    Training,
    TrainingSet,
    from_json,
    to_json,
)
from ml_lifecycle.spec.metrics import TASK_METRICS, alert_metrics
from ml_lifecycle.spec.model import Alert, ModelSpec
from ml_lifecycle.stages.monitor import judge, monitor, window_of

DAY = datetime(2013, 9, 4, tzinfo=UTC)
WINDOW = Interval(DAY, DAY + timedelta(days=1))
NOW = DAY + timedelta(days=2)
COLUMNS = (
    ColumnSpec("delay", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("carrier", "string"),
    ColumnSpec("night", "bool"),
)
ALERTS = [
    {"metric": "psi", "above": 0.1, "severity": "warning"},
    {"metric": "psi", "above": 0.25, "severity": "critical", "columns": ["delay"], "action": "retrain"},
    {"metric": "missing_share", "above": 0.2, "severity": "critical"},
    {"metric": "skill", "below": -0.05, "severity": "critical", "action": "retrain"},
]


def make_spec(
    task: str = "binary",
    alerts: list[dict[str, Any]] | None = None,
    segments: dict[str, list[str]] | None = None,
) -> ModelSpec:
    environment = {"server": "s", "lake": "l", "online_store": "o"}
    return ModelSpec.model_validate(
        {
            "spec": 1,
            "name": "late",
            "description": "Late arrivals.",
            "task": task,
            "owner": "flights",
            "sources": {"flights": {"uri": "flights/*.parquet"}},
            "labels": {"column": "late", "keys": ["flight"]},
            "features": {"service": "late"},
            "training": {"data": {"start": "2013-01-01T00:00:00Z", "holdout": "14d"}},
            "evaluation": {"gates": [{"metric": "skill" if task != "regression" else "rmse", "min": 0}]},
            "approvers": {"users": ["alice"]},
            "environments": {"staging": environment, "production": environment},
            "monitoring": {"alerts": ALERTS if alerts is None else alerts, "segments": segments or {}},
        }
    )


def run(window: Interval = WINDOW, as_of: datetime = NOW) -> Run:
    return Run("late", "monitor__1", as_of, window)


def traffic(
    n: int, seed: int, shift: float = 0.0, carriers: tuple[str, ...] = ("AA", "B6", "UA")
) -> pl.DataFrame:
    """Rows with features, the true probability ``p`` of being late and what came of it, ``late``."""
    rng = np.random.default_rng(seed)
    delay = rng.normal(shift, 1, n)
    p = 1 / (1 + np.exp(1.2 - 1.5 * delay))
    return pl.DataFrame(
        {
            "flight": np.arange(n),
            "event_timestamp": [DAY + timedelta(seconds=20 * k) for k in range(n)],
            "delay": delay,
            "hour": rng.integers(5, 23, n),
            "carrier": rng.choice(carriers, n),
            "night": rng.integers(0, 2, n).astype(bool),
            "p": p,
            "late": (rng.random(n) < p).astype(int),
        }
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))


def log_rows(rows: pl.DataFrame, version: str = "1", **overrides: Any) -> pl.DataFrame:
    """Rows as the server logs them, answered with their true probability."""
    features = [
        json.dumps({name: row.get(name) for name in row if name in {column.name for column in COLUMNS}})
        for row in rows.iter_rows(named=True)
    ]
    logged = pl.DataFrame(
        {
            "prediction_id": [f"p{k}" for k in range(rows.height)],
            "row": [0] * rows.height,
            "received_at": rows["event_timestamp"],
            "event_time": rows["event_timestamp"],
            "entity_keys": [json.dumps({"flight": key}) for key in rows["flight"].to_list()],
            "endpoint": ["late"] * rows.height,
            "route_revision": [1] * rows.height,
            "variant": ["champion"] * rows.height,
            "returned": [True] * rows.height,
            "model_version": [version] * rows.height,
            "model_digest": [f"digest-{version}"] * rows.height,
            "features": features,
            "features_from": ["request"] * rows.height,
            "outputs": [json.dumps({"label": int(p >= 0.5), "probabilities": [1 - p, p]}) for p in rows["p"]],
            "score": rows["p"],
            "latency_ms": [float(k % 100 + 1) for k in range(rows.height)],
            "status": [200] * rows.height,
        },
        schema=SCHEMA,
    )
    return logged.with_columns(**overrides)


class World:
    """A lake with one training in it and an environment's lake to log to."""

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(str(folder / "lake"))
        self.served = Lake(str(folder / "production"))
        self.parts = 0
        reference = traffic(4000, seed=1)
        self.training = self._train(reference)

    def _train(self, rows: pl.DataFrame) -> Training:
        folder = "training_sets/late/ts"
        training_set = TrainingSet(
            run=run(), digest="ts", path=folder, snapshot_digest="s", code_digest="c",
            train_path=f"{folder}/train.parquet", holdout_path=f"{folder}/holdout.parquet",
            train_rows=rows.height, holdout_rows=0, train_end=DAY, holdout=Interval(DAY, DAY),
            columns=COLUMNS, label_column="late", entity_keys=("flight",),
        )  # fmt: skip
        local = Path(self.lake.full_path(training_set.train_path))
        local.parent.mkdir(parents=True)
        rows.drop("p").write_parquet(local)
        self.lake.write_json(f"{training_set.path}/manifest.json", to_json(training_set))
        training = Training(
            run=run(), digest="tr", path="training/late/tr", attempt=1,
            training_set_path=f"{folder}/manifest.json",
            snapshot_digest="s", code_digest="c", spec_digest="d", train_end=DAY,
            model_path="training/late/tr/model.onnx", model_digest="digest-1", columns=COLUMNS,
            classes=("0", "1"), reference_path="", profile_path="training/late/tr/profile.json",
            metrics_path="", parameters={}, metrics={}, packages={}, resources={},
        )  # fmt: skip
        columns = (*COLUMNS, ColumnSpec(SCORE_COLUMN, "float"))
        profile = make_profile(rows.rename({"p": SCORE_COLUMN}), columns)
        self.lake.write_json(training.profile_path, to_json(profile))
        return training

    def log(self, logged: pl.DataFrame) -> Path:
        self.parts += 1
        path = f"predictions/late/{DAY.date().isoformat()}/part-{self.parts}.parquet"
        local = Path(self.served.full_path(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        logged.write_parquet(local)
        return local

    def monitor(
        self,
        labels: pl.LazyFrame | None = None,
        spec: ModelSpec | None = None,
        the_run: Run | None = None,
        reference_for: Callable[[str], Training | None] | None = None,
    ) -> Monitoring:
        known = reference_for or {self.training.model_digest: self.training}.get
        return monitor(spec or make_spec(), self.lake, self.served, the_run or run(), known, labels, NOW)

    def findings(self, monitoring: Monitoring) -> dict[tuple[str, str | None], dict[str, Any]]:
        report = self.lake.read_json(monitoring.report_path)
        return {
            (found["metric"], found["column"]): found for found in report["findings"] if not found["segment"]
        }


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def known_labels(rows: pl.DataFrame, known_at: datetime = DAY + timedelta(hours=30)) -> pl.LazyFrame:
    return rows.lazy().select("flight", "event_timestamp", "late", known_at=pl.lit(known_at))


def test_a_quiet_window_alerts_nobody_and_tells_its_numbers(world):
    rows = traffic(3000, seed=2)
    world.log(log_rows(rows[:1800]))
    world.log(log_rows(rows[1800:]))
    monitoring = world.monitor(known_labels(rows))
    assert monitoring.alerts == ()
    assert not monitoring.retrain
    assert (monitoring.predictions, monitoring.labelled) == (3000, 3000)
    assert monitoring.versions == ("1",)
    assert monitoring.metrics["label_coverage"] == 1
    assert monitoring.metrics["volume"] == 3000
    assert monitoring.metrics["error_share"] == 0
    assert 0.1 < monitoring.metrics["skill"] < 0.4
    assert monitoring.metrics["calibration_error"] < 0.05
    assert abs(monitoring.metrics["mean_error"]) < 0.03
    assert monitoring.metrics["psi_max"] < 0.05
    assert monitoring.metrics["score_psi"] < 0.05
    assert monitoring.metrics["latency_p50_ms"] == pytest.approx(50.5)
    assert monitoring.metrics["latency_p99_ms"] > 98
    found = world.findings(monitoring)
    assert all(finding["error"] is None for finding in found.values())
    for column in COLUMNS:
        assert found["schema", column.name]["value"] == 0
        assert found["missing_share", column.name]["value"] == 0
        assert found["psi", column.name]["n"] == 3000
    assert found["new_categories", "carrier"]["value"] == 0
    pages = world.lake.read_json(monitoring.report_path)["pages"]
    assert pages == {"drift": monitoring.html_path, "quality": f"{monitoring.path}/quality.html"}
    assert b"plotly" in world.lake.read_bytes(monitoring.html_path).lower()
    snapshot = world.lake.read_json(f"{monitoring.path}/evidently.json")
    values = {metric["metric_name"]: metric["value"] for metric in snapshot["metrics"]}
    shown = next(
        name for name in values if "WholeWindow" in name and "wasserstein" in name and "delay" in name
    )
    assert values[shown] == pytest.approx(found["wasserstein", "delay"]["value"])
    assert b"wasserstein of" in world.lake.read_bytes(monitoring.html_path)


def test_a_shifted_window_alerts_and_retrains(world):
    rows = traffic(2000, seed=3, shift=1.0, carriers=("AA", "B6", "ZZ"))
    world.log(log_rows(rows))
    monitoring = world.monitor()
    assert monitoring.retrain
    raised = {(alert.metric, alert.column, alert.severity, alert.action) for alert in monitoring.alerts}
    assert ("psi", "delay", "warning", "notify") in raised
    assert ("psi", "delay", "critical", "retrain") in raised
    assert ("psi", "hour", "warning", "notify") not in raised
    found = world.findings(monitoring)
    assert found["psi", "delay"]["severity"] == "critical"
    assert found["psi", "delay"]["threshold"] == "above 0.25"
    assert found["new_categories", "carrier"]["value"] == pytest.approx(1 / 3, abs=0.05)
    assert found["score_mean_shift", None]["value"] > 0.1
    assert found["skill", None]["value"] is None
    assert "no label" in found["skill", None]["error"]


def test_an_alert_may_be_about_a_segment(world):
    alerts = [{"metric": "psi", "above": 0.25}, {"metric": "psi", "above": 0.25, "segments": ["carrier=B6"]}]
    with pytest.raises(ValueError, match="carrier=B6 is not in segments"):
        make_spec(alerts=alerts)
    spec = make_spec(alerts=alerts, segments={"carrier": ["AA", "B6"], "gate": ["1"]})
    columns = (*COLUMNS, ColumnSpec(SCORE_COLUMN, "float"))
    reference = make_profile(
        traffic(4000, seed=1).rename({"p": SCORE_COLUMN}), columns, {"carrier": ("AA", "B6")}
    )
    world.lake.write_json(world.training.profile_path, to_json(reference))
    moved = pl.when(pl.col("carrier") == "B6").then(pl.col("delay") + 0.7).otherwise("delay")
    world.log(log_rows(traffic(3000, seed=3).with_columns(delay=moved)))
    monitoring = world.monitor(spec=spec)
    assert [(alert.column, alert.segment) for alert in monitoring.alerts] == [("delay", "carrier=B6")]
    assert monitoring.metrics["psi_max"] < 0.25
    findings = world.lake.read_json(monitoring.report_path)["findings"]
    assert [one["error"] for one in findings if one["column"] == "gate"] == ["the model has no such column"]
    sizes = {one["segment"]: one["value"] for one in findings if one["metric"] == "volume"}
    assert sizes[None] == 3000
    assert sizes["carrier=AA"] + sizes["carrier=B6"] == pytest.approx(2000, abs=150)


def test_a_small_window_measures_the_shift_and_stays_calm(world):
    world.log(log_rows(traffic(300, seed=3, shift=1.0)))
    monitoring = world.monitor()
    assert monitoring.metrics["psi_max"] > 0.25
    assert monitoring.alerts == ()


def test_labels_that_turned_against_the_model_retrain(world):
    rows = traffic(2000, seed=4).with_columns(late=1 - pl.col("late"))
    world.log(log_rows(rows))
    monitoring = world.monitor(known_labels(rows))
    assert monitoring.metrics["skill"] < -0.05
    assert [(alert.metric, alert.action) for alert in monitoring.alerts] == [("skill", "retrain")]


def test_labels_of_other_moments_than_were_asked_about_are_said_to_be(world):
    rows = traffic(200, seed=4)
    world.log(log_rows(rows))
    elsewhere = known_labels(rows).with_columns(pl.col("event_timestamp") + pl.duration(seconds=1))
    found = world.findings(world.monitor(elsewhere))
    assert found["skill", None]["error"] == (
        "200 labels of this window are known, but none has the flight and event_time of a prediction: "
        "ask with the event_timestamp of the label"
    )


def test_only_labels_known_by_then_are_used_and_the_last_of_them(world):
    rows = traffic(1000, seed=5)
    world.log(log_rows(rows))
    early = known_labels(rows[:400], NOW - timedelta(hours=3)).with_columns(late=1 - pl.col("late"))
    corrected = known_labels(rows[:400], NOW - timedelta(hours=1))
    too_late = known_labels(rows[400:], NOW)
    monitoring = world.monitor(pl.concat([corrected, early, too_late]))
    assert monitoring.labelled == 400
    assert monitoring.metrics["label_coverage"] == 0.4
    assert monitoring.metrics["skill"] > 0.1  # the correction held, not the wrong first label


def with_delay(hours: int, task: str = "binary") -> ModelSpec:
    spec = make_spec(task)
    return spec.model_copy(
        update={"labels": spec.labels.model_copy(update={"delay": timedelta(hours=hours)})}
    )


def test_what_became_known_early_is_no_fair_sample_and_is_not_measured(world):
    """Rows come every 20 seconds from midnight on; at midnight those of the first eight hours are mature."""
    rows = traffic(3000, seed=9)
    world.log(log_rows(rows))
    mature, young = rows[:1440], rows[1440:]
    early = young.filter(pl.col("late") == 0)  # who is on time, is known to be at once
    labels = known_labels(pl.concat([mature, early]), DAY + timedelta(hours=23))
    at_midnight = run(as_of=DAY + timedelta(days=1))
    monitoring = world.monitor(labels, with_delay(16), at_midnight)
    assert monitoring.labelled == 1440
    assert monitoring.metrics["label_coverage"] == 1
    assert monitoring.metrics["label_mean"] == pytest.approx(mature["late"].mean())
    found = world.findings(monitoring)
    for metric in ("skill", "roc_auc", "accuracy"):
        assert found[metric, None]["n"] == 1440
        assert found[metric, None]["low"] < found[metric, None]["value"] < found[metric, None]["high"]
        estimated = found[f"estimated_{metric}", None]
        assert estimated["n"] == young.height
        assert estimated["low"] < estimated["value"] < estimated["high"]
    truth, score = young["late"].to_numpy(), young["p"].to_numpy()
    realised = float(np.mean((score >= 0.5) == truth))
    accuracy = found["estimated_accuracy", None]
    assert accuracy["low"] - 0.02 < realised < accuracy["high"] + 0.02
    report = world.lake.read_json(monitoring.report_path)
    assert report["mature_until"] == "2013-09-04T08:00:00+00:00"
    assert report["cohorts"] == [
        {"day": "2013-09-04", "predictions": 3000, "labelled": 1440 + early.height, "mature": 1440}
    ]
    # A day later everything is.
    later = world.monitor(known_labels(rows), with_delay(16), run())
    assert later.labelled == 3000
    assert ("estimated_skill", None) not in world.findings(later)


def test_estimates_that_were_wrong_are_not_told(world):
    """From the sixth hour on the labels turned against the model: its own confidence knows nothing of it."""
    rows = traffic(3000, seed=10)
    world.log(log_rows(rows))
    turned = rows.with_columns(
        late=pl.when(pl.int_range(pl.len()) < 720).then("late").otherwise(1 - pl.col("late"))
    )
    labels = known_labels(turned[:1440], DAY + timedelta(hours=23))
    monitoring = world.monitor(labels, with_delay(16), run(as_of=DAY + timedelta(days=1)))
    found = world.findings(monitoring)["estimated_accuracy", None]
    assert found["value"] is None
    assert "were wrong on rows whose labels are known" in found["error"]


def test_a_window_shorter_than_the_labels_take_is_said_to_be(world):
    rows = traffic(600, seed=11)
    world.log(log_rows(rows))
    monitoring = world.monitor(known_labels(rows), with_delay(72))
    found = world.findings(monitoring)
    assert found["skill", None]["error"] == (
        "no row of this window is older than labels.delay (3d): give monitoring a longer window"
    )
    # This training has left no answers to its holdout.
    assert "estimated_skill" in {metric for metric, _ in found}
    assert found["estimated_skill", None]["value"] is None


def test_other_moments_and_keys_do_not_join(world):
    rows = traffic(600, seed=5)
    world.log(log_rows(rows))
    moved = known_labels(rows).with_columns(pl.col("event_timestamp") + timedelta(seconds=7))
    assert world.monitor(moved).labelled == 0
    renamed = known_labels(rows).with_columns(pl.col("flight") + 10_000)
    assert world.monitor(renamed).labelled == 0


def test_rows_outside_the_window_and_unanswered_ones_are_left_out(world):
    rows = traffic(1000, seed=6)
    world.log(log_rows(rows[:500]))
    world.log(log_rows(rows[500:600], event_time=pl.lit(DAY - timedelta(seconds=1))))
    world.log(log_rows(rows[600:700], returned=pl.lit(False), variant=pl.lit("shadow")))
    world.log(log_rows(rows[700:800], returned=pl.lit(False), status=pl.lit(500)))
    refused = {"returned": pl.lit(False), "variant": pl.lit("canary"), "status": pl.lit(400)}
    world.log(log_rows(rows[:50], **refused))  # in its place the champion answered
    monitoring = world.monitor(known_labels(rows))
    assert (monitoring.predictions, monitoring.labelled) == (500, 500)
    assert monitoring.metrics["error_share"] == pytest.approx(100 / 600)


def test_the_share_of_unknown_keys_is_of_those_who_asked_by_keys(world):
    rows = traffic(400, seed=6)
    world.log(log_rows(rows[:200]))
    assert "unknown_keys_share" not in world.monitor().metrics
    world.log(log_rows(rows[200:350], features_from=pl.lit("online_store")))
    world.log(log_rows(rows[350:], features_from=pl.lit("missing")))
    alerts = [{"metric": "unknown_keys_share", "above": 0.2, "min_rows": 100}]
    monitoring = world.monitor(spec=make_spec(alerts=alerts))
    assert monitoring.metrics["unknown_keys_share"] == pytest.approx(0.25)
    assert [alert.metric for alert in monitoring.alerts] == ["unknown_keys_share"]


def test_release_checks_are_no_traffic(world):
    rows = traffic(200, seed=6)
    world.log(log_rows(rows[:150]))
    world.log(log_rows(rows[150:], prediction_id=pl.lit("release-check-late-1-golden")))
    assert world.monitor().predictions == 150


def test_without_an_event_time_the_arrival_counts(world):
    rows = traffic(200, seed=6)
    world.log(log_rows(rows, event_time=pl.lit(None)))
    assert world.monitor().predictions == 200


def test_the_version_that_served_most_is_compared(world):
    rows = traffic(1500, seed=7)
    world.log(log_rows(rows[:1000]))
    world.log(log_rows(traffic(500, seed=8, shift=5.0), version="2"))
    monitoring = world.monitor()
    assert monitoring.versions == ("1", "2")
    assert monitoring.predictions == 1500
    assert monitoring.metrics["psi_max"] < 0.1
    versions = world.lake.read_json(monitoring.report_path)["versions"]
    assert [(version["version"], version["rows"]) for version in versions] == [("1", 1000), ("2", 500)]


def test_a_column_gone_null_is_reported_and_breaks_nothing(world):
    rows = traffic(1500, seed=9).with_columns(delay=pl.lit(None, pl.Float64))
    world.log(log_rows(rows))
    monitoring = world.monitor(known_labels(rows))
    assert [(alert.metric, alert.column) for alert in monitoring.alerts] == [("missing_share", "delay")]
    found = world.findings(monitoring)
    assert "no values" in found["psi", "delay"]["error"]
    assert found["psi", "hour"]["value"] < 0.05
    assert "no value in the window" in found["evidently", "delay"]["error"]
    assert world.lake.exists(monitoring.html_path)


def test_broken_features_are_schema_findings(world):
    rows = traffic(1000, seed=10)
    broken = {"delay": "much", "hour": 7.5, "carrier": None, "unheard_of": 1}
    logged = log_rows(rows)
    texts = [json.dumps(broken)] * 500 + logged["features"].to_list()[500:]
    world.log(logged.with_columns(features=pl.Series(texts)))
    found = world.findings(world.monitor())
    for column in ("delay", "hour", "carrier", "night", "unheard_of"):
        assert found["schema", column]["value"] == pytest.approx(0.5)
    assert found["missing_share", "delay"]["value"] == pytest.approx(0.5)


def test_an_empty_window_is_a_finding(world):
    spec = make_spec(alerts=[{"metric": "volume", "below": 10, "severity": "critical"}])
    monitoring = world.monitor(spec=spec)
    assert (monitoring.predictions, monitoring.versions, monitoring.html_path) == (0, (), None)
    assert [(alert.metric, alert.value) for alert in monitoring.alerts] == [("volume", 0)]


def test_a_torn_part_is_a_finding_and_the_rest_is_measured(world):
    rows = traffic(1200, seed=11)
    world.log(log_rows(rows[:600]))
    torn = world.log(log_rows(rows[600:900]))
    torn.write_bytes(torn.read_bytes()[:2000])
    world.log(log_rows(rows[900:]))
    monitoring = world.monitor()
    assert monitoring.predictions == 900
    assert torn.name in world.findings(monitoring)["unreadable_parts", None]["error"]


def test_labels_that_raise_are_a_finding(world):
    world.log(log_rows(traffic(600, seed=12)))
    found = world.findings(world.monitor(pl.LazyFrame({"flight": [1]})))
    assert "ColumnNotFoundError" in found["labels", None]["error"]
    assert found["psi", "delay"]["value"] is not None


def test_an_unknown_model_is_a_finding(world):
    world.log(log_rows(traffic(600, seed=12)))
    monitoring = world.monitor(reference_for=lambda digest: None)
    assert "digest-1" in world.findings(monitoring)["reference", None]["error"]
    assert monitoring.metrics["volume"] == 600


def test_a_missing_profile_leaves_quality_standing(world):
    rows = traffic(600, seed=12)
    world.log(log_rows(rows))
    world.lake.delete(world.training.profile_path)
    monitoring = world.monitor(known_labels(rows))
    assert "LakeFileMissingError" in world.findings(monitoring)["profile", None]["error"]
    assert monitoring.metrics["skill"] > 0


def test_labels_of_one_class_leave_the_other_metrics_standing(world):
    rows = traffic(600, seed=12).with_columns(late=pl.lit(0))
    world.log(log_rows(rows))
    found = world.findings(world.monitor(known_labels(rows)))
    assert "both classes" in found["roc_auc", None]["error"]
    assert found["log_loss", None]["value"] > 0


def test_the_same_inputs_give_the_same_files(world):
    rows = traffic(700, seed=13)
    world.log(log_rows(rows))
    first = world.monitor(known_labels(rows))
    written = world.lake.sizes("monitoring")
    later = replace(run(), run_id="later", as_of=run().as_of + timedelta(microseconds=1))
    again = world.monitor(known_labels(rows).reverse(), the_run=later)
    assert again == replace(first, run=later)
    assert world.lake.sizes("monitoring") == written
    assert world.monitor(known_labels(rows[:300])).digest != first.digest
    world.log(log_rows(traffic(10, seed=14)))
    assert world.monitor(known_labels(rows)).digest != first.digest


def test_a_result_without_its_manifest_is_made_again(world):
    world.log(log_rows(traffic(700, seed=13)))
    first = world.monitor()
    world.lake.delete(f"{first.path}/manifest.json")
    assert world.monitor() == first
    assert from_json(Monitoring, world.lake.read_json(f"{first.path}/manifest.json")) == first
    profile = from_json(Profile, world.lake.read_json(f"{first.path}/profile.json"))
    assert profile.rows == 700


def test_a_multiclass_window(world):
    world.training = replace(world.training, classes=("early", "late", "on_time"))
    rows = traffic(900, seed=15)
    truth = pl.Series("late", np.random.default_rng(0).choice(["early", "late", "on_time"], 900))
    sure = [[0.8 if truth[k] == name else 0.1 for name in world.training.classes] for k in range(900)]
    outputs = [json.dumps({"label": "late", "probabilities": one}) for one in sure]
    world.log(log_rows(rows).with_columns(outputs=pl.Series(outputs), score=pl.lit(0.8)))
    monitoring = world.monitor(known_labels(rows.with_columns(truth)), spec=make_spec("multiclass"))
    assert monitoring.metrics["accuracy"] == 1
    assert monitoring.metrics["log_loss"] == pytest.approx(-np.log(0.8))
    assert world.lake.exists(f"{monitoring.path}/quality.html")


def test_a_regression_window(world):
    noise = pl.Series(np.random.default_rng(0).normal(2, 0.5, 900))
    rows = traffic(900, seed=16).with_columns(late=pl.col("p") + noise)
    outputs = pl.Series([json.dumps({"prediction": p}) for p in rows["p"]])
    world.log(log_rows(rows).with_columns(outputs=outputs))
    monitoring = world.monitor(known_labels(rows), spec=make_spec("regression", alerts=[]))
    assert monitoring.metrics["mae"] == pytest.approx(noise.mean())
    assert monitoring.metrics["rmse"] == pytest.approx(np.sqrt((noise**2).mean()))
    assert monitoring.metrics["mean_error"] == pytest.approx(-noise.mean())
    assert monitoring.metrics["bias"] == pytest.approx(noise.mean()), "without its sign, as in a gate"
    findings = world.lake.read_json(monitoring.report_path)["findings"]
    once = [(finding["metric"], finding["column"]) for finding in findings]
    assert len(once) == len(set(once)), "a metric has one meaning"
    assert world.lake.exists(f"{monitoring.path}/quality.html")


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_metric_a_gate_may_name_can_be_watched(world, task):
    classes = {"binary": ("0", "1"), "multiclass": ("0", "1", "2"), "regression": ()}[task]
    world.training = replace(world.training, classes=classes)
    rows = traffic(900, seed=17)
    spread = [[1 - p, p / 2, p / 2] for p in rows["p"]]
    outputs = pl.Series("outputs", [json.dumps({"probabilities": one}) for one in spread])
    world.log(log_rows(rows).with_columns(outputs) if task == "multiclass" else log_rows(rows))
    monitoring = world.monitor(known_labels(rows), spec=make_spec(task, alerts=[]))
    assert set(TASK_METRICS[task]) <= monitoring.metrics.keys()
    assert set(TASK_METRICS[task]) <= set(alert_metrics(task))


def test_the_log_is_read_in_bounded_batches(world):
    for part in range(4):
        world.log(log_rows(traffic(50, seed=part)))
    log = PredictionWindow(world.served, "late", WINDOW, batch_bytes=1)
    assert [batch.height for batch in log.batches(["score"])] == [50] * 4


def test_a_window_over_midnight_reads_both_days(world):
    world.log(log_rows(traffic(100, seed=1)))
    late = Interval(DAY - timedelta(hours=1), DAY + timedelta(seconds=20 * 10))
    assert PredictionWindow(world.served, "late", late).read(["score"]).height == 10


FINDING = Finding("psi", "delay", 0.3, 600)
STALE = Finding("feature_staleness_seconds", "weather", 61.0, 1)


@pytest.mark.parametrize(
    ("alert", "finding", "raised"),
    [
        (Alert(metric="psi", above=0.25), FINDING, "warning"),
        (Alert(metric="psi", above=0.3), FINDING, None),
        (Alert(metric="psi", below=0.25), FINDING, None),
        (Alert(metric="psi", above=0.25, min_rows=601), FINDING, None),
        (Alert(metric="feature_staleness_seconds", above=60), STALE, "warning"),
        (Alert(metric="feature_staleness_seconds", above=60, columns=("other",)), STALE, None),
        (Alert(metric="psi", above=0.25, columns=("hour",)), FINDING, None),
        (Alert(metric="skill", below=0), FINDING, None),
        (
            Alert(metric="psi", above=9, severity="critical"),
            replace(FINDING, value=None, error="x"),
            "critical",
        ),
        (Alert(metric="psi", above=9), replace(FINDING, value=None, error="x", n=3), None),
    ],
)
def test_an_alert_holds_its_conditions(alert, finding, raised):
    marked, alerts = judge([finding], [alert])
    assert marked[0].severity == raised
    assert [hit.severity for hit in alerts] == ([raised] if raised else [])


def test_what_cannot_be_measured_never_retrains():
    alert = Alert(metric="skill", below=0, action="retrain")
    _, alerts = judge([Finding("skill", None, None, 900, error="one class")], [alert])
    assert [hit.action for hit in alerts] == ["notify"]


def test_a_window_is_never_shorter_than_what_is_new():
    day, week = timedelta(days=1), timedelta(days=7)
    assert window_of(Interval(DAY - day, DAY), week) == Interval(DAY - week, DAY)
    assert window_of(Interval(DAY - 2 * week, DAY), week) == Interval(DAY - 2 * week, DAY)


def test_a_window_has_one_retraining_run():
    assert retraining_run_id("late", WINDOW) == retraining_run_id("late", replace(WINDOW))
    shifted = Interval(WINDOW.start, WINDOW.end + timedelta(seconds=1))
    assert retraining_run_id("late", shifted) != retraining_run_id("late", WINDOW)
    elsewhere = Interval(WINDOW.start.astimezone(), WINDOW.end.astimezone())
    assert retraining_run_id("late", elsewhere) == retraining_run_id("late", WINDOW)


class FullLake(Lake):
    """Has no room for what is kept of stretches, of one kind."""

    kind = ""

    def write_bytes(self, path: str, data: bytes) -> str:
        if "/stretches/" in path and self.kind in path:
            raise NoSpaceError("no room")
        return super().write_bytes(path, data)


@pytest.mark.parametrize("kind", ["traffic", "answers", "profile", "replay"])
def test_a_full_disk_is_no_finding(world: World, kind: str) -> None:
    """It would stay one for ever: the window would not be measured again when there is room."""
    rows = traffic(600, seed=2)
    world.log(log_rows(rows))
    lake, world.lake = world.lake, FullLake(world.lake.url)
    world.lake.kind = kind
    with pytest.raises(NoSpaceError):
        world.monitor(known_labels(rows))
    world.lake = lake
    found = world.lake.read_json(world.monitor(known_labels(rows)).report_path)["findings"]
    assert [one for one in found if one["error"]] == []
