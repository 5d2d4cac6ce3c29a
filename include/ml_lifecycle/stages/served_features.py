"""Features in the types, and with the missing values, that a server will see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import polars as pl

from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnSpec, ColumnType

# A model's input types, and what a missing value is in those that have one.
_TYPES: Mapping[ColumnType, pl.DataType] = {
    "float": pl.Float32(),
    "int": pl.Int64(),
    "string": pl.String(),
    "bool": pl.Boolean(),
}
_MISSING: Mapping[ColumnType, object] = {"float": float("nan"), "string": ""}


def served_specs(columns: Mapping[str, ColumnType]) -> tuple[ColumnSpec, ...]:
    """The features as a model's inputs."""
    return tuple(ColumnSpec(name, kind, nullable=kind in _MISSING) for name, kind in columns.items())


def served_types(columns: Mapping[str, ColumnType]) -> dict[str, pl.DataType]:
    """The type of each feature among served rows."""
    return {name: _TYPES[kind] for name, kind in columns.items()}


def as_served(rows: pl.DataFrame, columns: Mapping[str, ColumnType]) -> pl.DataFrame:
    """The rows, their features served.

    :raises FeatureError: a value is missing that its type cannot leave out. Retry: no.
    """
    return pl.concat(batches_as_served([rows], columns))


def batches_as_served(
    batches: Iterable[pl.DataFrame], columns: Mapping[str, ColumnType]
) -> Iterator[pl.DataFrame]:
    """As :func:`as_served`, of rows that come in batches, at least one; the error counts those of all."""
    missing: Counter[str] = Counter()
    total = 0
    for rows in batches:
        total += rows.height
        for name, kind in columns.items():
            if kind not in _MISSING:
                missing[name] += rows[name].null_count()
        if not missing.total():
            yield rows.with_columns(_served(name, kind) for name, kind in columns.items())
    for name, nulls in missing.items():
        if nulls:
            raise FeatureError(
                f"feature {name!r} is {columns[name]} and has no value in {nulls} of {total} rows, which "
                "that type cannot hold: declare it Float32, or fill it in tables()"
            )


def _served(name: str, kind: ColumnType) -> pl.Expr:
    values = pl.col(name).cast(_TYPES[kind])
    return values.fill_null(_MISSING[kind]) if kind in _MISSING else values
