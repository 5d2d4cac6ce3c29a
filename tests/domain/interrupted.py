"""Trainings to interrupt: each draws rows and features, and is over in a tenth of a second.

They run in processes of their own, forked from one with the libraries imported (:mod:`faults`); each step
counts as an effect, so that a process can die at any of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import TorchState, fit_in_segments
from ml_lifecycle.training.interruption import end_when_told
from ml_lifecycle.training.pace import Pace

FOLDER = "training/toy/checkpoints"
ROWS, SEED = 400, 6
STEPS, EVERY = 15, 2
Array = NDArray[Any]


def make_data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, 8)).astype(np.float32)
    return rows, (rows[:, 0] + rows[:, 1] * rows[:, 2] + rng.normal(size=ROWS) > 0).astype(np.int64)


def forest(checkpoints: Checkpoints) -> bytes:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(STEPS, max_samples=0.5, max_depth=4)
    fitted = fit_in_segments(model, *make_data(), checkpoints, every=EVERY)
    return b"".join(_tree(tree) for tree in fitted.estimators_)


def gradient_boosting(checkpoints: Checkpoints) -> bytes:
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(n_estimators=STEPS, subsample=0.6, max_features=0.5)
    fitted = fit_in_segments(model, *make_data(), checkpoints, every=EVERY)
    return b"".join(_tree(tree) for tree in fitted.estimators_.ravel())


def histogram_boosting(checkpoints: Checkpoints) -> bytes:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=STEPS, max_features=0.5)
    fitted = fit_in_segments(model, *make_data(), checkpoints, every=EVERY)
    return b"".join(predictor.nodes.tobytes() for (predictor,) in fitted._predictors)


def xgboost(checkpoints: Checkpoints) -> bytes:
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=STEPS, subsample=0.6, colsample_bytree=0.5, n_jobs=1)
    return bytes(fit_in_segments(model, *make_data(), checkpoints, every=EVERY).get_booster().save_raw("ubj"))


def lightgbm(checkpoints: Checkpoints) -> bytes:
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(
        n_estimators=STEPS, subsample=0.6, subsample_freq=1, colsample_bytree=0.5, n_jobs=1
    )
    text: str = fit_in_segments(model, *make_data(), checkpoints, every=EVERY).booster_.model_to_string()
    return text.encode()


def torch(checkpoints: Checkpoints) -> bytes:
    import torch

    rows, labels = (torch.from_numpy(part) for part in make_data())
    torch.manual_seed(SEED)
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2)
    )
    optimizer = torch.optim.Adam(module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    state = TorchState(checkpoints, module, optimizer=optimizer, scheduler=scheduler)
    for segment in checkpoints.segments(state, steps=STEPS, every=EVERY):
        for _ in segment:
            for batch in torch.randperm(ROWS)[:200].split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(module(rows[batch]), labels[batch]).backward()
                optimizer.step()
            scheduler.step()
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())


TRAININGS: dict[str, Callable[[Checkpoints], bytes]] = {
    one.__name__: one for one in (forest, gradient_boosting, histogram_boosting, xgboost, lightgbm, torch)
}


class Progress:
    """How far an attempt came, in a file that outlives a kill.

    :ivar reached: the step that it was in, or had done
    :ivar resumed: the step that it began at; -1 before it knew
    """

    _LAYOUT = struct.Struct("qq")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self._LAYOUT.pack(0, -1))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)

    @property
    def reached(self) -> int:
        return int(self._LAYOUT.unpack(self._shared)[0])

    @property
    def resumed(self) -> int:
        return int(self._LAYOUT.unpack(self._shared)[1])

    def put(self, reached: int, resumed: int) -> None:
        self._shared[:] = self._LAYOUT.pack(reached, resumed)


class ToldPace(Pace):
    """Tells of each moment of the loop as of an effect, and sends a signal at one of them.

    :param sends: which moment, counted from 0, and the signal
    """

    def __init__(self, progress: Progress, costs: Any, sends: tuple[int, int] | None) -> None:
        super().__init__()
        self._progress = progress
        self._costs = costs
        self._sends = sends
        self._moments = 0
        self._at = -1

    def begin(self, steps: int, now: float) -> None:
        if self._at < 0:
            self._at = self._costs.resumed_steps
        self._ahead = steps
        self._tell("BEGIN")
        super().begin(steps, now)

    def step(self, now: float) -> None:
        self._at, self._ahead = self._at + 1, self._ahead - 1
        self._tell("STEP")
        super().step(now)

    def begin_save(self, now: float) -> None:
        self._at, self._ahead = self._at + self._ahead, 0  # those that do all of a segment in one call
        self._tell("SAVE")
        super().begin_save(now)

    def end_save(self, now: float) -> None:
        self._tell("SAVED")
        super().end_save(now)

    def _tell(self, what: str) -> None:
        self._progress.put(self._at, self._costs.resumed_steps)
        sys.audit("faults.request", what, str(self._at))
        if self._sends is not None and self._moments == self._sends[0]:
            os.kill(os.getpid(), self._sends[1])
        self._moments += 1


def attempt(root: Path, training: str, number: int, sends: tuple[int, int] | None = None) -> str:
    """One attempt at a training; returns the digest of its weights."""
    checkpoints = Checkpoints(Lake(str(root / "lake")), FOLDER, number, SEED, scratch=root / "scratch")
    checkpoints.pace = ToldPace(Progress(root.with_name("progress")), checkpoints.costs, sends)
    assert checkpoints.reasons == ()
    return hashlib.sha256(TRAININGS[training](checkpoints)).hexdigest()


def attempt_as_a_pod(root: Path, training: str, number: int, sends: tuple[int, int] | None) -> None:
    """The same where SIGTERM means what it means to a pod; the digest is written to a file."""
    checkpoints = Checkpoints(Lake(str(root / "lake")), FOLDER, number, SEED, scratch=root / "scratch")
    checkpoints.pace = ToldPace(Progress(root.with_name("progress")), checkpoints.costs, sends)
    end_when_told(checkpoints, 20, lambda name: None)
    digest = hashlib.sha256(TRAININGS[training](checkpoints)).hexdigest()
    root.with_name("digest").write_text(digest)


def _tree(estimator: Any) -> bytes:
    tree = estimator.tree_
    parts = (tree.feature, tree.threshold, tree.value, tree.children_left, tree.children_right)
    return b"".join(part.tobytes() for part in parts)
