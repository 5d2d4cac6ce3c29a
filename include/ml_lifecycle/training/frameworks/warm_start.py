"""scikit-learn in segments: estimators that go on where they were when ``fit()`` is called again."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ml_lifecycle.spec.folder_modules import name_here
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks.grown import Measure, refuse

_SEGMENTS = 5


class PickledState:
    """One object, as a pickle: also for loops of your own, around ``partial_fit`` say.

    Loading a pickle runs what it says. It is found by its digest in the job's folder in the lake: one trusts
    whoever can write there, and they could replace the job and its code as well.

    :ivar value: the object; another one after each segment
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def save(self, path: Path) -> None:
        """Write the pickle."""
        with path.open("wb") as file:
            pickle.dump(self.value, file, protocol=pickle.HIGHEST_PROTOCOL)

    def load(self, path: Path) -> None:
        """Read it back; the object of before is let go first."""
        self.value = None
        with path.open("rb") as file:
            self.value = _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Finds the classes of ``training.py`` in the folder as it is imported here: its place is another one."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        return super().find_class(name_here(module_name), global_name)


def fit(
    estimator: Any,
    rows: Any,
    labels: Any,
    checkpoints: Checkpoints,
    every: int | None,
    sample_weight: Any,
    measure: Measure,
) -> Any:
    """Fit an estimator with ``warm_start``; errors as in :func:`fit_in_segments`.

    Checkpoints are pickles (see :class:`PickledState`), and dear: each holds all trees anew; gradient
    boosting asks them about all rows again; histogram-based boosting sorts the rows into bins besides, and
    takes several times as long as without. Unless ``every`` says otherwise there are few of them, therefore.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    before = estimator.get_params(deep=False)
    histograms = isinstance(estimator, (HistGradientBoostingClassifier, HistGradientBoostingRegressor))
    size = "max_iter" if histograms else "n_estimators"  # of other estimators max_iter is no total
    refuse(estimator, {"no warm_start": "warm_start" not in before, f"no {size}": size not in before})
    weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
    every = -(-before[size] // _SEGMENTS) if every is None else every
    state = PickledState(estimator.set_params(warm_start=True))
    for segment in checkpoints.segments(state, steps=before[size], every=every):
        state.value.set_params(**{size: segment.stop, **_seeded(before, segment.seed)})
        state.value.fit(rows, labels, **weighted)
        if (state.value.n_iter_ if histograms else len(state.value.estimators_)) < segment.stop:
            break  # it has stopped early
        measure(lambda: state.value)
    return state.value.set_params(
        **{name: before[name] for name in ("warm_start", size, *_seeded(before, 0))}
    )


def _seeded(parameters: dict[str, Any], seed: int) -> dict[str, Any]:
    return {"random_state": seed} if "random_state" in parameters else {}
