"""Served requests taken through the training path once more: each planted fault is named for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from replay_world import COLUMNS, MACHINES, NOW, SERVED, WINDOW, World, make_world, shares
from small_model import HOUR

from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.personal import MASK
from ml_lifecycle.records import Finding, Interval
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.monitor import judge, monitor
from ml_lifecycle.stages.monitor_kept import KeptFindings
from ml_lifecycle.stages.monitor_online import look_at
from ml_lifecycle.stages.monitor_replay import Replayed, replay
from ml_lifecycle.stages.replay_features import Offline


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_what_was_served_as_it_was_known_is_the_same(world):
    world.log(world.online(MACHINES), MACHINES)
    replayed = world.replay()
    assert shares(replayed) == {
        ("replay_mismatch_share", None): 0,
        ("replay_code_share", None): 0,
        ("replay_stale_share", None): 0,
        ("replay_ahead_share", None): 0,
    }
    assert (replayed.report["rows"], replayed.report["with_features"]) == (20, 20)
    assert replayed.report["examples"] == []


def test_a_row_that_was_materialised_before_a_newer_event_is_stale_and_no_skew(world):
    moment = SERVED + 5 * HOUR / 2  # two events have come since
    world.log(world.online(MACHINES, moment), MACHINES, moment)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert shares(replayed)["replay_stale_share", None] == 1
    assert replayed.report["timing"]["state stale"] == {
        "rows": 20,
        "without_any": 0,
        "median_seconds": 3 * 3600,
        "largest_seconds": 3 * 3600,
    }
    assert replayed.report["examples"][0]["cause"] == "stale"


def test_a_view_that_was_not_in_the_store_yet_is_stale_without_an_age(world):
    served = world.online(MACHINES).with_columns(load=pl.lit(None, pl.Float64), mode=pl.lit(None, pl.String))
    world.log(served, MACHINES)
    replayed = world.replay()
    assert shares(replayed)["replay_stale_share", None] == 1
    assert replayed.report["timing"]["state stale"] == {
        "rows": 20,
        "without_any": 20,
        "median_seconds": None,
        "largest_seconds": None,
    }


def test_a_moment_in_the_past_gets_rows_that_it_did_not_know(world):
    moment = SERVED - 2 * HOUR
    world.log(world.online(MACHINES), MACHINES, moment, event_time=pl.lit(moment))
    log_day = f"predictions/small/{SERVED:%Y-%m-%d}"
    assert world.served.sizes(log_day)
    log = PredictionWindow(world.served, "small", Interval(moment, NOW))
    kept = KeptFindings(world.lake, "small", log)
    offline = Offline(world.folder, world.snapshot())
    found = replay(world.folder.spec, world.lake, world.served, log, kept, world.known, offline)
    assert shares(found)["replay_ahead_share", None] == 1
    assert shares(found)["replay_mismatch_share", None] == 0


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (lambda rows: rows.with_columns(pl.col("temperature") * 1.8 + 32), "features: climate:temperature"),
        (lambda rows: rows.with_columns(pl.col("mode").str.to_uppercase()), "features: state:mode"),
        (
            lambda rows: rows.with_columns(
                pl.Series("load", np.nextafter(rows["load"].to_numpy().astype(np.float32), np.float32(2)))
            ),
            "types: load",
        ),
    ],
    ids=["transformation", "text", "rounding"],
)
def test_a_skewed_feature_is_named(
    world: World, fault: Callable[[pl.DataFrame], pl.DataFrame], step: str
) -> None:
    served = fault(world.online(MACHINES).with_columns(pl.col("mode").fill_null("idle")))
    known = world.online(MACHINES)
    rows = [n for n in range(20) if known["mode"][n] is not None and known["temperature"][n] is not None]
    rows = [n for n in rows if not np.isnan(known["temperature"][n])]
    world.log(served[rows], [MACHINES[n] for n in rows])
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", step] == 1
    assert replayed.report["first_differences"] == {step: len(rows)}
    assert replayed.report["examples"][0]["step"] == step
    assert replayed.report["examples"][0]["cause"] in ("skew", None)


def test_a_stale_row_with_a_skewed_feature_is_named_by_that_feature(world):
    moment = SERVED + HOUR / 2
    served = world.online(MACHINES, moment).with_columns(pl.col("load") * 2)
    world.log(served, MACHINES, moment)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "features: state:load"] == 1


def test_rounding_to_32_bits_is_what_the_model_takes_anyway(world):
    served = world.online(MACHINES).with_columns(pl.col("load").cast(pl.Float32).cast(pl.Float64))
    world.log(served, MACHINES)
    assert shares(world.replay())["replay_mismatch_share", None] == 0


def test_a_value_that_a_column_cannot_hold_is_of_the_wrong_type(world):
    world.log(world.online(MACHINES), MACHINES, entity_keys=pl.lit("{}"))
    [path] = world.served.list("predictions")
    local = Path(world.served.full_path(path))
    odd = pl.col("features").str.replace(r'"hour": \d+', '"hour": 7.5')
    pl.read_parquet(local).with_columns(odd).write_parquet(local)
    assert shares(world.replay())["replay_mismatch_share", "types: hour"] == 1


def test_a_model_that_nobody_released_is_named(world):
    world.log(world.online(MACHINES), MACHINES, model_digest=pl.lit("0" * 64))
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "model"] == 1
    assert replayed.report["examples"][0]["detail"] == "no release has a model with this digest"


def test_a_file_that_is_another_model_is_named(world):
    world.log(world.online(MACHINES), MACHINES)
    world.lake.write_bytes(world.training.model_path, b"another")
    assert shares(world.replay())["replay_mismatch_share", "model"] == 1


def test_a_version_that_its_route_serves_as_another_model_is_named(world):
    other = Variant("champion", "2", "m", "1" * 64, "binary", COLUMNS, ("0", "1"))
    publish(world.served, Route("small", "small", 2, (other,), "0" * 64, SERVED))
    world.log(world.online(MACHINES), MACHINES, route_revision=pl.lit(2), model_version=pl.lit("2"))
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "model"] == 1
    assert replayed.report["examples"][0]["replayed"] == "1" * 64


def test_another_threshold_is_named(world):
    world.log(world.online(MACHINES), MACHINES, threshold=0.05)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "outputs: label"] > 0
    assert set(replayed.report["first_differences"]) == {"outputs: label"}
    assert replayed.report["examples"][0]["detail"] == "released with the threshold 0.5"


def test_other_probabilities_are_named(world):
    outputs = pl.lit(json.dumps({"label": 0, "probabilities": [0.9, 0.1]}))
    world.log(world.online(MACHINES), MACHINES, outputs=outputs)
    assert shares(world.replay())["replay_mismatch_share", "outputs: probabilities"] == 1


def test_vectors_without_keys_are_scored_only(world):
    served = world.online(MACHINES).with_columns(pl.col("load") * 2)  # the client's own affair
    world.log(served, MACHINES, features_from=pl.lit("request"), entity_keys=pl.lit("{}"))
    replayed = world.replay()
    assert shares(replayed) == {("replay_mismatch_share", None): 0}
    assert replayed.report["with_features"] == 0


def test_vectors_with_keys_are_held_against_the_offline_store_too(world):
    served = world.online(MACHINES).with_columns(pl.col("load") * 2)
    world.log(served, MACHINES, features_from=pl.lit("request"))
    assert shares(world.replay())["replay_mismatch_share", "features: state:load"] == 1


def test_what_was_corrected_since_was_right_when_it_was_served(world):
    world.log(world.online(MACHINES), MACHINES)
    for path in world.lake.list("landing/readings"):
        local = Path(world.lake.full_path(path))
        pl.read_parquet(local).with_columns(pl.col("load") / 3).write_parquet(local)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert replayed.report["with_features"] == 20
    # And what is wrong by what was known then too, is still found.
    world.log(world.online(MACHINES).with_columns(pl.col("load") / 2), MACHINES)
    assert shares(world.replay())["replay_mismatch_share", "features: state:load"] == pytest.approx(0.5)


def test_few_requests_of_a_version_are_chosen_too_and_count_for_themselves_only(world):
    many = MACHINES * 50
    world.log(world.online(many), many)
    odd = world.online(MACHINES[:4]).with_columns(pl.col("load") / 2)
    other = Variant(
        "canary", "1", "model.onnx", world.training.model_digest, "binary", COLUMNS, ("0", "1"), weight=0.1
    )
    publish(world.served, Route("small", "small", 2, (other,), "0" * 64, SERVED))
    world.log(odd, MACHINES[:4], route_revision=pl.lit(2), variant=pl.lit("canary"))
    first, again, others = world.replay(rows=20), world.replay(rows=20), world.replay(rows=20, seed=1)
    assert first == again
    assert first.report["examples"] != others.report["examples"] or first.findings == others.findings
    assert first.report["rows"] == 20
    assert first.report["first_differences"] == {"features: state:load": 4}
    assert shares(first)["replay_mismatch_share", None] == pytest.approx(4 / 1004)
    assert world.replay(rows=0) == Replayed()


def test_personal_data_do_not_show(world):
    contract = (world.folder.path / "contract.yaml").read_text()
    for name in ("machine_id", "mode"):
        contract = contract.replace(f"{{name: {name}, ", f"{{name: {name}, pii: true, ")
    (world.folder.path / "contract.yaml").write_text(contract)
    world.folder = load_folder(world.folder.path)
    world.log(world.online(MACHINES).with_columns(mode=pl.lit("turbo!")), MACHINES)
    replayed = world.replay()
    assert replayed.report["first_differences"] == {"features: state:mode": 20}
    example = replayed.report["examples"][0]
    assert (example["logged"], example["replayed"]) == (MASK, MASK)
    assert example["entity_keys"] == {"machine_id": MASK}
    shown = json.dumps(replayed.report) + repr(replayed.findings)
    assert not any(text in shown for text in ("turbo", "idle", "normal", *MACHINES))


def test_a_feature_that_holds_a_personal_field_does_not_show_whatever_it_is_called(world):
    path = world.folder.path / "contract.yaml"
    path.write_text(path.read_text().replace("{name: machine_id, ", "{name: machine_id, pii: true, "))
    plain = 'Field(name="mode", dtype=String'
    world.edit(plain, f"{plain}, tags={{'contract': 'readings.machine_id'}}")
    world.log(world.online(MACHINES).with_columns(mode=pl.lit("turbo!")), MACHINES)
    replayed = world.replay()
    assert replayed.report["first_differences"] == {"features: state:mode": 20}
    assert "turbo" not in json.dumps(replayed.report) + repr(replayed.findings)


def test_a_replay_that_fails_is_a_finding(world):
    snapshot = world.snapshot()
    world.log(world.online(MACHINES), MACHINES)
    world.edit("def tables(sources):", "def tables(sources):\n    raise KeyError('no')")
    # What the version was trained with runs as ever.
    assert shares(world.replay(snapshot=snapshot))["replay_mismatch_share", None] == 0
    Path(world.lake.full_path(f"code/{world.training.code_digest}.zip")).unlink()
    replayed = world.replay(snapshot=snapshot)
    assert replayed.findings == (
        Finding("replay_mismatch_share", None, None, 0, error="nothing was replayed: KeyError: 'no'"),
    )


def test_the_monitor_alerts_on_it(world):
    world.log(world.online(MACHINES).with_columns(pl.col("load") * 2), MACHINES)
    alerts = [{"metric": "replay_mismatch_share", "above": 0.01, "severity": "critical"}]
    monitoring = world.folder.spec.monitoring.model_validate({"alerts": alerts})
    spec = world.folder.spec.model_copy(update={"monitoring": monitoring})
    snapshot = world.snapshot()
    run = replace(snapshot.run, interval=WINDOW)
    offline = Offline(world.folder, snapshot)
    found = monitor(spec, world.lake, world.served, run, world.known, None, NOW, offline=offline)
    assert ("replay_mismatch_share", None, "critical") in {
        (one.metric, one.column, one.severity) for one in found.alerts
    }
    report = world.lake.read_json(found.report_path)
    assert report["replay"]["first_differences"] == {"features: state:load": 20}
    assert judge([Finding("replay_stale_share", None, 0.5, 3)], ())[1] == []


def test_a_window_that_is_measured_again_is_the_same_whatever_the_store_holds_now(world):
    world.log(world.online(MACHINES), MACHINES)
    snapshot = world.snapshot()
    run, offline = replace(snapshot.run, interval=WINDOW), Offline(world.folder, snapshot)
    spec, lakes = world.folder.spec, (world.lake, world.served)

    def measured():
        online = look_at(world.folder, world.lake, world.online_store, run.as_of)
        found = monitor(spec, *lakes, run, world.known, None, NOW, online=online, offline=offline)
        return online.mismatches, found, world.lake.read_json(found.report_path)

    first_audit, first, report = measured()
    assert [(one.metric, one.value) for one in first_audit] == [("online_mismatch_share", 0)]
    assert first.metrics["online_mismatch_share"] == 0
    world.materialise(NOW + HOUR)
    later_audit, again, same = measured()
    assert later_audit == (), "it tells of another time"
    assert (again, same) == (first, report)
