"""Calling the user's ``training.py``: everything that can be wrong with it ends in one clear error."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ml_lifecycle.errors import FeatureError, TrainingError
from ml_lifecycle.metrics import label_texts, plain_labels
from ml_lifecycle.personal import without_values
from ml_lifecycle.records import TaskType
from ml_lifecycle.spec.folder import load_module
from ml_lifecycle.training.chance import seed_chance
from ml_lifecycle.training.checkpoints import Checkpoints

_SIGNATURE = "train(training_set, labels, parameters, seed)"
_CHECKPOINTS = "checkpoints"
_LAST_FRAMES = 15
_LONGEST_TEXT = 2_000


def load_train(folder: Path) -> Callable[..., Any]:
    """The folder's ``train`` function.

    :raises TrainingError: ``training.py`` does not import, or has no such function. Retry: no.
    """
    try:
        train: Callable[..., Any] | None = getattr(load_module(folder, "training"), "train", None)
    except BaseException as error:  # noqa: BLE001 - importing runs the user's code, which raises what it likes
        cause = error.__cause__ or error
        raise TrainingError(f"training.py does not import: {described(cause)}") from cause
    if not callable(train):
        raise TrainingError(f"training.py has no function {_SIGNATURE}")
    try:
        inspect.signature(train).bind(None, None, None, None, **_fifth(train, None))
    except TypeError as error:
        raise TrainingError(
            f"training.py: train{inspect.signature(train)} cannot be called as {_SIGNATURE}, nor with "
            f"a fifth parameter named {_CHECKPOINTS}: {error}"
        ) from error
    return train


def _fifth(train: Callable[..., Any], checkpoints: Checkpoints | None) -> dict[str, Any]:
    """The checkpoints, if the function has a parameter of that name."""
    wanted = _CHECKPOINTS in inspect.signature(train).parameters
    return {_CHECKPOINTS: checkpoints} if wanted else {}


def labels_of(frame: pl.DataFrame, column: str, task: TaskType) -> pl.Series:
    """The labels as they are fitted on: float64 for regression, else int64 or text.

    :raises FeatureError: the column is missing, has nulls, a single class or no numbers. Retry: no.
    """
    if column not in frame.columns:
        raise FeatureError(f"the training rows have no label column {column!r}")
    labels = frame[column]
    if nulls := labels.null_count():
        raise FeatureError(f"{nulls} of {frame.height} training rows have no label in {column!r}")
    if task == "regression":
        if not (labels.dtype.is_numeric() or labels.dtype == pl.Boolean):
            raise FeatureError(f"regression needs numbers as labels, {column!r} holds {labels.dtype}")
        return labels.cast(pl.Float64)
    labels = plain_labels(labels)
    classes = labels.unique().sort().to_list()
    if len(classes) < 2 or (task == "binary" and len(classes) > 2):
        wanted = "exactly two classes" if task == "binary" else "two classes or more"
        raise FeatureError(f"{task} needs {wanted} among the training rows, {column!r} holds {classes[:20]}")
    return labels


def fit(
    train: Callable[..., Any],
    served: pl.DataFrame,
    labels: pl.Series,
    parameters: Mapping[str, Any],
    seed: int,
    task: TaskType,
    checkpoints: Checkpoints,
) -> Any:
    """Call ``train`` on the features as they are served, and check what it returns.

    :param checkpoints: passed on if ``train`` has a parameter of that name
    :raises TrainingError: it raised, or returned something that is no fitted estimator. Retry: no.
    :raises StaleAttemptError: a newer attempt has begun. Retry: no.
    :raises ServerUnavailableError: the lake did not answer when it should have resumed. Retry: yes.
    :raises NoSpaceError: there was no room to resume. Retry: yes, when there is room.
    """
    seed_chance(seed)
    try:
        estimator = train(
            served.to_pandas(), labels.to_pandas(), dict(parameters), seed, **_fifth(train, checkpoints)
        )
    except MemoryError:
        raise
    except BaseException as error:  # it is the user's code, which raises what it likes
        checkpoints.raise_if_ended()
        raise TrainingError(f"train() raised {described(error)}") from error
    checkpoints.raise_if_ended()
    _check_estimator(estimator, task)
    if task != "regression":
        _check_classes(estimator, labels, task)
    return estimator


def described(error: BaseException) -> str:
    """Type and text of what the user's code raised: of bounded length, whatever it says of itself."""
    return f"{type(error).__name__}: {_text_of(str, error)}"


def _text_of(show: Callable[[Any], str], value: Any) -> str:
    try:
        text = without_values(show(value))
    except Exception as error:  # noqa: BLE001 - it is the user's class
        return f"(its text cannot be had: {type(error).__name__})"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"


def _check_classes(estimator: Any, labels: pl.Series, task: TaskType) -> None:
    """An estimator fitted on labels of its own would be measured, and served, as something it is not."""
    try:
        found = classes_of(estimator, task)
    except Exception as error:  # none, or several outputs: whatever the user's estimator has there
        raise TrainingError(
            f"train() returned {_text_of(repr, estimator)[:200]}, whose classes_ cannot be read: "
            f"{described(error)}"
        ) from error
    given = label_texts(labels.unique().sort()).to_list()
    if not set(found) <= set(given) or len(found) < 2:
        raise TrainingError(
            f"train() returned an estimator of the classes {list(found[:20])}, the labels are {given[:20]}: "
            "fit it on the labels it was given"
        )


def _check_estimator(estimator: Any, task: TaskType) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    needed = ["predict"] if task == "regression" else ["predict", "predict_proba"]
    missing = [name for name in needed if not callable(getattr(estimator, name, None))]
    if missing or isinstance(estimator, type):
        what = (
            f"the class {estimator.__name__}"
            if isinstance(estimator, type)
            else _text_of(repr, estimator)[:200]
        )
        raise TrainingError(
            f"train() returned {what}; for {task} it must return a fitted estimator "
            f"with {' and '.join(needed)}"
        )
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise TrainingError(
            f"train() returned an estimator that is not fitted: {described(error)}"
        ) from error


def classes_of(estimator: Any, task: TaskType) -> tuple[str, ...]:
    """Class labels in output order, as text; empty for regression."""
    if task == "regression":
        return ()
    return tuple(label_texts(pl.Series(np.asarray(estimator.classes_).tolist())))


def user_frames(error: BaseException, folder: Path) -> tuple[str, ...]:
    """The traceback from the first frame in the model folder on, paths relative to the folder."""
    frames = traceback.extract_tb(error.__traceback__)
    prefix = f"{folder}/"
    first = next((i for i, frame in enumerate(frames) if frame.filename.startswith(prefix)), len(frames))
    return tuple(
        f"{frame.filename.removeprefix(prefix)}:{frame.lineno} in {frame.name}: {frame.line or ''}"
        for frame in frames[first:][-_LAST_FRAMES:]
    )
