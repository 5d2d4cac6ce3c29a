"""How the model is made. Runs in the training pod, on the training set and nothing else."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.linear_model import LogisticRegression


def train(
    training_set: pd.DataFrame, labels: pd.Series, parameters: dict[str, Any], seed: int
) -> LogisticRegression:
    """One straight line between each digit and the others; a small model that converts exactly.

    All pixels have one range, so nothing is scaled: a pixel that no training image has ink in stays harmless.
    """
    return LogisticRegression(random_state=seed, **parameters).fit(training_set, labels)
