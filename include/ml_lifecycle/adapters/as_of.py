"""Looking values up as of a moment, in tables of any length: the join behind the Feast offline store.

A value counts from its event time on, that instant included. Of rows with the same key and event time the
one created last counts, without a created timestamp the later one in the table. Times are compared in
microseconds; those without a zone are UTC.

Entity rows come in slices, tables in parts of consecutive rows. Each slice is looked up in every part that
can hold something for its span of time, and the newest of what was found counts, so that no more is ever
held than a slice and a few parts, whatever the keys. A table of one part, as most are, is read, sorted and
kept once for all slices.

Parts by a hash of the keys, written to disk first, took two thirds of the time where a table has several
parts (6 million rows against 6 million, six of each). But they need room for the table once more, and hold
every row of a key at once: one table without keys, or with few, and there is no bound any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from ml_lifecycle.errors import FeatureError

# A slice, a part being sorted and the parts held stay within some 2 GiB together. Smaller slices cost time,
# since each puts the keys of all tables into a hash table again.
SLICE_BYTES = 192 * 2**20
_PART_BYTES = 384 * 2**20
_HELD_BYTES = 768 * 2**20

TIMESTAMP = pl.Datetime("us", "UTC")
_EVENT, _CREATED, _MOMENT, _ROW = "__event", "__created", "__moment", "__row"
_FOUND = "__found_"


@dataclass(frozen=True)
class Table:
    """Where values are looked up.

    :param name: what errors call it
    :param rows: in the order they were written
    :param keys: column of the entity rows → column of the table
    :param features: name in the result → column of the table
    :param event: the column with the event time
    :param created: the column that says when a row was created, if there is one
    :param lifetime: how long a value counts after its event; None is for ever
    """

    name: str
    rows: pl.LazyFrame
    keys: Mapping[str, str]
    features: Mapping[str, str]
    event: str
    created: str | None = None
    lifetime: timedelta | None = None


def in_microseconds(column: str, dtype: pl.DataType | None) -> pl.Expr:
    """A column's times. One that holds them already stays bare: only then are row groups skipped by it."""
    times = pl.col(column)
    return times if dtype == TIMESTAMP else times.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """What a query finds, a slice at a time; at least one frame."""
    found = False
    for batch in rows.collect_batches(chunk_size=rows_within(SLICE_BYTES, rows.collect_schema().dtypes())):
        found = True
        yield batch
    if not found:
        yield rows.clear().collect()


def join_as_of(
    entities: pl.LazyFrame,
    moment: str,
    tables: Sequence[Table],
    *,
    beside: Iterable[str] = (),
    slice_rows: int | None = None,
    part_rows: int | None = None,
) -> Iterator[pl.DataFrame]:
    """The entity rows in their order, slice by slice, with all tables' features as of ``moment``.

    The answer does not depend on the sizes.

    :param beside: columns that the entity rows have besides those given

    :raises FeatureError: a key is no column of the entity rows, a feature is one already, or ``moment`` holds
        no times. Retry: no.
    """
    schema = entities.collect_schema()
    if schema[moment] not in (pl.Datetime, pl.Date, pl.Null):  # numbers would count as microseconds
        raise FeatureError(f"column {moment!r} of the entity rows holds {schema[moment]}, and no times")
    taken = {*schema, *beside}
    for table in tables:
        if missing := [key for key in table.keys if key not in schema]:
            raise FeatureError(f"{table.name} needs the entity columns {missing}")
        if doubled := sorted(taken & table.features.keys()):
            raise FeatureError(
                f"{table.name}: {doubled} are columns of the entity rows or of another view too; "
                "rename them, or ask for full_feature_names"
            )
        taken |= table.features.keys()
    time = in_microseconds(moment, schema[moment])
    first, last = entities.select(first=time.min(), last=time.max()).collect().row(0)
    held = _Held(_HELD_BYTES)
    lookups = [_Lookup(table, schema, (first, last), part_rows, held) for table in tables]
    width = [*schema.dtypes(), *(kind for lookup in lookups for kind in lookup.types)]
    for rows in _slices(entities, slice_rows or rows_within(SLICE_BYTES, width)):
        moments = rows.select(time).to_series()
        order = _Order.of(moments)
        if order is not None:
            moments = moments.gather(order.by_moment)
        found = [lookup.find(rows, moments, order) for lookup in lookups]
        yield pl.concat([rows, *found], how="horizontal")


def rows_within(size: int, types: Iterable[pl.DataType]) -> int:
    """How many rows of these types about fill ``size`` bytes; texts and lists are taken for short ones."""
    return max(1, size // sum(8 if kind.is_numeric() or kind.is_temporal() else 32 for kind in types))


def _slices(rows: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    for start in range(0, max(_height(rows), 1), size):
        yield rows.slice(start, size).collect()


@dataclass(frozen=True)
class _Order:
    """Rows by their moment, and back."""

    by_moment: pl.Series
    back: pl.Series

    @classmethod
    def of(cls, moments: pl.Series) -> _Order | None:
        """None if they are in order."""
        if moments.is_sorted():
            return None
        by_moment = moments.arg_sort()
        back = np.empty(len(moments), np.uint32)
        back[by_moment.to_numpy()] = np.arange(len(moments), dtype=np.uint32)
        return cls(by_moment, pl.Series(back))


class _Held:
    """The parts that were used last, as many as fit; at least the one in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: OrderedDict[tuple[_Lookup, int], pl.DataFrame] = OrderedDict()

    def part(self, lookup: _Lookup, number: int) -> pl.DataFrame:
        key = (lookup, number)
        if key not in self._parts:
            # Room is made beforehand, as much as the newest one took: reading needs more than keeping.
            newest = next(reversed(self._parts.values())).estimated_size() if self._parts else 0
            while self._parts and self._bytes() + newest > self._limit:
                self._parts.popitem(last=False)
            self._parts[key] = lookup.read(number)
        self._parts.move_to_end(key)
        return self._parts[key]

    def _bytes(self) -> int:
        return sum(int(part.estimated_size()) for part in self._parts.values())


@dataclass(frozen=True)
class _Part:
    """Consecutive rows of a table whose events lie from ``first`` to ``last``; None is unknown."""

    rows: pl.LazyFrame
    first: datetime | None = None
    last: datetime | None = None

    def counts(self, first: datetime | None, last: datetime | None, lifetime: timedelta | None) -> bool:
        """Whether it can hold a value for a moment from ``first`` to ``last``."""
        if self.first is None or self.last is None or first is None or last is None:
            return True
        return self.first <= last and (lifetime is None or first - self.last <= lifetime)


class _Lookup:
    """One table, looked up part by part.

    :param reach: the first and the last moment of all entity rows; most of a long history lies outside
    """

    def __init__(
        self,
        table: Table,
        entities: pl.Schema,
        reach: tuple[datetime | None, datetime | None],
        part_rows: int | None,
        held: _Held,
    ) -> None:
        schema = table.rows.collect_schema()
        self._lifetime = table.lifetime
        self._held = held
        self._keys = {f"__key{number}": key for number, key in enumerate(table.keys)}
        self._kinds = {key: _compared(schema[column], entities[key]) for key, column in table.keys.items()}
        self._event = in_microseconds(table.event, schema[table.event])
        self._within = _within(self._event, reach, table.lifetime)
        named = zip(self._keys, table.keys.items(), strict=True)
        self._columns = [
            *(_as_key(column, schema[column], self._kinds[key]).alias(name) for name, (key, column) in named),
            *(pl.col(column).alias(feature) for feature, column in table.features.items()),
            self._event.alias(_EVENT),
        ]
        self._features = [*table.features]
        self.types = [schema[column] for column in table.features.values()]
        self._order = [_EVENT]
        if table.created:
            self._columns.append(in_microseconds(table.created, schema[table.created]).alias(_CREATED))
            self._order.append(_CREATED)
        self._parts = self._cut(table.rows, part_rows or rows_within(_PART_BYTES, schema.dtypes()))

    def _cut(self, rows: pl.LazyFrame, size: int) -> list[_Part]:
        """The table in parts, by the order of its rows; in one, if what can count at all fits into it."""
        total = _height(rows)
        if total <= size or _height(rows.filter(self._within)) <= size:
            return [_Part(rows)]
        parts = []
        for start in range(0, total, size):
            part = rows.slice(start, size)
            bounds = part.select(first=self._event.min(), last=self._event.max()).collect()
            parts.append(_Part(part, *bounds.row(0)))
        return parts

    def read(self, number: int) -> pl.DataFrame:
        """A part's rows in the order in which they count."""
        rows = self._parts[number].rows.filter(self._within).select(self._columns)
        part = rows.drop_nulls([*self._keys, _EVENT]).collect()
        if self._order == [_EVENT] and part[_EVENT].is_sorted():
            return part
        return part.sort(self._order, maintain_order=True, nulls_last=False)

    def find(self, rows: pl.DataFrame, moments: pl.Series, order: _Order | None) -> pl.DataFrame:
        """The features of each row, in the rows' order; ``moments`` are theirs, sorted."""
        keys = [rows[key].cast(self._kinds[key]).alias(name) for name, key in self._keys.items()]
        if order is not None:
            keys = [key.gather(order.by_moment) for key in keys]
        asked = pl.DataFrame([*keys, moments.alias(_MOMENT)])
        first, last = asked.select(first=pl.col(_MOMENT).min(), last=pl.col(_MOMENT).max()).row(0)
        counting = [n for n, part in enumerate(self._parts) if part.counts(first, last, self._lifetime)]
        best: pl.DataFrame | None = None
        for number in counting or [0]:
            found = self._newest(asked, self._held.part(self, number), order)
            best = found if best is None else self._newer(best, found)
        assert best is not None  # a table has at least one part
        return best.select(self._features)

    def _newest(self, asked: pl.DataFrame, part: pl.DataFrame, order: _Order | None) -> pl.DataFrame:
        # Only row numbers are joined, and the features fetched by them: once, and in the final order.
        # Of rows that tie the join takes the last, and they are sorted by what counts.
        found = asked.join_asof(
            part.select(*self._keys, _EVENT, pl.int_range(pl.len(), dtype=pl.UInt32).alias(_ROW)),
            left_on=_MOMENT,
            right_on=_EVENT,
            by=[*self._keys] or None,
            strategy="backward",
            tolerance=self._lifetime,
            coalesce=False,
            check_sortedness=False,  # both are sorted; with keys Polars cannot check and warns
        )[_ROW]
        if order is not None:
            found = found.gather(order.back)
        wanted = self._features if len(self._parts) == 1 else [*self._features, *self._order]
        return part.select(pl.col(wanted).gather(found))

    def _newer(self, best: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """Row by row the one that counts; ``found`` stands behind ``best`` in the table."""
        both = best.hstack(found.rename(lambda name: _FOUND + name))
        event, new = pl.col(_EVENT), pl.col(_FOUND + _EVENT)
        ties = event == new
        if _CREATED in self._order:
            created, again = pl.col(_CREATED), pl.col(_FOUND + _CREATED)
            ties &= created.is_null() | (again >= created).fill_null(False)
        takes = new.is_not_null() & (event.is_null() | (new > event) | ties)
        return both.select(
            pl.when(takes).then(pl.col(_FOUND + name)).otherwise(pl.col(name)).alias(name)
            for name in best.columns
        )


def _compared(dtype: pl.DataType, wanted: pl.DataType) -> pl.DataType:
    """What a table's key and that of entity rows are compared as: the latter's type, unless text is none."""
    unread = dtype == pl.String and (wanted.is_temporal() or wanted == pl.Boolean)
    return dtype if unread else wanted


def _as_key(column: str, dtype: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    """A table's key in the type it is compared in; null where no entity row can have it."""
    key = pl.col(column)
    if dtype.is_float() and wanted.is_integer():
        key = pl.when(key == key.floor()).then(key)
    if isinstance(wanted, pl.Enum):  # of numbers it would take the text of that number
        key = key.cast(pl.String, strict=False)
    return key.cast(wanted, strict=False)


def _height(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())


def _within(
    event: pl.Expr, reach: tuple[datetime | None, datetime | None], lifetime: timedelta | None
) -> pl.Expr:
    """Whether an event can count at one of the moments."""
    first, last = reach
    if first is None or last is None:
        return pl.lit(True)
    within = event <= pl.lit(last).cast(TIMESTAMP)
    return within & (event >= pl.lit(first).cast(TIMESTAMP) - lifetime) if lifetime else within
