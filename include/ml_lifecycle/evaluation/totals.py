"""Every metric of answers that come in batches, however many there are."""

from __future__ import annotations

import numpy as np
import polars as pl

from ml_lifecycle.evaluation.draws import Floats, Ranked, metrics_of_sums, rank_of, sums_of
from ml_lifecycle.metrics import METRICS, Answers, MetricError
from ml_lifecycle.records import TaskType

EXACT_RANKS = 2**18
"""Of more different scores (binary) or errors (regression) those are taken as equal that nearly are: within
1/2048 of the log odds, or of the error. What is summed stays exact; the areas under curves move by less than
what hundreds of neighbours among millions in order can matter."""

_FINENESS = 2048.0
_NEAREST = 1e-15  # to 0 and 1


class Totals:
    """Sums and ranks of the answers so far."""

    def __init__(self, task: TaskType) -> None:
        self._task = task
        self._origin: float | None = None
        self._sums: dict[str, float] = {}
        self._ranks = pl.DataFrame(schema=dict.fromkeys(("key", "rank", "weight", "positive"), pl.Float64))
        self._rough = False
        self._finite = True
        self.rows = 0

    def add(self, answers: Answers) -> None:
        """Take in a batch."""
        self.rows += len(answers)
        if not len(answers):
            return
        self._finite = self._finite and bool(np.isfinite(answers.outputs).all())
        if not self._finite:
            return
        if self._origin is None:
            self._origin = float(answers.truth[0]) if self._task == "regression" else 0.0
        for name, value in sums_of(answers, self._origin).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        rank = rank_of(answers)
        if rank is not None:
            positive = answers.positive if self._task == "binary" else np.zeros(len(answers))
            self._rank(rank, positive.astype(np.float64))

    def metrics(self) -> dict[str, float]:
        """Those that these rows can give.

        :raises MetricError: some answers are NaN or infinite. Retry: no.
        """
        if not self._finite:
            raise MetricError("some answers are NaN or infinite")
        if not self.rows:
            return {}
        ranked = None
        if len(self._ranks):
            ordered = self._ranks.sort("key")
            rank, weight, positive = (ordered[name].to_numpy() for name in ("rank", "weight", "positive"))
            ranked = Ranked(rank / weight, weight[None], positive[None])
        sums = np.array([list(self._sums.values())])
        found = metrics_of_sums(self._task, tuple(self._sums), sums, ranked)
        return {name: float(found[name][0]) for name in METRICS[self._task] if not np.isnan(found[name][0])}

    def means(self) -> tuple[float, float]:
        """Of the truths (binary: the share of positives), and of answer less truth; not of multiclass."""
        total = self._sums
        if self._task == "regression":
            truth, error = total["truth"] + (self._origin or 0.0) * total["rows"], total["error"]
        else:
            truth, error = total["truth 1"], total["score"] - total["truth 1"]
        return truth / total["rows"], error / total["rows"]

    def _rank(self, rank: Floats, positive: Floats) -> None:
        batch = pl.DataFrame({"rank": rank, "positive": positive}).select(
            key=self._key("rank"), rank="rank", weight=pl.lit(1.0), positive="positive"
        )
        self._ranks = _together(pl.concat([self._ranks, _together(batch)]))
        if self._ranks.height > EXACT_RANKS and not self._rough:
            self._rough = True
            mean = self._ranks.with_columns(pl.col("rank") / pl.col("weight"))
            keyed = mean.with_columns(key=self._key("rank"), rank=pl.col("rank") * pl.col("weight"))
            self._ranks = _together(keyed)

    def _key(self, name: str) -> pl.Expr:
        value = pl.col(name)
        if not self._rough:
            return value
        if self._task == "binary":
            near = value.clip(_NEAREST, 1 - _NEAREST)
            return ((near / (1 - near)).log() * _FINENESS).round()
        return pl.when(value > 0).then((value.log() * _FINENESS).round()).otherwise(float("-inf"))


def _together(ranks: pl.DataFrame) -> pl.DataFrame:
    return ranks.group_by("key").agg(pl.sum("rank", "weight", "positive"))
