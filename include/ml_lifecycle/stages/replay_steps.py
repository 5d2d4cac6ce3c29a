"""A logged request held against the training path, step by step. Pure: what was logged and what is there now.

Values are compared as a model tells them apart: what differs by no more than the rounding of 32 bits is the
same feature, and is looked at once more in the type that the model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ml_lifecycle.records import ColumnSpec, TaskType
from ml_lifecycle.stages.feature_tables import INSTANT

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_replay import Event, View

Cause = Literal["stale", "ahead", "code", "skew"]

_ROUNDING = 1e-6  # relative; 32 bits hold some 7 digits
# A batch is summed in another order than a row: the last bits of an answer differ.
_SUMMED = 1e-5

Values = Mapping[str, object]


@dataclass(frozen=True)
class Difference:
    """Where a request and its replay part.

    :param step: ``features: view:feature``, ``types: feature``, ``model`` or ``outputs: name``
    :param cause: of features. ``stale``: the row of an older event was served; ``ahead``: of one that the
        request's moment did not know yet; ``code``: another state of the model folder computes what was
        served, that of the version does not; ``skew``: no row of the table has what was served
    :param age: between the two events; None if nothing was served
    """

    step: str
    logged: object = None
    replayed: object = None
    cause: Cause | None = None
    age: timedelta | None = None
    detail: str | None = None

    @property
    def is_mismatch(self) -> bool:
        """Whether it is no matter of time."""
        return self.cause in (None, "code", "skew")

    @property
    def view(self) -> str:
        """The view that a difference of features is of."""
        return self.step.removeprefix("features: ").split(":")[0]


def same(one: object, other: object) -> bool:
    """Whether two values of a feature are alike but for rounding; missing ones are."""
    one, other = _plain(one), _plain(other)
    if one is None or other is None or isinstance(one, str) or isinstance(other, str):
        return one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or math.isclose(one, other, rel_tol=_ROUNDING)
    return one == other


def _plain(value: object) -> object:
    """Missing text is the empty one, a missing number NaN."""
    if value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def explain(
    view: View, events: Sequence[Event], logged: Values, moment: datetime, known_by: datetime
) -> Difference | None:
    """Why a stored view's features are not what the join says; None if they are what was known then.

    :param events: of the request's key, in the order in which they count
    :param moment: at which rows count; what came later did not
    :param known_by: rows created later are left out, where the table says when they were
    """
    last = moment - INSTANT
    known = [event for event in events if event.created is None or event.created <= known_by]
    past = [event for event in known if event.at <= last]
    newest = past[-1] if past else None
    right = _served(view, newest, last)
    if not _differing(view, logged, right):
        return None
    first = _differing(view, logged, right)[0]

    def found(cause: Cause, feature: str, age: timedelta | None = None) -> Difference:
        return Difference(f"features: {view.name}:{feature}", logged.get(feature), right[feature], cause, age)

    if newest is not None:
        for event in reversed(past[:-1]):
            if not _differing(view, logged, _served(view, event, last)):
                return found("stale", first, newest.at - event.at)
        if not _differing(view, logged, _served(view, None, last)):
            return found("stale", first)
    for event in known[len(past) :]:
        if not _differing(view, logged, event.values):
            return found("ahead", first, event.at - last)
    if not past:
        return found("skew", first)
    # What is nearest was meant: a view of many features is rarely wrong in all of them.
    rows = [_served(view, event, last) for event in reversed(past)]
    nearest = min(rows, key=lambda values: len(_differing(view, logged, values)))
    feature = _differing(view, logged, nearest)[0]
    return Difference(f"features: {view.name}:{feature}", logged.get(feature), nearest[feature], "skew")


def _served(view: View, event: Event | None, last: datetime) -> Values:
    """What a server gives of a row at a moment."""
    if event is None or (view.lifetime is not None and event.at < last - view.lifetime):
        return dict.fromkeys(view.features)
    return event.values


def _differing(view: View, logged: Values, values: Values) -> list[str]:
    # A model may have been trained without some of today's features.
    return [name for name in view.features if name in logged and not same(logged[name], values[name])]


def typed(column: ColumnSpec, value: object) -> Any:
    """A value in the type that the training set has it in.

    :raises ValueError: the type cannot hold it; the message does not show it. Retry: no.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and column.type in ("float", "string"):
        return np.float32("nan") if column.type == "float" else ""
    if column.type == "float" and number:
        return np.float32(value)  # type: ignore[arg-type]
    if column.type == "int" and number and float(value) == int(value):  # type: ignore[arg-type, call-overload]
        return int(value)  # type: ignore[call-overload]
    fits = (column.type == "bool" and isinstance(value, bool)) or (
        column.type == "string" and isinstance(value, str)
    )
    if not fits:
        kind = "missing" if value is None else type(value).__name__
        raise ValueError(f"a {column.type} column was served a value that is {kind}")
    return value


def compare_types(columns: Sequence[ColumnSpec], logged: Values, offline: Values | None) -> Difference | None:
    """The first column whose value does not fit it, or is another one in the model's type."""
    for column in columns:
        step, value = f"types: {column.name}", logged.get(column.name)
        try:
            served = typed(column, value)
        except ValueError as error:
            right = None if offline is None else offline.get(column.name)
            return Difference(step, value, right, detail=str(error))
        if offline is None or column.name not in offline or not same(value, offline[column.name]):
            continue
        try:
            trained = typed(column, offline[column.name])
        except ValueError:
            continue  # there is no training set with such a row
        if served != trained and not (served != served and trained != trained):
            detail = f"they are not the same {column.type}"
            return Difference(step, value, offline[column.name], detail=detail)
    return None


@dataclass(frozen=True)
class Answer:
    """What the model says of one row.

    :param values: class probabilities, or the prediction alone
    :param label: None for regression
    """

    values: tuple[float, ...]
    label: object


def compare_outputs(task: TaskType, outputs: Values, answer: Answer, threshold: float) -> Difference | None:
    """The first output that differs: probabilities or prediction, then the decision."""
    name = "prediction" if task == "regression" else "probabilities"
    found = outputs.get(name)
    given = [found] if task == "regression" else found
    if not isinstance(given, list) or not _close(given, answer.values):
        right = answer.values[0] if task == "regression" else [*answer.values]
        return Difference(f"outputs: {name}", found, right)
    if task == "regression" or str(outputs.get("label")) == str(answer.label):
        return None
    if task == "binary" and math.isclose(answer.values[-1], threshold, abs_tol=_SUMMED):
        return None
    detail = f"released with the threshold {threshold:g}" if task == "binary" else None
    return Difference("outputs: label", outputs.get("label"), answer.label, detail=detail)


def _close(given: Sequence[object], right: Sequence[float]) -> bool:
    numbers = [float("nan") if one is None else one for one in given]
    if len(numbers) != len(right) or not all(isinstance(one, int | float) for one in numbers):
        return False
    return bool(np.allclose(numbers, right, rtol=_SUMMED, atol=_ROUNDING, equal_nan=True))  # type: ignore[arg-type]
