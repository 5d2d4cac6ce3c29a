"""A trained PyTorch module as what ``train()`` returns: an estimator like scikit-learn's.

Imported by a ``training.py`` that trains with PyTorch, and by nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

Array = NDArray[Any]

BATCH_ROWS = 8192


class TorchEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both kinds share. Stands alone, or at the end of a pipeline whose steps before it are fitted.

    The module takes one float32 tensor ``(n, columns)``; a category comes as the number that an encoder
    gave it, a missing value as NaN. It is trained already: it is asked, and served, on the CPU, in float32
    and in evaluation mode, and is put there in place.
    """

    module: nn.Module

    def fit(self, rows: Any, labels: Any = None) -> TorchEstimator:
        """Do nothing: the module is trained. So that a pipeline's ``fit`` fits the steps before it."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def network(self) -> nn.Module:
        """What becomes ONNX: from float32 rows to the answers themselves."""
        raise NotImplementedError

    def _answers(self, rows: Any) -> Array:
        dense = rows.toarray() if hasattr(rows, "toarray") else rows  # encoders like to answer sparse
        values = torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))
        network = self.network()
        with torch.inference_mode():
            answers: Array = torch.cat([network(batch) for batch in values.split(BATCH_ROWS)]).numpy()
        return answers

    def _as_served(self) -> nn.Module:
        """The module for answers; one that still trains is copied, and stays where and how it is."""
        module = copy.deepcopy(self.module) if self.module.training else self.module
        return module.to(device="cpu", dtype=torch.float32).eval()


class TorchClassifier(ClassifierMixin, TorchEstimator):  # type: ignore[misc]
    """A trained module that answers logits: ``(n, classes)``, or ``(n,)`` or ``(n, 1)`` of the second of two.

    :param module: trained
    :param classes: the labels, in the order of the logits
    """

    def __init__(self, module: nn.Module, classes: Sequence[Any]) -> None:
        self.module = module
        self.classes = classes

    @property
    def classes_(self) -> Array:
        """The labels, in the order of the probabilities."""
        return np.asarray(self.classes)

    def network(self) -> nn.Module:
        """From rows to probabilities."""
        return _Probabilities(self._as_served(), len(self.classes))

    def predict_proba(self, rows: Any) -> Array:
        """``(n, classes)`` probabilities, float32."""
        return self._answers(rows)

    def predict(self, rows: Any) -> Array:
        """``(n,)`` the most probable class of each row."""
        labels: Array = self.classes_[self._answers(rows).argmax(axis=1)]
        return labels


class TorchRegressor(RegressorMixin, TorchEstimator):  # type: ignore[misc]
    """A trained module that answers predictions, ``(n,)`` or ``(n, 1)``.

    :param module: trained
    :param mean: added to what the module answers times ``scale``: networks learn labels of unit size
    """

    def __init__(self, module: nn.Module, mean: float = 0.0, scale: float = 1.0) -> None:
        self.module = module
        self.mean = mean
        self.scale = scale

    def network(self) -> nn.Module:
        """From rows to predictions ``(n, 1)``."""
        return _Predictions(self._as_served(), self.mean, self.scale)

    def predict(self, rows: Any) -> Array:
        """``(n,)`` predictions, float32."""
        return self._answers(rows).reshape(-1)


class _Probabilities(nn.Module):  # type: ignore[misc]  # nor is PyTorch followed: it takes minutes
    def __init__(self, module: nn.Module, classes: int) -> None:
        super().__init__()
        self.module = module
        self.classes = classes

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits = self.module(rows)
        if logits.ndim == 1:
            logits = logits.unsqueeze(1)
        if self.classes == 2 and logits.shape[1] == 1:
            second = torch.sigmoid(logits)
            return torch.cat([1 - second, second], dim=1)
        if logits.shape[1] != self.classes:
            raise ValueError(f"the module answers {logits.shape[1]} logits a row for {self.classes} classes")
        return torch.softmax(logits, dim=1)


class _Predictions(nn.Module):  # type: ignore[misc]
    def __init__(self, module: nn.Module, mean: float, scale: float) -> None:
        super().__init__()
        self.module = module
        self.mean = mean
        self.scale = scale

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        answers = self.module(rows)
        if answers.ndim == 2 and answers.shape[1] != 1:
            raise ValueError(f"the module answers {answers.shape[1]} numbers a row, a prediction is one")
        return answers.reshape(-1, 1) * self.scale + self.mean
