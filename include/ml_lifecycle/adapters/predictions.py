"""Reading the prediction log: one window of what an endpoint answered.

Parts are written as schema 2: ``features`` and ``outputs`` are structs of the model's own columns. They are
read as in schema 1, as JSON text, so that versions with other columns can stand in one frame.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import TypeVar

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.personal import told
from ml_lifecycle.records import Interval, digest_of

T = TypeVar("T")

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

_PART_NAME = re.compile(r"(?P<first>\d{8}T\d{12})-(?P<server>.+)-(?P<number>\d{6,})-[0-9a-z]+\.parquet")


@dataclass(frozen=True)
class Stretch:
    """Parts of one model and day, some of the log, of which what was found may be kept.

    :param name: the same while parts are added at the end of the day
    :param files: path → size
    """

    name: str
    files: Mapping[str, int]

    @property
    def digest(self) -> str:
        """Parts are never changed, so their names and sizes say what is in them."""
        return digest_of(dict(self.files))


class PredictionWindow:
    """The rows of an endpoint's log that fall in a window, release checks left out.

    A row's time is its ``event_time``, or ``received_at`` where the client gave none. Parts that cannot be
    read are left out and named in ``unreadable``: one torn file must not blind the monitor.

    :param lake: the lake of the environment that the endpoint is served in
    :param batch_bytes: of the parts read at once; JSON text grows tenfold and more when it is unpacked
    :param stretch_bytes: of the parts in a :class:`Stretch`
    """

    def __init__(
        self,
        lake: Lake,
        endpoint: str,
        window: Interval,
        batch_bytes: int = 16 * 2**20,
        stretch_bytes: int = 64 * 2**20,
    ) -> None:
        self.lake = lake
        self._batch_bytes = batch_bytes
        self._stretch_bytes = stretch_bytes
        self.window = window
        self.files: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        day = window.start.astimezone(UTC).date()
        while day <= (window.end - timedelta(microseconds=1)).astimezone(UTC).date():
            self.files |= lake.sizes(f"predictions/{endpoint}/{day.isoformat()}")
            day += timedelta(days=1)

    def stretches(self) -> Iterator[Stretch]:
        """All parts, day by day."""
        for day, paths in groupby(self.files, _day):
            files = {path: self.files[path] for path in paths}
            numbers: Counter[str] = Counter()
            for batch in alike(files, self._stretch_bytes):
                kind = _kind(batch[0]).removesuffix(".parquet") or "all"
                name = f"{day}/{kind}-{numbers[kind]:04d}"
                numbers[kind] += 1
                yield Stretch(name, {path: files[path] for path in batch})

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
        """The rows in batches of bounded size, one model's after another's, as they were logged.

        :param stretch: of these parts alone
        :param beyond: also rows outside the window
        """
        chosen = [pl.col(name).cast(SCHEMA[name]) for name in columns]
        yield from self._batches(
            lambda paths: read_parts(self.lake, paths), chosen, self._wanted(where, beyond), stretch
        )

    def feature_batches(
        self, where: pl.Expr | None = None, stretch: Stretch | None = None, *, beyond: bool = False
    ) -> Iterator[pl.DataFrame]:
        """As :meth:`batches`: ``features``, ``score`` and :data:`MOMENT`, ``features`` as they were written.

        That is a struct of the model's columns; in schema 1 it is text. To make text of a struct and read it
        back takes fifty times as long as all that is measured of it.
        """
        moment = pl.coalesce("event_time", "received_at").alias(MOMENT)
        chosen = [pl.col("features"), pl.col("score").cast(SCHEMA["score"]), moment]
        yield from self._batches(
            lambda paths: _as_written(self.lake, paths), chosen, self._wanted(where, beyond), stretch
        )

    def _wanted(self, where: pl.Expr | None, beyond: bool) -> pl.Expr:
        wanted = ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)
        if not beyond:
            moment = pl.coalesce("event_time", "received_at")
            wanted &= moment.is_between(self.window.start, self.window.end, closed="left")
        return wanted if where is None else wanted & where

    def _batches(
        self,
        read: Callable[[Sequence[str]], pl.LazyFrame],
        chosen: Sequence[pl.Expr],
        wanted: pl.Expr,
        stretch: Stretch | None,
    ) -> Iterator[pl.DataFrame]:
        def collect(paths: Sequence[str]) -> pl.DataFrame:
            return read(paths).filter(wanted).select(chosen).collect()

        among = self.files if stretch is None else stretch.files
        files = {path: size for path, size in among.items() if path not in self.unreadable}
        for paths in alike(files, self._batch_bytes):
            try:
                yield collect(paths)
            except (pl.exceptions.PolarsError, OSError):
                yield from self._one_by_one(paths, collect)

    def _one_by_one(
        self, paths: Sequence[str], collect: Callable[[Sequence[str]], pl.DataFrame]
    ) -> Iterator[pl.DataFrame]:
        for path in paths:
            try:
                yield collect([path])
            except pl.exceptions.PolarsError as error:
                self.unreadable[path] = told(error)


@dataclass(frozen=True)
class Part:
    """One file of the log: rows that one server wrote for one model, together.

    :param number: rising as a server writes, over all of its endpoints; parts are written in this order
    :param first: when the first of its rows was received, by the server's clock
    :param size: bytes
    """

    path: str
    server: str
    number: int
    first: datetime
    size: int


def find_parts(lake: Lake, endpoint: str, day: date) -> list[Part]:
    """The parts with rows about ``day`` (UTC) or later.

    Of one server there are all up to the newest: a part that was written while another folder was being
    listed is left for the next time, with all that were written after it.
    """
    newest: dict[str, int] = {}
    for part in _list_parts(lake, endpoint, day):
        newest[part.server] = max(part.number, newest.get(part.server, 0))
    # Whatever was written before these is there by now.
    return [part for part in _list_parts(lake, endpoint, day) if part.number <= newest.get(part.server, 0)]


def _list_parts(lake: Lake, endpoint: str, day: date) -> Iterator[Part]:
    root = f"predictions/{endpoint}"
    folders = [f"{root}/{name}" for name in lake.folders(root) if name >= day.isoformat()]
    for path, size in ((path, size) for folder in folders for path, size in lake.sizes(folder).items()):
        if (found := _PART_NAME.fullmatch(path.rsplit("/", 1)[-1])) is not None:
            first = datetime.strptime(found["first"], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
            yield Part(path, found["server"], int(found["number"]), first, size)


def alike(files: Mapping[str, int], at_most: int) -> Iterator[list[str]]:
    """Paths of parts in batches of so many bytes, each of one model: only those have the same columns.

    :param files: path → size
    """
    for _, paths in groupby(sorted(files, key=_kind), _kind):
        yield from cut(paths, files.__getitem__, at_most)


def cut(items: Iterable[T], size: Callable[[T], int], at_most: int) -> Iterator[list[T]]:
    """Items in their order, in batches of so many bytes, or of one item that is larger by itself."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > at_most:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def read_parts(lake: Lake, paths: Sequence[str]) -> pl.LazyFrame:
    """The rows of parts that one model wrote, as :data:`SCHEMA` has them."""
    rows = _as_written(lake, paths)
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
    """The rows with what is the same in many of them as plain text."""
    rows = lake.scan(paths)
    enums = [name for name, dtype in rows.collect_schema().items() if isinstance(dtype, pl.Enum)]
    return rows.with_columns(pl.col(enums).cast(pl.String)) if enums else rows


def _day(path: str) -> str:
    return path.rsplit("/", 2)[-2]


def _kind(path: str) -> str:
    """What the names of one model's parts end with; of schema 1 all parts have the same columns."""
    ending = path.rsplit("-", 1)[-1]
    return "" if ending.removesuffix(".parquet").isdigit() and len(ending) == 14 else ending
