"""How the model is made. Runs in the training pod, on the training set and nothing else."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder


def train(training_set: pd.DataFrame, labels: pd.Series, parameters: dict[str, Any], seed: int) -> Pipeline:
    """A fitted estimator; for regression a regressor.

    scikit-learn's, if skl2onnx converts it, XGBoost's, LightGBM's, or a PyTorch module in a TorchClassifier.

    Floats may be missing, in production too: HistGradientBoosting takes that, most others need an imputer.

    Keep categories in an OrdinalEncoder that knows a code for unseen ones. Do not use the
    ``categorical_features`` of HistGradientBoosting: it converts to ONNX without an error, and wrongly.

    :param training_set: the features, one column each; a missing number is NaN, a missing text is ""
    :param parameters: ``training.parameters`` of model.yaml
    :param seed: ``training.seed`` of model.yaml; use it wherever chance is involved
    """
    categories = ["last_channel"]
    numbers = [column for column in training_set.columns if column not in categories]
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), categories),
        ("passthrough", numbers),
    )
    model = HistGradientBoostingClassifier(random_state=seed, **parameters)
    return make_pipeline(encode, model).fit(training_set, labels)
