"""The template is a working model: it checks clean, its features compute, and it trains."""

import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.folder import load_folder, load_module
from ml_lifecycle.spec.metrics import TASK_METRICS
from ml_lifecycle.spec.model import Schedules
from ml_lifecycle.spec.scaffold import new_folder

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
START = datetime(2025, 1, 1, tzinfo=UTC)
CHANNELS = ["web", "app", "shop"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_folder("returns", tmp_path_factory.mktemp("models"))


def orders(rows: int) -> pl.DataFrame:
    """Customers order every day; the web's are returned after 3 days, the rest closes after 30."""
    channels = [CHANNELS[number % 3] for number in range(rows)]
    ordered = [START + number * DAY for number in range(rows)]
    return pl.DataFrame(
        {
            "order_id": [f"o{number}" for number in range(rows)],
            "customer_id": [f"c{number % 6}" for number in range(rows)],
            "ordered_at": ordered,
            "closed_at": [
                day + (3 if channel == "web" else 30) * DAY
                for day, channel in zip(ordered, channels, strict=True)
            ],
            "amount": [10.0 + number % 7 for number in range(rows)],
            "channel": channels,
            "returned": [channel == "web" for channel in channels],
        }
    )


def test_the_template_names_itself_and_passes_every_check(folder: Path) -> None:
    loaded = load_folder(folder)
    assert loaded.spec.name == "returns"
    assert loaded.spec.features.service == "returns"
    assert not [path for path in folder.iterdir() if "new_model" in path.read_text()]
    assert (folder / "dag.py").read_text() == (
        "from ml_lifecycle_airflow import lifecycle_dags\n\nglobals().update(lifecycle_dags(__file__))\n"
    )


def test_the_template_runs_nothing_by_itself_and_lists_each_task_s_metrics(folder: Path) -> None:
    assert load_folder(folder).spec.schedules == Schedules()
    text = (folder / "model.yaml").read_text()
    for task, metrics in TASK_METRICS.items():
        assert f"#   {task}: {', '.join(metrics)}\n" in text


def test_the_templates_feast_objects_and_tables_agree(folder: Path) -> None:
    from feast import FeatureService, FeatureView
    from feast.types import Int32, Int64

    module = load_module(folder, "features")
    views = [value for value in vars(module).values() if isinstance(value, FeatureView)]
    services = [value for value in vars(module).values() if isinstance(value, FeatureService)]
    assert [service.name for service in services] == [load_folder(folder).spec.features.service]

    tables = {name: frame.collect() for name, frame in module.tables({"orders": orders(12).lazy()}).items()}
    assert set(tables) == {"labels", "entities", *(view.batch_source.name for view in views)}
    for view in views:
        # A customer's first order has no earlier one, and an integer cannot be missing.
        assert not [field.name for field in view.schema if field.dtype in (Int32, Int64)]
        columns = {field.name for field in view.schema} | {view.batch_source.timestamp_field}
        assert columns <= set(tables[view.batch_source.name].columns)
    spec = load_folder(folder).spec
    needed = {spec.labels.column, spec.labels.event_time, spec.labels.known_at, *spec.labels.keys}
    assert needed <= set(tables["labels"].columns)
    assert {spec.labels.event_time, *spec.labels.keys} <= set(tables["entities"].columns)


def test_the_templates_features_hold_what_was_known_then(folder: Path) -> None:
    rows = orders(12).filter(pl.col("customer_id") == "c0")  # o0 and o6, both from the web
    table = load_module(folder, "features").tables({"orders": rows.lazy()})["customer_orders"].collect()
    assert table.sort("event_timestamp").to_dicts() == [
        {
            "customer_id": "c0",
            "event_timestamp": START + 3 * DAY,
            "orders_closed": 1,
            "return_share": 1.0,
            "mean_amount": 10.0,
            "last_channel": "web",
        },
        {
            "customer_id": "c0",
            "event_timestamp": START + 9 * DAY,
            "orders_closed": 2,
            "return_share": 1.0,
            "mean_amount": 13.0,
            "last_channel": "web",
        },
    ]


def test_the_template_trains_and_knows_what_to_do_with_an_unseen_category(folder: Path) -> None:
    spec = load_folder(folder).spec
    tables = load_module(folder, "features").tables({"orders": orders(300).lazy()})
    history = tables["customer_orders"].sort("event_timestamp")
    joined = (
        tables["labels"]
        .sort("event_timestamp")
        .join_asof(history, on="event_timestamp", by="customer_id", check_sortedness=False)
        .with_columns(pl.col("last_channel").fill_null(""))
        .collect()
    )
    columns = ["orders_closed", "return_share", "mean_amount", "last_channel"]
    training_set = joined.select(columns).with_columns(pl.col("orders_closed").cast(pl.Float64)).to_pandas()
    labels = joined["returned"].to_pandas()
    train = load_module(folder, "training").train
    model = train(training_set, labels, dict(spec.training.parameters), spec.training.seed)
    assert model.score(training_set, labels) > 0.8
    unseen = training_set.head(3).assign(last_channel="carrier pigeon")
    assert model.predict_proba(unseen).shape == (3, 2)
    again = train(training_set, labels, dict(spec.training.parameters), spec.training.seed)
    assert (again.predict_proba(training_set) == model.predict_proba(training_set)).all()


@pytest.mark.parametrize("name", ["../x", "Returns", "", "a b", "x\n", "7days", "a" * 64])
def test_an_unfit_name_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="cannot name a model"):
        new_folder(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "returns").mkdir()
    (tmp_path / "returns" / "model.yaml").write_text("mine")
    with pytest.raises(SpecError, match="exists already and was left as it is"):
        new_folder("returns", tmp_path)
    assert [path.read_text() for path in (tmp_path / "returns").iterdir()] == ["mine"]


def test_the_template_is_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if "/spec/template/" in name}
    assert names == {"model.yaml", "contract.yaml", "features.py", "training.py", "dag.py"}
