"""Reading the prediction log: one window of what an endpoint answered.

Parts are written as schema 2: ``features`` and ``outputs`` are structs of the model's own columns. They are
read as in schema 1, as JSON text, so that versions with other columns can stand in one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from datetime import UTC, timedelta

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import (
    BATCH_BYTES,
    STRETCH_BYTES,
    UNREADABLE,
    Stretch,
    list_day,
)
from ml_lifecycle.personal import told
from ml_lifecycle.records import Interval

SCHEMA: dict[str, pl.DataType] = {
    "prediction_id": pl.String(),
    "row": pl.Int64(),
    "received_at": pl.Datetime("us", "UTC"),
    "event_time": pl.Datetime("us", "UTC"),
    "entity_keys": pl.String(),
    "endpoint": pl.String(),
    "route_revision": pl.Int64(),
    "variant": pl.String(),
    "returned": pl.Boolean(),
    "model_version": pl.String(),
    "model_digest": pl.String(),
    "features": pl.String(),
    "features_from": pl.String(),
    "outputs": pl.String(),
    "score": pl.Float64(),
    "latency_ms": pl.Float64(),
    "status": pl.Int64(),
}


# Requests by which a release is checked: they are answered and logged like any other, but are no traffic.
CHECK_ID_PREFIX = "release-check-"

MOMENT = "__moment__"
"""A row's time in :meth:`PredictionWindow.feature_batches`."""


class PredictionWindow:
    """The rows of an endpoint's log that fall in a window, release checks left out.

    A row's time is its ``event_time``, or ``received_at`` where the client gave none. Parts that cannot be
    read are left out and named in ``unreadable``: one torn file must not blind the monitor.

    :param lake: the lake of the environment that the endpoint is served in
    :param batch_bytes: of the parts read at once
    :param stretch_bytes: of the parts in a :class:`Stretch`
    """

    def __init__(
        self,
        lake: Lake,
        endpoint: str,
        window: Interval,
        batch_bytes: int = BATCH_BYTES,
        stretch_bytes: int = STRETCH_BYTES,
    ) -> None:
        self.lake = lake
        self._batch_bytes = batch_bytes
        self.window = window
        self.unreadable: dict[str, str] = {}
        self.stretches: list[Stretch] = []
        """All that is logged of the window's days, day by day."""
        day = window.start.astimezone(UTC).date()
        while day <= (window.end - timedelta(microseconds=1)).astimezone(UTC).date():
            self.stretches += list_day(lake, endpoint, day.isoformat()).stretches(stretch_bytes)
            day += timedelta(days=1)

    def beside(self) -> PredictionWindow:
        """The same rows, for another thread: what that cannot read it leaves out and names by itself."""
        other = copy(self)
        other.unreadable = {**self.unreadable}
        return other

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return sum(stretch.parts for stretch in self.stretches)

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(stretch.size for stretch in self.stretches)

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of all rows; narrow ones, use :meth:`batches` for the rest."""
        empty = pl.DataFrame(schema={name: SCHEMA[name] for name in columns})
        return pl.concat([empty, *self.batches(columns)])

    def batches(
        self,
        columns: Sequence[str],
        where: pl.Expr | None = None,
        stretch: Stretch | None = None,
        *,
        beyond: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """The rows in batches of bounded size, day by day, one model's after another's, as they were logged.

        :param stretch: of these parts alone
        :param beyond: also rows outside the window
        """
        chosen = [pl.col(name).cast(SCHEMA[name]) for name in columns]
        yield from self._batches(read_parts, chosen, self._wanted(where, beyond), stretch)

    def feature_batches(
        self, where: pl.Expr | None = None, stretch: Stretch | None = None, *, beyond: bool = False
    ) -> Iterator[pl.DataFrame]:
        """As :meth:`batches`: ``features``, ``score`` and :data:`MOMENT`, ``features`` as they were written.

        That is a struct of the model's columns; in schema 1 it is text. To make text of a struct and read it
        back takes fifty times as long as all that is measured of it.
        """
        moment = pl.coalesce("event_time", "received_at").alias(MOMENT)
        chosen = [pl.col("features"), pl.col("score").cast(SCHEMA["score"]), moment]
        yield from self._batches(_as_written, chosen, self._wanted(where, beyond), stretch)

    def _wanted(self, where: pl.Expr | None, beyond: bool) -> pl.Expr:
        wanted = ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)
        if not beyond:
            moment = pl.coalesce("event_time", "received_at")
            wanted &= moment.is_between(self.window.start, self.window.end, closed="left")
        return wanted if where is None else wanted & where

    def _batches(
        self,
        read: Callable[[Lake, Sequence[str]], pl.LazyFrame],
        chosen: Sequence[pl.Expr],
        wanted: pl.Expr,
        stretch: Stretch | None,
    ) -> Iterator[pl.DataFrame]:
        def collect(paths: Sequence[str]) -> pl.DataFrame:
            # In one piece: a sum of floats depends on the pieces, and those on the files.
            return read(self.lake, paths).filter(wanted).select(chosen).collect().rechunk()

        for one in self.stretches if stretch is None else [stretch]:
            for batch in one.batches(self._batch_bytes):
                paths = [path for path in batch if path not in self.unreadable]
                try:
                    if paths:
                        yield collect(paths)
                except (*UNREADABLE, OSError):
                    yield from self._one_by_one(paths, collect)

    def _one_by_one(
        self, paths: Sequence[str], collect: Callable[[Sequence[str]], pl.DataFrame]
    ) -> Iterator[pl.DataFrame]:
        for path in paths:
            try:
                yield collect([path])
            except UNREADABLE as error:
                self.unreadable[path] = told(error)


def read_parts(lake: Lake, paths: Sequence[str]) -> pl.LazyFrame:
    """The rows of parts that one model wrote, as :data:`SCHEMA` has them."""
    return as_logged(lake.scan(paths, whole=True))


def as_logged(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of parts as :data:`SCHEMA` has them."""
    rows = _without_enums(rows)
    structs = ((name, dtype) for name, dtype in rows.collect_schema().items() if isinstance(dtype, pl.Struct))
    return rows.with_columns(_json(name, dtype) for name, dtype in structs)


def as_text(features: pl.Series) -> pl.Series:
    """:meth:`PredictionWindow.feature_batches`' features as JSON."""
    if not isinstance(features.dtype, pl.Struct):
        return features.cast(pl.String)
    return features.to_frame().select(_json(features.name, features.dtype)).to_series()


def _json(name: str, dtype: pl.Struct) -> pl.Expr:
    # A missing number is NaN there, which JSON has not.
    floats = [field.name for field in dtype.fields if field.dtype.is_float()]
    known = pl.col(name).struct.with_fields(pl.field(one).fill_nan(None) for one in floats)
    return (known if floats else pl.col(name)).struct.json_encode()


def _as_written(lake: Lake, paths: Sequence[str]) -> pl.LazyFrame:
    return _without_enums(lake.scan(paths, whole=True))


def _without_enums(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with what is the same in many of them as plain text."""
    enums = [name for name, dtype in rows.collect_schema().items() if isinstance(dtype, pl.Enum)]
    return rows.with_columns(pl.col(enums).cast(pl.String)) if enums else rows
