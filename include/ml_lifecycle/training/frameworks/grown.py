"""What XGBoost and LightGBM have in common: trees are added, and each builds on the scores of those before.

To go on from a saved model, both libraries ask all its trees about all training rows again, which takes as
long as a good part of the training. So a checkpoint holds those scores as well: each segment grows a model of
its own on top of them, and the models are joined at the end. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Measure = Callable[[Callable[[], Any]], None]
"""Called after a segment, with what makes the estimator as it is then."""


class Grown:
    """The trees so far, and what they say of the training rows.

    :ivar models: one a segment, as the library writes it
    :ivar scores: raw scores of the training rows, in the library's own shape and precision; None at first
    """

    def __init__(self) -> None:
        self.models: list[bytes] = []
        self.scores: Array | None = None

    def add(self, model: bytes, scores: Array) -> None:
        """A segment's trees, and the scores by all there are now."""
        self.models.append(model)
        self.scores = scores

    def save(self, path: Path) -> None:
        """Write plain arrays, no pickles."""
        assert self.scores is not None  # a segment has ended
        models = {f"model_{i}": np.frombuffer(model, np.uint8) for i, model in enumerate(self.models)}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, scores=self.scores, **models)

    def load(self, path: Path) -> None:
        """Take the trees and scores from such a file."""
        self.models, self.scores = [], None
        with np.load(path, allow_pickle=False) as saved:
            self.models = [saved[f"model_{i}"].tobytes() for i in range(len(saved) - 1)]
            self.scores = saved["scores"]


def refuse(estimator: Any, reasons: dict[str, Any]) -> None:
    """:raises ValueError: one of the reasons holds. Retry: no."""
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"{type(estimator).__name__} cannot be fitted in segments with {', '.join(found)}")
