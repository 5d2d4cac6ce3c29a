"""Which of a window's logged requests are replayed, and what was logged of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from ml_lifecycle.adapters.predictions import PredictionWindow

_STRATUM = ("route_revision", "model_version", "model_digest", "variant", "features_from")
_LOGGED = ("prediction_id", "row", *_STRATUM)
_ANSWERED = pl.col("status") == 200


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


def sample_rows(log: PredictionWindow, size: int, seed: int) -> Iterator[ServedRow]:
    """Rows that were answered, evenly among revisions, versions, roles and ways to features.

    The same log and seed give the same rows, whatever parts the log is in.
    """
    chance = pl.concat_str("prediction_id", "row", separator="/").hash(seed).alias("chance")
    place = pl.col("chance").rank("ordinal").over(_STRATUM).alias("place")
    empty = pl.DataFrame(schema={"prediction_id": pl.String})
    kept, counted = [empty], [empty.select()]
    for batch in log.batches(_LOGGED, _ANSWERED):
        ranked = batch.with_columns(chance).with_columns(place)
        counted.append(ranked.group_by(_STRATUM).len("all"))
        kept.append(ranked.filter(pl.col("place") <= size).drop("place"))
    drawn = pl.concat(kept, how="diagonal")
    if drawn.is_empty():
        return
    sizes = pl.concat(counted, how="diagonal").group_by(_STRATUM).agg(pl.col("all").sum())
    drawn = drawn.unique(_LOGGED).with_columns(place).sort("place", *_STRATUM, "chance").head(size)
    drawn = drawn.with_columns(pl.len().over(_STRATUM).alias("drawn")).join(sizes, on=_STRATUM)
    weights = drawn.select(*_LOGGED, (pl.col("all") / pl.col("drawn")).alias("weight"))
    columns = (*_LOGGED, "received_at", "event_time", "entity_keys", "features", "outputs")
    wanted = _ANSWERED & pl.col("prediction_id").is_in(weights["prediction_id"].unique().implode())
    found = pl.concat(log.batches(columns, wanted))
    for one in found.join(weights, on=_LOGGED).unique(_LOGGED).sort(_LOGGED).to_dicts():
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
            weight=one["weight"],
        )
