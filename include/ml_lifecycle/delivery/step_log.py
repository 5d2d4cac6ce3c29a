"""What the prediction log has of one step of a release, listed once a look.

Every row tells which revision answered it, and a step has a revision of its own, so a step's rows are known
exactly. Parts of the log are immutable, and each server numbers its own: they are counted once, as they come,
and of what was counted a number a server is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import takewhile

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import Part, find_parts
from ml_lifecycle.adapters.predictions import CHECK_ID_PREFIX
from ml_lifecycle.records import Release
from ml_lifecycle.spec.watch import Watch

BATCH_BYTES = 64 * 2**20
"""Of parts that are read at once."""

# The log is flushed every second, and a copy waits at most one. What is younger may have its other half (a
# champion's row beside its shadow's) in a part that is not written yet.
_SETTLED = timedelta(seconds=3)
# Between the clocks of a server and of whoever counts.
_SKEW = timedelta(minutes=10)


@dataclass(frozen=True)
class StepLog:
    """The parts that there were at a look: whatever is counted at it is counted of these.

    :param parts: those about the day before the step, and since
    """

    lake: Lake
    release: Release
    now: datetime
    parts: tuple[Part, ...]

    @classmethod
    def at(cls, lake: Lake, release: Release, now: datetime) -> StepLog:
        """List the log."""
        day = (release.created_at - timedelta(days=1)).date()
        return cls(lake, release, now, tuple(find_parts(lake, release.endpoint, day)))

    @cached_property
    def servers(self) -> dict[str, list[Part]]:
        """The parts that the step's rows may lie in, by server in the order they were written."""
        servers: dict[str, list[Part]] = {}
        for part in sorted(self.parts, key=lambda part: (part.server, part.number)):
            if part.first >= self.release.created_at - _SKEW:
                servers.setdefault(part.server, []).append(part)
        return servers

    def settled(self, server: str) -> list[Part]:
        """Of a server's parts none from the first on that is too young: beside it others are to come."""
        return list(takewhile(lambda part: part.first < self.now - _SETTLED, self.servers[server]))

    def fresh(self, counted: Mapping[str, int]) -> list[Part]:
        """The settled parts that came since.

        :param counted: server → number of the newest of its parts that is counted
        """
        return [
            part
            for server in self.servers
            for part in self.settled(server)
            if part.number > counted.get(server, 0)
        ]

    def requests(self) -> pl.Expr:
        """Which rows are of the step's traffic, one a request: the first."""
        return first_rows() & (pl.col("route_revision") == self.release.revision)


def first_rows() -> pl.Expr:
    """Which rows are the first of a client's request."""
    return (pl.col("row") == 0) & ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)


def field_as_text(types: Mapping[str, pl.DataType], column: str, name: str) -> pl.Expr:
    """A field of a struct, or of JSON text; null where there is none, as of a request that failed."""
    dtype = types[column]
    if isinstance(dtype, pl.String):
        return pl.col(column).str.json_path_match(f"$['{name}']")
    if isinstance(dtype, pl.Struct) and name in {one.name for one in dtype.fields}:
        return pl.col(column).struct.field(name).cast(pl.String)
    return pl.lit(None, pl.String)


def segment_columns(types: Mapping[str, pl.DataType], columns: Iterable[str]) -> Iterator[pl.Expr]:
    """What segments are made of: a feature, or an entity key, as text; null where a row has neither."""
    for column in columns:
        key = pl.col("entity_keys").cast(pl.String).str.json_path_match(f"$['{column}']")
        yield pl.coalesce(field_as_text(types, "features", column), key).alias(_segment(column))


def segment_schema(columns: Iterable[str]) -> dict[str, pl.DataType]:
    """The columns that :func:`segment_columns` makes."""
    return {_segment(column): pl.String() for column in columns}


def segments(watch: Watch) -> Sequence[tuple[str, pl.Expr]]:
    """Each segment that is watched apart, by its name, and which rows are inside."""
    return [
        (f"{column}={value}", pl.col(_segment(column)) == value)
        for column, values in watch.segments.items()
        for value in values
    ]


def _segment(column: str) -> str:
    return f"segment:{column}"
