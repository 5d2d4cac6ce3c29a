"""Personal data stand in no message, record or report of a whole life, whatever goes wrong in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import small_life
import small_model
import yaml
from small_life import FIRST_RUN, Place, begin, go_live, run_stage

from ml_lifecycle.adapters import feast_reader
from ml_lifecycle.errors import CanaryError, DataHaltedError, GateError, LifecycleError, SourceError
from ml_lifecycle.personal import MASK, masked, pseudonym, without_values
from ml_lifecycle.profiles.profile import CategoricalColumn, NumericColumn
from ml_lifecycle.profiles.profiling import make_profile
from ml_lifecycle.records import ColumnSpec, Snapshot, Training, to_json
from ml_lifecycle.stages import ingest, monitor_online, online_features, validate

PLANTED = "Slartibartfast"
# What the model works on, and what it is: data.
DATA = {".parquet", ".onnx", ".zip", ".csv", ".pb"}


def planted(make: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
    def readings(*arguments: Any, **options: Any) -> pl.DataFrame:
        rows = make(*arguments, **options)
        texts = {"turbo": f"{PLANTED} drives", "m07": f"{PLANTED} the 7th"}
        return rows.with_columns(pl.col("mode", "machine_id").replace(texts))

    return readings


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def mark(content: Any) -> None:
    for field in content["contract"]["fields"]:
        if field["name"] in ("mode", "machine_id"):
            field["pii"] = True
            field.pop("allowed_values", None)


def by_mode(content: Any) -> None:
    gate = {"metric": "log_loss", "max_segment_gap": 5, "segment": "mode", "min_segment_rows": 30}
    content["evaluation"]["gates"] = [{"metric": "skill", "min": 0.0}, gate]


def strict(content: Any) -> None:
    content["evaluation"]["gates"][1]["max_segment_gap"] = 0.0


class Life:
    """A life in a folder, and every error that it ended in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.errors: list[str] = []
        begin(root)
        self.folder = root / "dags" / "models" / "small"
        rewrite(self.folder / "contract.yaml", mark)
        rewrite(self.folder / "model.yaml", by_mode)

    def stage(self, run: int, stage: str) -> None:
        Place(self.root, run).keep(stage, run_stage(self.root, run, stage))

    def fails(self, kind: type[LifecycleError], call: Callable[..., Any], *arguments: Any) -> str:
        with pytest.raises(kind) as raised:
            call(*arguments)
        self.errors.append(str(raised.value))
        return self.errors[-1]

    def shown(self) -> Mapping[Path, bytes]:
        """Everything in the folder but data."""
        return {
            path: path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
            and path.suffix not in DATA
            and not path.name.startswith("online_")
            and path.name != "golden.json"  # known answers are rows
            and path.parent.name != "golden"
        }


def broken_reading(read: Callable[..., Any]) -> Callable[..., Any]:
    def rows(*arguments: Any) -> Any:
        return [(["other"] * len(values), stamps) for values, stamps in read(*arguments)]

    return rows


def test_no_value_is_shown_whatever_goes_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for module in (small_model, small_life):
        monkeypatch.setattr(module, "readings", planted(small_model.readings))
    life = Life(tmp_path / "life")
    for stage in FIRST_RUN:
        life.stage(1, stage)
    go_live(life.root)
    for stage in ("ingest", "validate", "materialise", "score", "monitor", "training_set", "train"):
        life.stage(2, stage)
    place = Place(life.root, 2)
    snapshot, folder = place.record(Snapshot, "ingest"), place.folder

    # A gate by segments of a personal column; what it says.
    rewrite(life.folder / "model.yaml", strict)
    assert pseudonym(f"{PLANTED} drives") in life.fails(GateError, run_stage, life.root, 2, "evaluate")
    # Rules about personal columns, and rows with them in quarantine.
    life.fails(DataHaltedError, run_stage, life.root, 2, "quarantine")
    contract = folder.contracts["readings"]
    never = [
        one.model_copy(update={"unique": True, "pattern": "[a-z]"} if one.pii else {})
        for one in contract.fields
    ]
    judged = validate.validate(
        place.spec,
        {"readings": contract.model_copy(update={"fields": tuple(never)})},
        place.lake,
        snapshot,
        None,
    )
    life.fails(DataHaltedError, validate.raise_if_halted, judged)
    # An online store that answers otherwise, and one that is behind.
    store = f"sqlite:///{life.root}/online_other.db"
    with monkeypatch.context() as patch:
        patch.setattr(feast_reader.OnlineReader, "rows", broken_reading(feast_reader.OnlineReader.rows))
        said = life.fails(CanaryError, online_features.materialise, folder, place.lake, snapshot, store)
        assert f"'mode': '{MASK}'" in said
    behind = store.replace("other", "behind")
    online_features.materialise(folder, place.lake, Place(life.root, 1).record(Snapshot, "ingest"), behind)
    audit = monitor_online.audit_online(folder, place.lake, snapshot, behind, snapshot.run.as_of)
    assert any(f"'machine_id': '{MASK}'" in example for example in audit.examples)
    place.keep("audit", to_json(audit))
    # Files that cannot be read.
    for name, text in (
        ("short", f"machine_id,read_at,mode\n{PLANTED},2026-01-01T00:00:00Z\n"),
        (
            "wrong",
            f"machine_id,read_at,load\nm01,2026-01-01T00:00:00Z,0.5\nm02,2026-01-01T00:00:00Z,{PLANTED}\n",
        ),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
        readings = place.spec.sources["readings"].model_copy(
            update={"uri": f"{tmp_path}/{name}.csv", "format": "csv"}
        )
        other = place.spec.model_copy(update={"sources": {"readings": readings}})
        marked = tuple(one.model_copy(update={"pii": True}) for one in contract.fields)
        hidden = {"readings": contract.model_copy(update={"fields": marked})}
        with pytest.raises(SourceError) as raised:
            ingest.ingest(other, place.lake, snapshot.run, contracts=hidden)
        life.errors.append(str(raised.value))
    # A training that cannot take what it gets.
    code = (life.folder / "training.py").read_text()
    (life.folder / "training.py").write_text(code.replace('(encoder, ["mode"])', '("passthrough", ["mode"])'))
    life.stage(2, "training_set")
    life.fails(LifecycleError, run_stage, life.root, 2, "train")

    out, err = capfd.readouterr()
    said = "\n".join([*life.errors, caplog.text, out, err])
    assert PLANTED not in said
    shown = life.shown()
    assert not [str(path) for path, content in shown.items() if PLANTED.encode() in content]
    looked_at = {path.name for path in shown}
    assert {"evidently.json", "mlflow.db", "profile.json", "report.html", "failure.json"} <= looked_at
    profile = place.record(Training, "train").profile_path
    assert pseudonym(f"{PLANTED} drives").encode() in place.lake.read_bytes(profile)


def test_numbers_are_profiled_by_their_first_digits_and_texts_under_pseudonyms() -> None:
    rows = pl.DataFrame({"salary": [123_456.0, 0.98765, None], "name": ["Ann", "Ann", None]})
    columns = [ColumnSpec("salary", "float", personal=True), ColumnSpec("name", "string", personal=True)]
    found = make_profile(rows, columns).columns
    salary, name = found["salary"], found["name"]
    assert isinstance(salary, NumericColumn)
    assert isinstance(name, CategoricalColumn)
    assert (salary.min, salary.max, salary.missing) == (0.99, 120_000.0, 1)
    assert salary.quantiles.means.tolist() == [0.99, 120_000.0]
    assert (name.counts, name.missing) == ({pseudonym("Ann"): 2}, 1)


def test_a_missing_value_is_no_secret() -> None:
    assert masked({"a": "x", "b": None, "c": 1}, {"a", "b"}) == {"a": MASK, "b": None, "c": 1}


def quoting() -> Mapping[str, Callable[[], Any]]:
    from sklearn.preprocessing import OrdinalEncoder

    name = pl.Series("name", [PLANTED])
    return {
        "Polars cast": lambda: name.cast(pl.Float64),
        "Polars time": lambda: name.str.to_datetime("%Y"),
        "Polars types": lambda: pl.Series([1, PLANTED]),
        "NumPy": lambda: np.array([PLANTED]).astype(float),
        "Python": lambda: float(PLANTED),
        "pandas": lambda: name.to_pandas().astype(float),
        "Arrow": lambda: pa.array([PLANTED]).cast(pa.int64()),
        "scikit-learn": lambda: OrdinalEncoder().fit([["a"]]).transform([[PLANTED]]),
    }


@pytest.mark.parametrize("library", quoting())
def test_what_libraries_quote_is_taken_out(library: str) -> None:
    with pytest.raises(Exception, match=PLANTED) as raised:
        quoting()[library]()
    assert PLANTED not in without_values(str(raised.value))
