"""What is measured of a source as a whole, on Spark."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from ml_lifecycle.adapters.tables import TIMESTAMP, StoredRows
from ml_lifecycle.profiles.profile import Columns
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.spark.profiling import profile_rows
from ml_lifecycle.spark.tables import quoted, read_rows
from ml_lifecycle.spec.contract_rules import Scalar
from ml_lifecycle.stages.validation_facts import FactError, Span

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class SparkFacts:
    """Numbers about the rows of a table's files, as :class:`~ml_lifecycle.stages.validation_facts.Facts`."""

    def __init__(self, session: SparkSession, stored: StoredRows) -> None:
        self._session, self._stored = session, stored

    @property
    def schema(self) -> pl.Schema:
        """The columns and their types."""
        return self._stored.scan().collect_schema()

    def count(self, span: Span | None) -> int:
        """How many rows there are."""
        return self._rows([], span).count()

    def newest(self, column: str) -> datetime | None:
        """The newest moment in a column; None without any."""
        from pyspark.sql import functions as F

        newest = self._rows([column], None).select(F.max(quoted(column).cast("timestamp")).alias("newest"))
        found: datetime | None = _collected(newest)["newest"].cast(TIMESTAMP)[0]
        return found

    def by_day(self, span: Span) -> pl.DataFrame:
        """Columns ``day`` and ``rows`` for every UTC day that has some."""
        from pyspark.sql import functions as F

        day = F.date_trunc("day", quoted(span.column).cast("timestamp")).alias("day")
        counted = self._rows([], span).groupBy(day).agg(F.count(F.lit(1)).alias("rows"))
        return _collected(counted).cast({"day": TIMESTAMP, "rows": pl.Int64})

    def shares(self, column: str, values: Sequence[Scalar]) -> tuple[int, ...]:
        """How often each value is there, and last how many rows have any.

        :raises FactError: the column is of another type than the values. Retry: no.
        """
        from pyspark.sql import functions as F

        kind = self.schema[column]
        try:
            known = pl.Series(values, dtype=kind).to_list()
        except (TypeError, pl.exceptions.PolarsError) as error:
            raise FactError(str(error)) from error
        value = quoted(column)
        asked = [F.count(F.when(value == F.lit(one), 1)).alias(str(n)) for n, one in enumerate(known)]
        return _collected(self._rows([column], None).select(*asked, F.count(value).alias("all"))).row(0)

    def profiles(self, columns: Sequence[ColumnSpec], span: Span | None) -> Columns:
        """Profiles of some columns."""
        names = [column.name for column in columns]
        rows = self._rows(names, span).select(*(quoted(name) for name in names))
        return profile_rows(rows, columns).columns

    def _rows(self, columns: Sequence[str], span: Span | None) -> DataFrame:
        from pyspark.sql import functions as F

        names = dict.fromkeys([*columns, *([] if span is None else [span.column])])
        rows = read_rows(self._session, self._stored, {name: name for name in names})
        if span is None:
            return rows
        moment = quoted(span.column).cast("timestamp")
        return rows.filter((moment >= F.lit(span.interval.start)) & (moment < F.lit(span.interval.end)))


def _collected(rows: DataFrame) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(rows.toArrow()))
