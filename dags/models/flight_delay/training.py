"""How the model is made. Runs in the training pod, on the training set and nothing else."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "departs_from", "destination", "manufacturer"]


def train(training_set: pd.DataFrame, labels: pd.Series, parameters: dict[str, Any], seed: int) -> Pipeline:
    """Boosted trees; the categories get a code each, and unseen ones a code of their own."""
    numbers = [column for column in training_set.columns if column not in CATEGORIES]
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), CATEGORIES),
        ("passthrough", numbers),
    )
    model = HistGradientBoostingClassifier(random_state=seed, **parameters)
    return make_pipeline(encode, model).fit(training_set, labels)
