"""From one folder to five DAGs, through Airflow's own parse path and back out of its serialised form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import CronDataIntervalTimetable
from airflow.serialization.serialized_objects import DagSerialization
from training_world import make_folder

from ml_lifecycle_airflow.dag_builder import lifecycle_dags

from .conftest import World

KINDS = ("train", "promote", "monitor", "score", "rollback")
DAG_FILE = "from ml_lifecycle_airflow import lifecycle_dags\n\nglobals().update(lifecycle_dags(__file__))\n"
_PARSING = "_AIRFLOW_PARSING_CONTEXT_DAG_ID"


def built(world: World) -> dict[str, Any]:
    return lifecycle_dags(str(world.folder.path / "dag.py"))


def test_a_model_has_five_dags_by_its_name(world: World) -> None:
    assert list(built(world)) == [f"delays__{kind}" for kind in KINDS]


def test_without_schedules_nothing_runs_by_itself(world: World) -> None:
    for dag in built(world).values():
        assert not dag.timetable.can_be_scheduled, dag.dag_id
        assert dag.catchup is False


def test_the_rollback_says_what_it_does_and_what_it_takes(world: World) -> None:
    dags = built(world)
    rollback = dags["delays__rollback"]
    for words in ("is taken back", "never rolled\nback", "`reason`: why", "a second run goes back further"):
        assert words in rollback.doc_md
    assert list(rollback.params) == ["reason"]
    assert rollback.doc_md.startswith(dags["delays__train"].doc_md)


def test_candidates_take_turns_at_an_endpoint_and_never_wait_for_each_other_s_approval(world: World) -> None:
    promote = built(world)["delays__promote"]
    assert promote.max_active_runs >= 500
    limits = {
        task.task_id: task.max_active_tis_per_dag for task in promote.tasks if task.max_active_tis_per_dag
    }
    assert limits == {"deploy_staging": 1, "deploy_production": 1}


def test_a_cron_in_the_spec_is_a_data_interval(world: World) -> None:
    daily = world.edit(
        "model.yaml",
        "task:",
        "schedules: {train: '0 6 * * 1', monitor: '0 7 * * *', score: '0 8 * * *'}\ntask:",
    )
    dags = built(daily)
    expected = {"train": "0 6 * * 1", "monitor": "0 7 * * *", "score": "0 8 * * *"}
    for kind, cron in expected.items():
        assert dags[f"delays__{kind}"].schedule == CronDataIntervalTimetable(cron, timezone="UTC")
    assert not dags["delays__promote"].timetable.can_be_scheduled


def test_crons_go_by_the_clock_that_the_spec_names(world: World) -> None:
    local = world.edit(
        "model.yaml", "task:", "schedules: {train: '0 3 * * *', timezone: America/New_York}\ntask:"
    )
    timetable = CronDataIntervalTimetable("0 3 * * *", timezone="America/New_York")
    assert built(local)["delays__train"].schedule == timetable


def test_owner_team_tags_and_access_are_airflow_s_own(world: World) -> None:
    owned = world.edit(
        "model.yaml",
        "owner: tests",
        "owner: punctual\nteam: data\ntags: [flights]\naccess_control: {data: {DAGs: [can_read]}}",
    )
    for dag in built(owned).values():
        assert dag.tags == {"ml-lifecycle", "delays", "data", "flights"}
        assert dag.access_control == {"data": {"DAGs": ["can_read"]}}
        assert {task.owner for task in dag.tasks} == {"punctual"}


def test_every_task_that_needs_the_folder_has_it(world: World) -> None:
    for dag in built(world).values():
        folders = {task.folder for task in dag.tasks if hasattr(task, "folder")}
        assert folders == {world.path}


def test_the_stages_follow_each_other(world: World) -> None:
    dags = built(world)

    def after(kind: str, task_id: str) -> set[str]:
        return set(dags[f"delays__{kind}"].task_dict[task_id].downstream_task_ids)

    assert after("train", "wait_for_data") == {"ingest"}
    assert "features" in after("train", "validate")
    assert after("train", "evaluate") == {"register"}
    assert after("promote", "deploy_staging") == {"approve"}
    assert after("promote", "approve") == {"prepare_production"}
    assert after("promote", "deploy_production") == {"watch_production"}
    assert after("promote", "watch_production") == {"mark_champion"}
    assert after("monitor", "monitor") == {"notify", "retrain"}
    assert {"materialise", "score"} <= after("score", "validate")
    promoting = dags["delays__promote"].task_dict
    assert promoting["deploy_production"].get_flat_relative_ids(upstream=True) >= {
        "evidence",
        "approve",
        "deploy_staging",
    }


def test_a_promotion_goes_through_the_environments_in_the_order_listed(world: World) -> None:
    longer = world.edit(
        "model.yaml", "  production:", "  canary: {server: c, lake: c, online_store: c}\n  production:"
    )
    tasks = built(longer)["delays__promote"].task_dict
    assert tasks["deploy_staging"].downstream_task_ids == {"prepare_canary"}
    assert tasks["deploy_canary"].downstream_task_ids == {"approve"}
    assert tasks["mark_champion"].version == "{{ dag_run.conf['version'] }}"


def test_while_a_task_runs_only_its_own_dag_is_built(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_PARSING, "delays__monitor")
    assert list(built(world)) == ["delays__monitor"]
    monkeypatch.setenv(_PARSING, "another_model__train")
    assert len(built(world)) == 5


def test_all_five_survive_airflow_s_serialisation(world: World) -> None:
    for dag in built(world).values():
        again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert set(again.task_dict) == set(dag.task_dict)
        assert {name for task in again.task_dict.values() for name in task.operator_extra_link_dict} >= {
            "Model"
        }


def test_a_version_in_the_conf_must_be_a_number(world: World) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    params = built(world)["delays__promote"].params
    params["version"] = "12"
    assert params.validate()["version"] == "12"
    with pytest.raises(ParamValidationError):
        params["version"] = "1; drop table"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three models, as they lie in ``dags/``: the second has a mistake in its spec, the third in its file."""
    for name in ("good", "misspelt", "raising"):
        folder = make_folder(tmp_path / "dags", "regression", name=name).path
        (folder / "dag.py").write_text(DAG_FILE)
    path = tmp_path / "dags" / "misspelt" / "model.yaml"
    path.write_text(path.read_text().replace("holdout:", "holdut:"))
    (tmp_path / "dags" / "raising" / "dag.py").write_text(DAG_FILE + "raise RuntimeError('by the user')\n")
    # As in this repository: Airflow looks at the dag.py of a folder only.
    (tmp_path / "dags" / ".airflowignore").write_text("**/training.py\n**/features.py\n")
    return tmp_path / "dags"


def test_a_broken_folder_is_one_import_error_of_its_own_file(models: Path) -> None:
    bag = DagBag(models, bundle_path=models, bundle_name="models")
    assert set(bag.dags) == {f"good__{kind}" for kind in KINDS}
    assert set(bag.import_errors) == {"misspelt/dag.py", "raising/dag.py"}
    error = bag.import_errors["misspelt/dag.py"]
    assert "model.yaml" in error
    assert "did you mean 'holdout'?" in error
    assert "by the user" in bag.import_errors["raising/dag.py"]


def test_a_mended_folder_is_parsed_again_by_a_fresh_bag(models: Path) -> None:
    path = models / "misspelt" / "model.yaml"
    path.write_text(path.read_text().replace("holdut:", "holdout:"))
    bag = DagBag(models, bundle_path=models, bundle_name="models")
    assert {f"misspelt__{kind}" for kind in KINDS} <= set(bag.dags)


def test_the_example_by_hand_has_the_operators_the_builder_uses(world: World) -> None:
    repository = Path(__file__).parents[2]
    bag = DagBag(repository / "dags", bundle_path=repository / "dags", bundle_name="dags")
    by_hand = {type(task) for task in bag.dags["lifecycle_by_hand"].tasks}
    delivered = {
        type(task)
        for kind in ("train", "promote")
        for task in bag.dags[f"flight_delay__{kind}"].tasks
        if type(task).__name__ not in {"DataArrivalSensor", "RequestPromotionOperator"}
    }
    assert by_hand == delivered
