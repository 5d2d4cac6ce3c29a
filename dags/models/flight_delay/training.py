"""How the model is made. Runs in the training pod, on the training set and nothing else."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "departs_from", "destination", "manufacturer"]


def train(
    training_set: pd.DataFrame, labels: pd.Series, parameters: dict[str, Any], seed: int, checkpoints: Any
) -> Pipeline:
    """Boosted trees, or a network if the parameters say ``trainer: network``."""
    trainer = parameters.pop("trainer", "trees")
    if trainer == "trees":
        return _train_trees(training_set, labels, parameters, seed)
    if trainer == "network":
        from .network import Settings, train_network  # here, as PyTorch takes seconds and room

        settings = Settings(**parameters)
        return train_network(training_set, labels, CATEGORIES, settings, seed, checkpoints)
    raise ValueError(f"trainer is {trainer!r}: there are trees and network")


def _train_trees(
    training_set: pd.DataFrame, labels: pd.Series, parameters: dict[str, Any], seed: int
) -> Pipeline:
    """The categories get a code each, and unseen ones a code of their own."""
    numbers = [column for column in training_set.columns if column not in CATEGORIES]
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), CATEGORIES),
        ("passthrough", numbers),
    )
    model = HistGradientBoostingClassifier(random_state=seed, **parameters)
    return make_pipeline(encode, model).fit(training_set, labels)
