"""Reading the prediction log: one window of what an endpoint answered.

Parts are written as schema 2: ``features`` and ``outputs`` are structs of the model's own columns. They are
read as in schema 1, as JSON text, so that versions with other columns can stand in one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, timedelta

import polars as pl

from ml_lifecycle.adapters.lake import Lake
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


class PredictionWindow:
    """The rows of an endpoint's log that fall in a window, release checks left out.

    A row's time is its ``event_time``, or ``received_at`` where the client gave none. Parts that cannot be
    read are left out and named in ``unreadable``: one torn file must not blind the monitor.

    :param lake: the lake of the environment that the endpoint is served in
    :param batch_bytes: of the parts read at once; JSON text grows tenfold and more when it is unpacked
    """

    def __init__(self, lake: Lake, endpoint: str, window: Interval, batch_bytes: int = 16 * 2**20) -> None:
        self._lake = lake
        self._window = window
        self._batch_bytes = batch_bytes
        self.files: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        day = window.start.astimezone(UTC).date()
        while day <= (window.end - timedelta(microseconds=1)).astimezone(UTC).date():
            self.files |= lake.sizes(f"predictions/{endpoint}/{day.isoformat()}")
            day += timedelta(days=1)

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of all rows; narrow ones, use :meth:`batches` for the rest."""
        empty = pl.DataFrame(schema={name: SCHEMA[name] for name in columns})
        return pl.concat([empty, *self.batches(columns)])

    def batches(self, columns: Sequence[str], where: pl.Expr | None = None) -> Iterator[pl.DataFrame]:
        """The rows in batches of bounded size, one model's after another's, as they were logged."""
        for paths in self._groups():
            try:
                yield self._collect(paths, columns, where)
            except (pl.exceptions.PolarsError, OSError):
                yield from self._one_by_one(paths, columns, where)

    def _one_by_one(
        self, paths: Sequence[str], columns: Sequence[str], where: pl.Expr | None
    ) -> Iterator[pl.DataFrame]:
        for path in paths:
            try:
                yield self._collect([path], columns, where)
            except pl.exceptions.PolarsError as error:
                self.unreadable[path] = f"{type(error).__name__}: {error}"

    def _collect(self, paths: Sequence[str], columns: Sequence[str], where: pl.Expr | None) -> pl.DataFrame:
        moment = pl.coalesce("event_time", "received_at")
        inside = moment.is_between(self._window.start, self._window.end, closed="left")
        inside &= ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)
        rows = read_parts(self._lake, paths).filter(inside if where is None else inside & where)
        return rows.select(pl.col(name).cast(SCHEMA[name]) for name in columns).collect()

    def _groups(self) -> Iterator[list[str]]:
        """Parts of one model each: only they have the same columns."""
        group: list[str] = []
        size = 0
        for path, file_size in sorted(self.files.items(), key=lambda file: _kind(file[0])):
            if path in self.unreadable:
                continue
            if group and (size + file_size > self._batch_bytes or _kind(path) != _kind(group[0])):
                yield group
                group, size = [], 0
            group.append(path)
            size += file_size
        if group:
            yield group


def read_parts(lake: Lake, paths: Sequence[str]) -> pl.LazyFrame:
    """The rows of parts that one model wrote, as :data:`SCHEMA` has them."""
    rows = lake.scan(paths)
    structs = [name for name, dtype in rows.collect_schema().items() if isinstance(dtype, pl.Struct)]
    return rows.with_columns(pl.col(name).struct.json_encode() for name in structs)


def _kind(path: str) -> str:
    """What the names of one model's parts end with; of schema 1 all parts have the same columns."""
    ending = path.rsplit("-", 1)[-1]
    return "" if ending.removesuffix(".parquet").isdigit() and len(ending) == 14 else ending
