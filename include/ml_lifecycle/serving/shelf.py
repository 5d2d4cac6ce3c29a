"""Which models are in memory: all, or within a budget those that were asked for last."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.model import OnnxModel

_BASE_BYTES = 2**20


def estimated_bytes(file_bytes: int) -> int:
    """What a loaded model takes: ONNX Runtime holds trees and weights in structures of its own.

    Measured on random forests whose files have 0.04, 21 and 66 MB: 3, 7 and 4 times the file.
    """
    return 5 * file_bytes + _BASE_BYTES


class Slot:
    """A model's place on the shelf. It is loaded when it is asked for and not there.

    :param load: reads and checks the model; returns it with the size of its file in bytes
    :param pinned: it stays once it is loaded: a challenger must not wait for its first request
    """

    def __init__(self, shelf: Shelf, load: Callable[[], tuple[OnnxModel, int]], pinned: bool) -> None:
        self.pinned = pinned
        self.last_used = 0
        self._shelf = shelf
        self._load = load
        self._model: OnnxModel | None = None
        self._loading = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether :meth:`get` returns at once."""
        return self._model is not None

    def get(self) -> OnnxModel:
        """The model; loads it if need be, which takes milliseconds to seconds.

        :raises IntegrityError: the file has another digest. Retry: no.
        :raises RouteRefusedError: it is not what its route says. Retry: no.
        """
        model = self._model
        if model is None:
            with self._loading:
                model = self._model
                if model is None:
                    model, file_bytes = self._load()
                    self._model = model
                    self._shelf.took(self, estimated_bytes(file_bytes))
        self.last_used = self._shelf.tick()
        return model

    def drop(self) -> None:
        """Let go of the model; whoever runs it now finishes."""
        self._model = None


class Shelf:
    """All slots of a server.

    :param budget: bytes that loaded models may take together, as :func:`estimated_bytes` has it; None for no
        limit. One model alone may take more
    """

    def __init__(self, metrics: Metrics, budget: int | None = None) -> None:
        self._metrics = metrics
        self._budget = budget
        self._sizes: WeakKeyDictionary[Slot, int] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        metrics.models_in_memory(lambda: self.used)

    def slot(self, load: Callable[[], tuple[OnnxModel, int]], *, pinned: bool = False) -> Slot:
        """A place for a model that is not loaded yet."""
        return Slot(self, load, pinned)

    @property
    def used(self) -> int:
        """Bytes that the loaded models take."""
        with self._lock:
            return sum(self._sizes.values())

    @property
    def full(self) -> bool:
        """Whether another model would put one out."""
        return self._budget is not None and self.used >= self._budget

    def tick(self) -> int:
        """A number that only grows: who has the lowest was asked for the longest ago."""
        return next(self._clock)

    def took(self, slot: Slot, size: int) -> None:
        """A slot's model is loaded: make room for it."""
        with self._lock:
            self._sizes[slot] = size
            if self._budget is None:
                return
            others = sorted((one for one in self._sizes if one is not slot), key=lambda one: one.last_used)
            for other in others:
                if sum(self._sizes.values()) <= self._budget:
                    return
                if not other.pinned:
                    del self._sizes[other]
                    other.drop()
                    self._metrics.model_evictions.inc()
