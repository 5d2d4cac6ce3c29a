"""Which of a window's logged requests are replayed, and what was logged of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.stages.monitor_kept import Found, KeptFindings
from ml_lifecycle.stages.monitor_traffic import first_and_last, span

_STRATUM = ("route_revision", "model_version", "model_digest", "variant", "features_from")
_LOGGED = ("prediction_id", "row", *_STRATUM)
_TIMES = ("received_at", "event_time")
_ANSWERED = pl.col("status") == 200
_PLACE = pl.col("chance").rank("ordinal").over(_STRATUM).alias("place")


@dataclass(frozen=True)
class ServedRow:
    """A logged request's row.

    :param weight: how many rows of the window it stands for
    :param moment: that the prediction is for
    """

    id: str
    row: int
    revision: int
    version: str
    digest: str
    origin: str
    received_at: datetime
    moment: datetime
    keys: Mapping[str, object]
    features: Mapping[str, Any]
    outputs: Mapping[str, Any]
    weight: float

    @property
    def known_by(self) -> datetime:
        """What became known later could not be used: neither by the server, nor for that moment."""
        return min(self.received_at, self.moment)


def sample_rows(log: PredictionWindow, kept: KeptFindings, size: int, seed: int) -> Iterator[ServedRow]:
    """Rows that were answered, evenly among revisions, versions, roles and ways to features.

    The same log and seed give the same rows, whatever parts the log is in. What was drawn of a stretch is
    kept: those drawn of all are among them.
    """
    drawn, answered = [], Counter[tuple[Any, ...]]()
    for stretch in log.stretches:
        found = kept.find(
            stretch,
            f"replay-{size}-{seed}",
            lambda beyond, stretch=stretch: _draw(log, stretch, size, seed, beyond=beyond),  # type: ignore[misc]
        )
        if found is not None and not found.rows.is_empty():
            drawn.append(found.rows)
            answered.update({tuple(stratum): rows for *stratum, rows in found.told["strata"]})
    if not drawn:
        return
    chosen = (
        pl.concat(drawn).unique(_LOGGED).with_columns(_PLACE).sort("place", *_STRATUM, "chance").head(size)
    )
    stands_for = chosen.group_by(_STRATUM).len().rows()
    weights = {tuple(stratum): answered[tuple(stratum)] / rows for *stratum, rows in stands_for}
    for one in chosen.sort(_LOGGED).to_dicts():
        yield ServedRow(
            id=one["prediction_id"],
            row=one["row"],
            revision=one["route_revision"],
            version=one["model_version"],
            digest=one["model_digest"],
            origin=one["features_from"],
            received_at=one["received_at"],
            moment=one["event_time"] or one["received_at"],
            keys=json.loads(one["entity_keys"] or "{}"),
            features=json.loads(one["features"]),
            outputs=json.loads(one["outputs"]),
            weight=weights[tuple(one[name] for name in _STRATUM)],
        )


def _draw(log: PredictionWindow, stretch: Stretch, size: int, seed: int, *, beyond: bool) -> Found:
    """The rows of a stretch with the smallest hashes, so many of each stratum, and how many there are."""
    chance = pl.concat_str("prediction_id", "row", separator="/").hash(seed).alias("chance")
    least, strata, moments = [], Counter[tuple[Any, ...]](), []
    for batch in log.batches((*_LOGGED, *_TIMES), _ANSWERED, stretch, beyond=beyond):
        moments += span(batch.select(pl.coalesce("event_time", "received_at")).to_series())
        strata.update({tuple(stratum): rows for *stratum, rows in batch.group_by(_STRATUM).len().iter_rows()})
        least.append(_smallest(batch.select(*_LOGGED, chance), size))
    if not strata:
        return Found(None, None, {"strata": []}, pl.DataFrame())
    drawn = _smallest(pl.concat(least).unique(_LOGGED), size)
    wanted = _ANSWERED & pl.col("prediction_id").is_in(drawn["prediction_id"].unique().implode())
    columns = (*_LOGGED, *_TIMES, "entity_keys", "features", "outputs")
    rows = pl.concat(log.batches(columns, wanted, stretch, beyond=beyond)).join(drawn, on=_LOGGED)
    told = {"strata": [[*stratum, number] for stratum, number in sorted(strata.items())]}
    return Found(*first_and_last(moments), told, rows)


def _smallest(rows: pl.DataFrame, size: int) -> pl.DataFrame:
    return rows.filter(size >= _PLACE)
