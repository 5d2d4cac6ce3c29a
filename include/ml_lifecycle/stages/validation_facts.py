"""What is measured of a source as a whole, before it is judged: by Polars here, on Spark elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import polars as pl

from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.profiles.profile import Columns
from ml_lifecycle.profiles.profiling import profile_batches
from ml_lifecycle.records import ColumnSpec, Interval
from ml_lifecycle.spec.contract_rules import Scalar

# Rows that a profile is made of at a time.
PIECE_ROWS = 131_072


class FactError(LifecycleError):
    """A number cannot be computed of the columns there are. Retry: no."""


@dataclass(frozen=True)
class Span:
    """The rows whose ``column`` lies in an interval."""

    column: str
    interval: Interval


class Facts(Protocol):
    """Numbers about some rows of a table."""

    @property
    def schema(self) -> pl.Schema:
        """The columns and their types."""

    def count(self, span: Span | None) -> int:
        """How many rows there are."""

    def newest(self, column: str) -> datetime | None:
        """The newest moment in a column; None without any."""

    def by_day(self, span: Span) -> pl.DataFrame:
        """Columns ``day`` and ``rows`` for every UTC day that has some."""

    def shares(self, column: str, values: Sequence[Scalar]) -> tuple[int, ...]:
        """How often each value is there, and last how many rows have any.

        :raises FactError: the column is of another type than the values. Retry: no.
        """

    def profiles(self, columns: Sequence[ColumnSpec], span: Span | None) -> Columns:
        """Profiles of some columns."""


@dataclass(frozen=True)
class PolarsFacts:
    """By streaming passes over the rows: memory does not grow with them."""

    rows: pl.LazyFrame

    @property
    def schema(self) -> pl.Schema:
        """The columns and their types."""
        return self.rows.collect_schema()

    def count(self, span: Span | None) -> int:
        """How many rows there are."""
        return int(self._within(span).select(pl.len()).collect(engine="streaming").item())

    def newest(self, column: str) -> datetime | None:
        """The newest moment in a column; None without any."""
        found: datetime | None = (
            self.rows.select(pl.col(column).cast(TIMESTAMP).max()).collect(engine="streaming").item()
        )
        return found

    def by_day(self, span: Span) -> pl.DataFrame:
        """Columns ``day`` and ``rows`` for every UTC day that has some."""
        day = pl.col(span.column).cast(TIMESTAMP).dt.truncate("1d").alias("day")
        counted = self._within(span).group_by(day).agg(pl.len().cast(pl.Int64).alias("rows"))
        return counted.collect(engine="streaming")

    def shares(self, column: str, values: Sequence[Scalar]) -> tuple[int, ...]:
        """How often each value is there, and last how many rows have any.

        :raises FactError: the column is of another type than the values. Retry: no.
        """
        asked = [pl.col(column).eq(value).sum().alias(str(n)) for n, value in enumerate(values)]
        try:
            found = self.rows.select(*asked, pl.col(column).count().alias("all"))
            return found.collect(engine="streaming").row(0)
        except pl.exceptions.PolarsError as error:
            raise FactError(str(error)) from error

    def profiles(self, columns: Sequence[ColumnSpec], span: Span | None) -> Columns:
        """Profiles of some columns, made piece by piece."""
        chosen = self._within(span).select(column.name for column in columns)
        batches = chosen.collect_batches(maintain_order=True, engine="streaming")
        return profile_batches(in_pieces(batches), columns).columns

    def _within(self, span: Span | None) -> pl.LazyFrame:
        if span is None:
            return self.rows
        moment, interval = pl.col(span.column).cast(TIMESTAMP), span.interval
        return self.rows.filter(moment.is_between(interval.start, interval.end, closed="left"))


def in_pieces(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in pieces of one size: what a sketch tells would else depend on the machine's threads."""
    held: list[pl.DataFrame] = []
    for batch in batches:
        held.append(batch)
        while sum(frame.height for frame in held) >= PIECE_ROWS:
            joined = pl.concat(held)
            yield joined.head(PIECE_ROWS)
            held = [joined.tail(-PIECE_ROWS)]
    if held:
        yield pl.concat(held)
