"""Conversion: the served form answers as the estimator does, and its bytes depend on the estimator alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)

from ml_lifecycle.adapters.onnx import as_served, convert, feeds, open_session, predict
from ml_lifecycle.errors import ConversionError, FeatureError
from ml_lifecycle.records import ColumnSpec

COLUMNS = (
    ColumnSpec("distance", "float"),
    ColumnSpec("wind", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("weekend", "bool"),
    ColumnSpec("carrier", "string", nullable=True),
)
NUMBERS = COLUMNS[:2]


def rows(n: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "distance": rng.normal(500, 200, n),
            "wind": [None if rng.random() < 0.2 else rng.normal(10, 3) for _ in range(n)],
            "hour": rng.integers(0, 24, n),
            "weekend": rng.random(n) < 0.3,
            "carrier": rng.choice(["AA", "BB", None], n).tolist(),
        },
        schema_overrides={"wind": pl.Float64, "carrier": pl.String},
    )


def encode(*numbers: str) -> ColumnTransformer:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return ColumnTransformer([("text", encoder, ["carrier"]), ("numbers", "passthrough", list(numbers))])


def answer(estimator: Any, columns: tuple[ColumnSpec, ...], task: Any, frame: pl.DataFrame) -> Any:
    return predict(open_session(convert(estimator, columns, task)), feeds(as_served(frame, columns)))


def late(frame: pl.DataFrame) -> np.ndarray[Any, Any]:
    return np.asarray((frame["distance"] > 500) ^ (frame["hour"] > 12)).astype(np.int64)


def test_binary_with_every_column_type_missing_values_and_an_unseen_category() -> None:
    frame = rows()
    served = as_served(frame, COLUMNS)
    numbers = [column.name for column in COLUMNS if column.type != "string"]
    estimator = make_pipeline(encode(*numbers), HistGradientBoostingClassifier(max_iter=10, random_state=0))
    estimator.fit(served.to_pandas(), late(frame))
    unseen = frame.with_columns(pl.lit("ZZ").alias("carrier"))
    for asked in (frame, unseen):
        got = answer(estimator, COLUMNS, "binary", asked)
        expected = estimator.predict_proba(as_served(asked, COLUMNS).to_pandas())
        assert np.abs(got.outputs - expected).max() < 1e-6
        assert got.labels.tolist() == expected.argmax(axis=1).tolist()


def test_multiclass_with_text_labels() -> None:
    frame = rows()
    served = as_served(frame, COLUMNS)
    scale = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer(
        [("text", OneHotEncoder(handle_unknown="ignore"), ["carrier"]), ("n", scale, ["wind", "hour"])]
    )
    estimator = make_pipeline(columns, LogisticRegression())
    estimator.fit(served.to_pandas(), np.array(["early", "noon", "late"])[frame["hour"].to_numpy() // 8])
    got = answer(estimator, COLUMNS, "multiclass", frame)
    assert got.outputs.shape == (300, 3)
    assert np.abs(got.outputs - estimator.predict_proba(served.to_pandas())).max() < 1e-5
    assert set(got.labels) <= {"early", "noon", "late"}


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingRegressor(max_iter=10, random_state=0),
        make_pipeline(SimpleImputer(), StandardScaler(), LinearRegression()),
    ],
    ids=["bare", "pipeline"],
)
def test_regression_answers_one_number_a_row(estimator: Any) -> None:
    frame = rows()
    served = as_served(frame, NUMBERS)
    estimator.fit(served.to_pandas(), frame["distance"].to_numpy() * 2)
    got = answer(estimator, NUMBERS, "regression", frame)
    assert got.labels is None
    assert got.outputs.shape == (300,)
    assert got.outputs == pytest.approx(estimator.predict(served.to_pandas()), rel=1e-4)


def test_a_search_is_served_as_what_it_found() -> None:
    frame = rows()
    served = as_served(frame, NUMBERS).to_pandas()
    search = GridSearchCV(HistGradientBoostingClassifier(random_state=0), {"max_iter": [3, 5]}, cv=2)
    search.fit(served, late(frame))
    got = answer(search, NUMBERS, "binary", frame)
    assert np.abs(got.outputs - search.predict_proba(served)).max() < 1e-6


def test_the_same_estimator_gives_the_same_bytes() -> None:
    frame = rows()
    served = as_served(frame, COLUMNS).to_pandas()
    made = [
        convert(
            make_pipeline(encode("distance", "hour"), RandomForestClassifier(5, random_state=0)).fit(
                served, late(frame)
            ),
            COLUMNS,
            "binary",
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_an_estimator_that_does_not_convert_is_named() -> None:
    frame = as_served(rows(), NUMBERS[:1]).to_pandas()
    with pytest.raises(ConversionError, match="LocalOutlierFactor does not convert to ONNX"):
        convert(LocalOutlierFactor(novelty=True).fit(frame), NUMBERS[:1], "regression")


class Doubled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What a team may write itself, and skl2onnx cannot know."""

    def fit(self, rows: Any, labels: Any = None) -> Doubled:
        self.fitted_ = True
        return self

    def transform(self, rows: Any) -> Any:
        return rows * 2


@pytest.mark.parametrize(
    ("part", "column", "named"),
    [
        (Doubled(), "distance", "Doubled (in ColumnTransformer → LinearRegression) .*: skl2onnx has no conv"),
        (make_pipeline(StandardScaler(), Doubled()), "distance", "Doubled (in ColumnTransformer → Linear"),
        (FunctionTransformer(np.tanh), "distance", "FunctionTransformer (in ColumnTransformer → LinearReg"),
        (SplineTransformer(), "distance", "SplineTransformer (in ColumnTransformer → LinearRegression)"),
        # These have a converter, which fails; its message does not name them.
        (QuantileTransformer(n_quantiles=9), "hour", "QuantileTransformer (in ColumnTransformer → Linear"),
        (
            OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=0.4),
            "carrier",
            "OneHotEncoder (in ColumnTransformer → LinearRegression) .*: NotImplementedError: Infrequent",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_part_that_does_not_convert_is_named(part: Any, column: str, named: str) -> None:
    frame = as_served(rows(), COLUMNS).to_pandas()
    estimator = make_pipeline(ColumnTransformer([("part", part, [column])]), LinearRegression())
    estimator.fit(frame, frame["distance"])
    pattern = named.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ConversionError, match=f"^{pattern}"):
        convert(estimator, COLUMNS, "regression")


def test_as_served_makes_missing_values_what_the_wire_has() -> None:
    frame = pl.DataFrame({"wind": [1.0, None], "carrier": ["AA", None]})
    served = as_served(frame, (COLUMNS[1], COLUMNS[4]))
    assert served.schema == {"wind": pl.Float32, "carrier": pl.String}
    assert np.isnan(served["wind"][1])
    assert served["carrier"][1] == ""


def test_as_served_refuses_what_a_type_cannot_hold() -> None:
    with pytest.raises(FeatureError, match="'hour' is int and has 1 nulls"):
        as_served(pl.DataFrame({"hour": [1, None]}), (COLUMNS[2],))
    with pytest.raises(FeatureError, match="columns are missing: hour; there are wind"):
        as_served(pl.DataFrame({"wind": [1.0]}), (COLUMNS[2],))
