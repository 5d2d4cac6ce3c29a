"""The two models that every server here serves: each one ONNX file, with its rows and its route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import open_session
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import ColumnSpec

CLASSES = ("0", "1")
_TRAINING_ROWS = 6000
_CARRIERS = tuple(f"{first}{second}" for first in "ABCD" for second in "WXYZ")
_AIRPORTS = tuple(f"{first}{second}{third}" for first in "AEIOU" for second in "LMNR" for third in "BCDFG")
_WORDS = {"carrier": _CARRIERS, "origin": _AIRPORTS}

# Column → values: 32-bit floats, or text as objects.
Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Model:
    """A model to serve.

    :param name: also its endpoint
    :param data: the ONNX file: an input of shape ``[n, 1]`` a column, outputs ``label`` and ``probabilities``
    """

    name: str
    columns: tuple[ColumnSpec, ...]
    data: bytes

    @property
    def packed(self) -> bool:
        """Whether all columns go into one tensor."""
        return all(column.type == "float" for column in self.columns)

    def draw(self, rows: int, seed: int) -> Rows:
        """Random rows; no two are the same, since each has floats of its own."""
        return _draw(self.columns, rows, np.random.default_rng(seed))

    def answers(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels and probabilities, as ONNX Runtime says: a thousand rows at a time."""
        session = open_session(self.data)
        size = len(rows[self.columns[0].name])
        labels, probabilities = [], []
        for start in range(0, size, 1000):
            feeds = {name: values[start : start + 1000].reshape(-1, 1) for name, values in rows.items()}
            label, probability = session.run(["label", "probabilities"], feeds)
            labels.append(label.reshape(-1))
            probabilities.append(probability)
        return np.concatenate(labels), np.concatenate(probabilities)

    def variant(self, version: str) -> Variant:
        """The model as the only variant of a route."""
        digest = sha256(self.data)
        path = f"models/{digest}.onnx"
        return Variant("champion", version, path, digest, "binary", self.columns, CLASSES)


def floats(names: str) -> tuple[ColumnSpec, ...]:
    """Columns of numbers."""
    return tuple(ColumnSpec(name, "float") for name in names.split())


def packed(seed: int = 0) -> Model:
    """Twelve numbers a row, on the wire one FP32 tensor.

    :param seed: another one gives a model with other answers
    """
    return _train("packed", floats("a b c d e f g h i j k l"), seed)


def strings() -> Model:
    """Two strings and four numbers a row, a tensor each."""
    words = tuple(ColumnSpec(name, "string") for name in _WORDS)
    return _train("strings", words + floats("wind hour distance delay"), 0)


MODELS = {"packed": packed, "strings": strings}


def release(lake: Lake, model: Model, revision: int = 1) -> None:
    """Publish the model; its version is the route's revision."""
    variant = model.variant(str(revision))
    if not lake.exists(variant.model_path):
        lake.write_bytes(variant.model_path, model.data)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    publish(lake, Route(model.name, model.name, revision, (variant,), "0" * 64, moment))


def _draw(columns: tuple[ColumnSpec, ...], rows: int, rng: np.random.Generator) -> Rows:
    return {
        column.name: rng.choice(np.array(_WORDS[column.name], dtype=object), rows)
        if column.type == "string"
        else rng.normal(size=rows).astype(np.float32)
        for column in columns
    }


def _train(name: str, columns: tuple[ColumnSpec, ...], seed: int) -> Model:
    import pandas as pd
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    rng = np.random.default_rng(seed)
    table = pd.DataFrame(_draw(columns, _TRAINING_ROWS, rng))
    words = [column.name for column in columns if column.type == "string"]
    numbers = [column.name for column in columns if column.type == "float"]
    signal = sum(table[word].map(hash_of) for word in words) + table[numbers] @ rng.normal(size=len(numbers))
    late = (signal + rng.normal(size=_TRAINING_ROWS) > 0).astype(int)
    # Categories by number, and no `categorical_features`: with it the conversion would be wrong.
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    parts: list[tuple[str, Any, list[str]]] = [("words", codes, words)] if words else []
    typed = ColumnTransformer([*parts, ("numbers", "passthrough", numbers)])
    trees = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=8, random_state=seed)
    types = {"float": FloatTensorType, "string": StringTensorType}
    converted = to_onnx(
        make_pipeline(typed, trees).fit(table, late),
        initial_types=[(column.name, types[column.type]([None, 1])) for column in columns],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    return Model(name, columns, converted.SerializeToString())


def hash_of(word: str) -> float:
    """A number between -1 and 1 that looks random, the same in every process."""
    return int(sha256(word.encode())[:8], 16) / 2**31 - 1
