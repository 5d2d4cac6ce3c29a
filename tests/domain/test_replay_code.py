"""Versions are replayed with the code that they were trained with, whatever became of the folder since."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from replay_world import MACHINES, NOW, SERVED, World, make_world, shares
from small_model import HOUR

from ml_lifecycle.adapters.code_package import keep_package
from ml_lifecycle.personal import MASK

LOAD = '"load", "mode"),'  # of the table ``state``
HALF = 'pl.col("load") / 2, "mode"),'
LOAD_STEP = "features: state:load"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def package(world: World) -> Path:
    """The first version's code in the lake."""
    return Path(world.lake.full_path(f"code/{world.training.code_digest}.zip"))


def codes(report: Any) -> list[tuple[list[str], int, str | None, str | None, str | None]]:
    return [tuple(one.values()) for one in report["code"]]


def test_a_folder_that_changed_since_the_training_says_nothing_of_what_was_served(world: World) -> None:
    world.log(world.online(MACHINES), MACHINES)
    today = world.edit(LOAD, HALF).code_digest
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    trained_with = world.training.code_digest
    assert trained_with != today
    assert codes(replayed.report) == [(["1"], 20, trained_with, trained_with, None)]
    # And what is wrong by that code is found, whatever today's says.
    world.log(world.online(MACHINES).with_columns(pl.col("load") / 3), MACHINES)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", LOAD_STEP] == pytest.approx(0.5)
    assert shares(replayed)["replay_code_share", None] == 0
    assert replayed.report["examples"][0]["cause"] == "skew"


def test_a_store_that_another_code_wrote_is_the_cause(world: World) -> None:
    today = world.edit(LOAD, HALF).code_digest
    world.materialise()
    world.log(world.online(MACHINES), MACHINES)
    replayed = world.replay()
    found = shares(replayed)
    assert found["replay_mismatch_share", LOAD_STEP] == 1, "the step stays what it is"
    assert found["replay_code_share", None] == 1
    example = replayed.report["examples"][0]
    assert (example["step"], example["cause"]) == (LOAD_STEP, "code")
    assert today in example["detail"]
    assert world.training.code_digest in example["detail"]
    assert example["logged"] == example["replayed"] / 2


def test_an_older_event_by_another_code_is_the_code_s_doing_too(world: World) -> None:
    moment = SERVED + 3 * HOUR / 2
    world.edit(LOAD, HALF)
    world.materialise()
    world.log(world.online(MACHINES, moment), MACHINES, moment)
    found = shares(world.replay())
    assert found["replay_mismatch_share", None] == found["replay_code_share", None] == 1


def test_what_is_made_of_such_a_feature_has_the_same_cause(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    decorator = "from feast.on_demand_feature_view import on_demand_feature_view\n"
    world.edit("from feast.types", f"{decorator}from feast.types")
    world.edit(
        'service = FeatureService(name="small", features=[state, climate])',
        "@on_demand_feature_view(\n"
        '    sources=[state], schema=[Field(name="hour", dtype=Int64)], mode="pandas"\n'
        ")\n"
        "def derived(inputs):\n"
        '    return (inputs[["load"]] * 1000).fillna(0).astype("int64").rename(columns={"load": "hour"})\n'
        "\n\n"
        'service = FeatureService(name="small", features=[state, climate[["temperature"]], derived])',
    )
    own = world.release()
    served = world.online(MACHINES, version=own)
    assert served["hour"].max() > 23
    world.log(served, MACHINES, version=own)
    assert shares(world.replay())["replay_mismatch_share", None] == 0
    world.edit(LOAD, HALF)
    world.materialise()
    for path in world.served.list("predictions"):
        Path(world.served.full_path(path)).unlink()
    world.log(world.online(MACHINES, version=own), MACHINES, version=own)
    replayed = world.replay()
    assert shares(replayed)["replay_code_share", None] == 1
    assert shares(replayed)["replay_mismatch_share", LOAD_STEP] == 1


def test_a_spec_that_changed_needs_no_other_code(world: World) -> None:
    world.log(world.online(MACHINES), MACHINES)
    today = world.edit("description: ", "description: Still. ", "model.yaml").code_digest
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert codes(replayed.report) == [(["1"], 20, world.training.code_digest, today, None)]


@pytest.mark.parametrize(
    ("lost", "because"),
    [
        ("gone", "LakeFileMissingError"),
        ("altered", "IntegrityError"),
    ],
)
def test_where_the_package_cannot_be_used_today_s_folder_stands_in(
    world: World, lost: str, because: str
) -> None:
    world.log(world.online(MACHINES), MACHINES)
    today = world.edit(LOAD, HALF).code_digest
    if lost == "gone":
        package(world).unlink()
    else:
        package(world).write_bytes(package(world).read_bytes() + b"\0")
    replayed = world.replay()
    ((_, rows, trained_with, replayed_with, said),) = codes(replayed.report)
    assert (rows, trained_with, replayed_with) == (20, world.training.code_digest, today)
    assert because in said
    assert shares(replayed)["replay_mismatch_share", LOAD_STEP] == 1
    assert replayed.report["examples"][0]["detail"] == f"by today's code: {said}"
    assert replayed.report["examples"][0]["cause"] == "skew", "nobody can say that it is the code"


def test_code_that_cannot_be_imported_any_more_is_said(world: World) -> None:
    world.log(world.online(MACHINES), MACHINES)
    today = world.folder.code_digest
    broken = world.edit("import polars as pl\n", "import polars as pl\nimport nothing_of_this_name\n")
    keep_package(broken, world.lake)
    training = replace(world.training, code_digest=broken.code_digest)
    world.versions[0] = replace(world.versions[0], training=training)
    world.edit("import nothing_of_this_name\n", "")
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    ((_, _, _, replayed_with, because),) = codes(replayed.report)
    assert replayed_with == today
    assert "SpecError" in because
    assert "nothing_of_this_name" in because


def test_a_view_that_was_renamed_since_is_replayed_by_its_name_then(world: World) -> None:
    world.edit('state = view("state"', 'state = view("condition"')
    world.edit('"state": readings', '"condition": readings')
    moment = SERVED + 3 * HOUR / 2
    world.materialise(SERVED + HOUR)  # which leaves what the first version reads as it was
    world.log(world.online(MACHINES, moment), MACHINES, moment)
    replayed = world.replay()
    found = shares(replayed)
    assert (found["replay_mismatch_share", None], found["replay_stale_share", None]) == (0, 1)
    assert set(replayed.report["timing"]) == {"state stale", "climate stale"}
    new = world.release()
    world.log(world.online(MACHINES, moment, new), MACHINES, moment, version=new)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert set(replayed.report["timing"]) == {"state stale", "climate stale", "condition stale"}


def test_a_window_over_a_rollback_holds_each_version_against_its_own_code(world: World) -> None:
    first = world.versions[0]
    world.log(world.online(MACHINES), MACHINES)
    world.edit(LOAD, HALF)
    second = world.release()
    world.materialise()
    world.log(world.online(MACHINES, version=second), MACHINES, version=second)
    assert shares(world.replay())["replay_mismatch_share", None] == 0
    # Gone back: the first reads what was written for the second.
    world.log(world.online(MACHINES), MACHINES, version=first, route_revision=pl.lit(3))
    variant = world.served.read_json("routes/small/00000001.json")
    world.served.write_json("routes/small/00000003.json", variant | {"revision": 3})
    replayed = world.replay()
    found = shares(replayed)
    assert found["replay_mismatch_share", None] == pytest.approx(1 / 3)
    assert found["replay_code_share", None] == pytest.approx(1 / 3)
    assert {one["version"] for one in replayed.report["examples"]} == {"1"}
    assert {one["route_revision"] for one in replayed.report["examples"]} == {3}
    assert {(one["rows"], *one["versions"]) for one in replayed.report["code"]} == {(40, "1"), (20, "2")}


def test_the_store_s_code_may_be_that_of_another_version_and_not_today_s(world: World) -> None:
    world.edit(LOAD, HALF)
    second = world.release()
    world.materialise()
    world.log(world.online(MACHINES), MACHINES)
    world.log(world.online(MACHINES, version=second), MACHINES, version=second)
    world.edit(HALF, LOAD.replace('"load"', 'pl.col("load") / 5'))
    replayed = world.replay()
    assert shares(replayed)["replay_code_share", None] == pytest.approx(0.5)
    assert second.training.code_digest in replayed.report["examples"][0]["detail"]


def test_a_version_that_nobody_knows_is_not_held_against_code_that_may_not_be_its_own(world: World) -> None:
    world.log(world.online(MACHINES), MACHINES, model_digest=pl.lit("0" * 64))
    world.edit(LOAD, HALF)
    replayed = world.replay()
    assert replayed.report["first_differences"] == {"model": 20}
    assert codes(replayed.report) == [(["1"], 20, None, None, "no training of the version is known")]
    assert replayed.report["with_features"] == 0


def test_former_code_that_does_not_fit_today_s_data_is_asked_of_those_of_then(world: World) -> None:
    world.log(world.online(MACHINES), MACHINES)
    world.edit(
        "def tables(sources):\n",
        "def tables(sources):\n"
        '    last = sources["readings"].select(pl.col("read_at").max()).collect().item()\n'
        f"    assert last.isoformat() < {SERVED.isoformat()!r}, 'it cannot read what is newer'\n",
    )
    of_then = world.snapshot(SERVED)
    world.edit(LOAD, LOAD + "  # trained with\n")
    second = world.release()
    world.log(world.online(MACHINES, version=second), MACHINES, version=second)
    world.edit("    assert last", "    last  # assert last")
    assert world.snapshot(NOW).digest != of_then.digest
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert (replayed.report["with_features"], replayed.report["unsettled"]) == (40, 0)


def test_what_is_missing_shows_though_it_is_personal(world: World) -> None:
    for name in ("machine_id", "load"):
        world.edit(f"{{name: {name}, ", f"{{name: {name}, pii: true, ", "contract.yaml")
    served = world.online(MACHINES[:2]).with_columns(load=pl.Series([None, 0.123], dtype=pl.Float64))
    world.log(served, MACHINES[:2], event_time=pl.lit(SERVED))
    outputs = pl.lit(json.dumps({"label": 0, "probabilities": [0.9, 0.1]}))
    nobody = pl.lit(json.dumps({"machine_id": None}))
    world.log(world.online(MACHINES[:1]), MACHINES[:1], outputs=outputs, entity_keys=nobody)
    examples = {one["prediction_id"]: one for one in world.replay().report["examples"]}
    assert examples["p2-0"]["entity_keys"] == {"machine_id": None}
    assert examples["p1-1"]["entity_keys"] == {"machine_id": MASK}
    assert (examples["p1-1"]["logged"], examples["p1-1"]["replayed"]) == (MASK, MASK)
    assert (examples["p1-0"]["logged"], examples["p1-0"]["replayed"]) == (None, MASK)


def test_a_field_is_hidden_that_only_the_version_s_contract_calls_personal(world: World) -> None:
    world.edit("{name: mode, ", "{name: mode, pii: true, ", "contract.yaml")
    second = world.release()
    served = world.online(MACHINES, version=second).with_columns(mode=pl.lit("turbo!"))
    world.log(served, MACHINES, version=second)
    world.edit("{name: mode, pii: true, ", "{name: mode, ", "contract.yaml")
    world.edit(LOAD, HALF)
    replayed = world.replay()
    assert replayed.report["first_differences"] == {"features: state:mode": 20}
    assert {one["logged"] for one in replayed.report["examples"]} == {MASK}


def test_a_view_that_has_lost_the_feature_explains_nothing(world: World) -> None:
    world.log(world.online(MACHINES).with_columns(pl.col("load") / 3), MACHINES)
    world.edit('Field(name="load", dtype=Float64), ', "")
    world.edit(LOAD, '"mode"),')
    replayed = world.replay()
    found = shares(replayed)
    assert (found["replay_mismatch_share", LOAD_STEP], found["replay_code_share", None]) == (1, 0)
    assert {one["cause"] for one in replayed.report["examples"]} == {"skew"}
