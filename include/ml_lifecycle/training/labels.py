"""Labels that an estimator does not take as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone


class EncodedLabels(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier that takes only the classes 0, 1, 2, …, as XGBClassifier does, for labels of any kind.

    To be returned by ``train()``, or to stand at the end of the pipeline it returns.

    :param estimator: the classifier; fitted on the labels' positions already if ``classes`` are given
    :param classes: the labels in order, for an estimator that is fitted already
    """

    def __init__(self, estimator: Any, classes: Any = None) -> None:
        self.estimator = estimator
        self.classes = classes
        if classes is not None:
            self.classes_ = np.asarray(classes)
            self.estimator_ = estimator

    def fit(self, rows: Any, labels: Any, **arguments: Any) -> EncodedLabels:
        """Fit a copy of the estimator on the labels' positions; ``arguments`` go to its own ``fit``."""
        self.classes_, codes = np.unique(np.asarray(labels), return_inverse=True)
        self.estimator_ = clone(self.estimator).fit(rows, codes, **arguments)
        return self

    def predict_proba(self, rows: Any) -> Any:
        """``(n, classes)`` probabilities."""
        return self.estimator_.predict_proba(rows)

    def predict(self, rows: Any) -> Any:
        """``(n,)`` labels."""
        return self.classes_[np.asarray(self.estimator_.predict(rows)).astype(np.int64)]
