"""Snapshot tables as Spark reads them: the same rows and types as in Polars, and the order they stand in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ml_lifecycle.adapters.tables import StoredRows
from ml_lifecycle.spark.session import spark_path

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from ml_lifecycle.adapters.lake import Lake

_READERS = 16
# Arrow's names of a table's types, and Spark's.
_TYPES = {
    "string": "string",
    "large_string": "string",
    "int64": "long",
    "double": "double",
    "bool": "boolean",
    "timestamp[us, tz=UTC]": "timestamp",
    "date32[day]": "date",
}
NAME, TURN, ROW = "file name", "turn", "row"
"""Columns beside a table's own: where a row stands. Of a file that is there twice, the turn tells which."""


def read_rows(session: SparkSession, stored: StoredRows, names: Mapping[str, str]) -> DataFrame:
    """Some columns of a table in its types, and :data:`NAME`, :data:`TURN` and :data:`ROW`.

    :param names: column → what it is called here; those of tables may be anything, and Spark's may not
    """
    from pyspark.sql import functions as F

    whole: DataFrame | None = None
    for (columns, turn), paths in _alike(stored).items():
        found = {name: kind for name, kind in columns if name in names}
        read = session.read.schema(_schema(found)).parquet(*paths)
        part = read.select(
            *(
                (quoted(name) if name in found else F.lit(None))
                .cast(_TYPES[stored.columns[name]])
                .alias(called)
                for name, called in names.items()
            ),
            F.col("_metadata.file_name").alias(NAME),
            F.lit(turn).alias(TURN),
            F.col("_metadata.row_index").alias(ROW),
        )
        whole = part if whole is None else whole.unionByName(part)
    if whole is None:
        kinds = {called: stored.columns[name] for name, called in names.items()}
        nothing = _schema(kinds).add(NAME, "string").add(TURN, "integer").add(ROW, "long")
        return session.createDataFrame([], nothing)
    return whole


def places(session: SparkSession, stored: StoredRows) -> DataFrame:
    """What :data:`NAME` and :data:`TURN` say of a row's place: ``place``, rising with the table's files."""
    turns: Counter[str] = Counter()
    rows = []
    for place, file in enumerate(stored.files):
        rows.append((file.path.rsplit("/", 1)[-1], turns[file.path], place))
        turns[file.path] += 1
    return session.createDataFrame(rows, f"`{NAME}` string, `{TURN}` int, place int")


def quoted(name: str) -> Column:
    """A column of any name."""
    from pyspark.sql import functions as F

    return F.col(f"`{name.replace('`', '``')}`")


def _alike(stored: StoredRows) -> Mapping[tuple[tuple[tuple[str, str], ...], int], list[str]]:
    """Paths of files with the same columns and types; a file that is there twice is in two of the groups."""
    paths = list(dict.fromkeys(file.path for file in stored.files))
    with ThreadPoolExecutor(_READERS) as readers:
        kinds = dict(zip(paths, readers.map(lambda path: _columns(stored.lake, path), paths), strict=True))
    groups: defaultdict[tuple[tuple[tuple[str, str], ...], int], list[str]] = defaultdict(list)
    turns: Counter[str] = Counter()
    for file in stored.files:
        groups[kinds[file.path], turns[file.path]].append(spark_path(stored.lake, file.path))
        turns[file.path] += 1
    return groups


def _columns(lake: Lake, path: str) -> tuple[tuple[str, str], ...]:
    """A file's columns that have a type; one without any value may have none."""
    import pyarrow.parquet

    with lake.open(path) as file:
        schema = pyarrow.parquet.read_schema(file)
    return tuple((field.name, str(field.type)) for field in schema if str(field.type) != "null")


def _schema(columns: Mapping[str, str]) -> StructType:
    from pyspark.sql.types import StructType

    schema = StructType()
    for name, kind in columns.items():
        schema = schema.add(name, _TYPES[kind])
    return schema
