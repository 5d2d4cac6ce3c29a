"""The later steps of a replay: the types, the model and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import as_served, decide, feeds, open_session, predict
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import ColumnSpec, Training, from_json
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.replay_rows import ServedRow
from ml_lifecycle.stages.replay_steps import Answer, Difference, compare_outputs, compare_types, typed


class ServedModels:
    """The models that answered, by what the log and the published routes say of them."""

    def __init__(
        self,
        spec: ModelSpec,
        lake: Lake,
        environment_lake: Lake,
        training_of: Callable[[str], Training | None],
    ) -> None:
        self._spec, self._lake, self._environment_lake = spec, lake, environment_lake
        self._training_of = training_of
        self._variants: dict[tuple[int, str], Variant | str | None] = {}
        self._opened: dict[str, tuple[Training, Any] | str] = {}

    def compare(self, row: ServedRow, offline: Mapping[str, object] | None) -> Difference | None:
        """The first of types, model and outputs that differs."""
        variant, opened = self._variant(row), self._open(row.digest)
        columns: Sequence[ColumnSpec] = () if isinstance(opened, str) else opened[0].columns
        if (difference := compare_types(columns, row.features, offline)) is not None:
            return difference
        if isinstance(variant, str) or isinstance(opened, str):
            detail = variant if isinstance(variant, str) else opened
            return Difference("model", row.digest, detail=str(detail))
        if variant is not None and variant.model_digest != row.digest:
            detail = f"revision {row.revision} serves version {row.version} as another model"
            return Difference("model", row.digest, variant.model_digest, detail=detail)
        training, session = opened
        threshold = self._spec.evaluation.threshold if variant is None else variant.threshold
        try:
            answer = self._answer(training, session, row, threshold)
        except LifecycleError as error:
            return Difference("model", row.digest, detail=f"{type(error).__name__}: {error}")
        return compare_outputs(self._spec.task, row.outputs, answer, threshold)

    def _answer(self, training: Training, session: Any, row: ServedRow, threshold: float) -> Answer:
        values = {one.name: [typed(one, row.features.get(one.name))] for one in training.columns}
        found = predict(session, feeds(as_served(pl.DataFrame(values, strict=False), training.columns)))
        if found.labels is None:
            return Answer(tuple(found.outputs.tolist()), None)
        labels = found.labels
        if self._spec.task == "binary":
            labels = decide(labels, found.outputs, training.classes, threshold)
        return Answer(tuple(found.outputs[0].tolist()), labels[0])

    def _variant(self, row: ServedRow) -> Variant | str | None:
        """What the published revision says; None if it is not there to be read."""
        key = (row.revision, row.version)
        if key not in self._variants:
            path = f"routes/{self._spec.endpoint}/{row.revision:08d}.json"
            route = None
            if self._environment_lake.exists(path):
                route = from_json(Route, self._environment_lake.read_json(path))
            served = [] if route is None else [one for one in route.variants if one.version == row.version]
            missing = None if route is None else f"revision {row.revision} serves no version {row.version}"
            self._variants[key] = served[0] if served else missing
        return self._variants[key]

    def _open(self, digest: str) -> tuple[Training, Any] | str:
        """The training and its ONNX file; or why there is none."""
        if digest not in self._opened:
            self._opened[digest] = self._read(digest)
        return self._opened[digest]

    def _read(self, digest: str) -> tuple[Training, Any] | str:
        try:
            training = self._training_of(digest)
            if training is None:
                return "no release has a model with this digest"
            return training, open_session(self._lake.read_bytes(training.model_path, digest))
        except LifecycleError as error:
            return f"{type(error).__name__}: {error}"
