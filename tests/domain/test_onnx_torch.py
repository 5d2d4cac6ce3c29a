"""A trained PyTorch module is served as ONNX, alone or behind its preprocessing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from tests.domain.frameworks_kit import NUMBERS, failed, gates, holdout, training_rows
from tests.domain.training_world import COLUMNS
from torch import nn

from ml_lifecycle.adapters.onnx import convert, feeds, open_session, predict
from ml_lifecycle.errors import ConversionError
from ml_lifecycle.records import TaskType
from ml_lifecycle.training.labels import EncodedLabels
from ml_lifecycle.training.torch_estimator import TorchClassifier, TorchRegressor

CLASSES: dict[str, list[Any]] = {"binary": [0, 1], "multiclass": ["early", "late", "on time"]}


class Network(nn.Module):  # type: ignore[misc]
    """Embeds the code in the first column; the others are numbers, missing ones NaN."""

    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 3)
        self.layers = nn.Sequential(
            nn.Linear(3 + 2 * (columns - 1), 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, outputs),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        codes = (rows[:, 0] + 1).clamp(0, 7).to(torch.int64)
        numbers = rows[:, 1:]
        missing = torch.isnan(numbers)
        numbers = torch.where(missing, torch.zeros_like(numbers), numbers)
        return self.layers(torch.cat([self.embedding(codes), numbers, missing.to(torch.float32)], dim=1))


def network(columns: int, outputs: int, seed: int = 0) -> nn.Module:
    """Weights are as good as trained ones; the running means are of rows it has seen."""
    torch.manual_seed(seed)
    made = Network(columns, outputs)
    made.train()
    made(torch.randn(64, columns))
    return made


def encode() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("text", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["carrier"]),
            ("numbers", StandardScaler(), ["distance", "wind", "hour"]),
            ("flags", "passthrough", ["weekend"]),
        ]
    )


def estimator(task: TaskType, module: nn.Module) -> Any:
    if task == "regression":
        return TorchRegressor(module, mean=700.0, scale=250.0)
    return TorchClassifier(module, CLASSES[task])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_task_behind_its_preprocessing_with_nulls_text_and_unseen_categories(task: TaskType) -> None:
    rows, labels = training_rows(task)
    outputs = {"binary": 2, "multiclass": 3, "regression": 1}[task]
    model = make_pipeline(encode(), estimator(task, network(5, outputs))).fit(rows, labels)
    if task != "regression":
        assert model.classes_.tolist() == CLASSES[task]
    assert failed(gates(model, task, spread=250.0 if task == "regression" else 1.0)) == []


class Flat(nn.Module):  # type: ignore[misc]
    """Answers one number a row, ``(n,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nan_to_num(rows) / 1000)[:, 0]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_alone_with_one_answer_a_row(task: TaskType) -> None:
    torch.manual_seed(1)
    assert failed(gates(estimator(task, Flat()), task, NUMBERS)) == []


def test_any_number_of_rows() -> None:
    torch.manual_seed(1)
    session = open_session(convert(estimator("binary", Flat()), NUMBERS, "binary"))
    for n in (1, 2, 3, 100):
        rows = holdout(n).head(n).select("distance", "wind")
        assert predict(session, feeds(rows)).outputs.shape == (n, 2)


def test_behind_sparse_one_hot_columns_and_an_imputer() -> None:
    rows, labels = training_rows("binary")
    encoder = OneHotEncoder(handle_unknown="ignore", max_categories=None)
    columns = ColumnTransformer(
        [
            ("text", encoder, ["carrier"]),
            ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["distance", "wind"]),
        ],
        sparse_threshold=1.0,
    )
    width = columns.fit_transform(rows).shape[1]
    torch.manual_seed(2)
    model = make_pipeline(columns, TorchClassifier(nn.Linear(width, 2), ["no", "yes"])).fit(rows, labels)
    assert failed(gates(model, "binary")) == []


def test_the_same_weights_give_the_same_bytes_without_a_trace_of_where_they_were_made() -> None:
    rows, labels = training_rows("binary")
    made = [
        convert(
            make_pipeline(encode(), estimator("binary", network(5, 2))).fit(rows, labels), COLUMNS, "binary"
        )
        for _ in "ab"
    ]
    assert made[0] == made[1]
    assert b".py" not in made[0]
    assert not any(node.metadata_props for node in onnx.load_from_string(made[0]).graph.node)
    other = make_pipeline(encode(), estimator("binary", network(5, 2, seed=1))).fit(rows, labels)
    assert convert(other, COLUMNS, "binary") != made[0]


def test_trained_in_float64_and_training_mode_it_is_asked_and_served_in_float32_and_evaluation_mode() -> None:
    module = network(5, 2).double().train()
    rows, labels = training_rows("binary")
    model = make_pipeline(encode(), TorchClassifier(module, [0, 1])).fit(rows, labels)
    assert failed(gates(model, "binary")) == []
    assert model.predict_proba(rows).dtype == np.float32
    assert np.array_equal(model.predict_proba(rows), model.predict_proba(rows))  # no dropout


class Branching(Flat):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) if float(rows.sum()) > 0 else super().forward(-rows)


class OfItsFirstBatch(Flat):
    """A weight a row: what a module that was written for one batch size does."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) * torch.ones(3)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            TorchClassifier(Branching(), [0, 1]),
            "PyTorch cannot export Branching: .*may not depend on",
        ),
        (TorchClassifier(OfItsFirstBatch(), [0, 1]), "PyTorch cannot export OfItsFirstBatch"),
        (
            TorchClassifier(nn.Linear(2, 3), [0, 1]),
            "Linear cannot answer rows .*answers 3 logits a row for 2 classes",
        ),
        (
            TorchRegressor(nn.Linear(2, 3)),
            "Linear cannot answer rows .*answers 3 numbers a row, a prediction is one",
        ),
        (TorchRegressor(nn.Linear(7, 1)), "Linear cannot answer rows of 2 columns: RuntimeError"),
        (EncodedLabels(TorchClassifier(Branching(), [0, 1]), ["a", "b"]), "PyTorch cannot export Branching"),
    ],
    ids=["branching", "batch", "logits", "predictions", "columns", "encoded"],
)
def test_a_module_that_cannot_be_exported_is_named_with_the_reason(model: Any, reason: str) -> None:
    task: TaskType = "regression" if isinstance(model, TorchRegressor) else "binary"
    with pytest.raises(
        ConversionError, match=rf"^Torch\w+ \(in ColumnTransformer → Torch\w+\) .*{reason}"
    ) as caught:
        convert(model, NUMBERS, task)
    assert len(str(caught.value)) < 1000


def test_it_is_an_estimator_like_any_other() -> None:
    model = TorchClassifier(Flat(), ["no", "yes"])
    assert clone(model).classes_.tolist() == ["no", "yes"]
    rows = pd.DataFrame({"distance": [1.0, 2.0], "wind": [0.0, float("nan")]}, dtype=np.float32)
    assert set(model.predict(rows)) <= {"no", "yes"}
    assert model.predict_proba(rows).sum(axis=1) == pytest.approx([1, 1])


def test_a_model_without_a_network_imports_no_framework() -> None:
    frame = "as_served(pl.DataFrame({'x': [1.0, 2.0, 3.0]}), columns)"
    code = (
        "import sys, polars as pl\n"
        "from sklearn.linear_model import LinearRegression\n"
        "from ml_lifecycle.adapters.onnx import as_served, convert\n"
        "from ml_lifecycle.records import ColumnSpec\n"
        "columns = (ColumnSpec('x', 'float'),)\n"
        f"convert(LinearRegression().fit({frame}.to_pandas(), [1, 2, 3]), columns, 'regression')\n"
        "print(sorted({'torch', 'xgboost', 'lightgbm', 'onnxmltools', 'onnxscript'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
