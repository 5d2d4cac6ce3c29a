"""Of each key the newest row, in tables of any length: what an online store is given.

Of rows with the same key and event time the one created last counts, without a created timestamp the later
one in the table. A row that lacks a key is nobody's.

A table that is longer than a part is cut by the order of its keys. Every batch that is read is cut down to
its own newest rows and put on disk in the order of their keys; then each part is read from all of them. No
more is held than a batch and a part, however many rows a key has. Parts by a hash of the keys would need no
sample of them, but a store that keeps its rows in the keys' order would write all its pages again with each
part: SQLite took twice as long with four of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.as_of import rows_within
from ml_lifecycle.adapters.online_rows import EntityKeys, KeyKind
from ml_lifecycle.adapters.sorting import read_run, write_run

_PART_BYTES = 16 * 2**20
_SAMPLE = 10_000  # keys, by which a table is cut
_PLACE, _KNOWN = "__place", "__known"


def newest(
    rows: pl.LazyFrame,
    keys: Sequence[str],
    order: Sequence[str],
    *,
    apart: Sequence[str] = (),
    part_rows: int | None = None,
) -> Iterator[pl.DataFrame]:
    """The newest row of each key, in parts by the order of the keys; at least one frame.

    :param keys: none if the whole table is one key's
    :param order: what rows are compared by: the event time, then when they were created, if that is known
    :param apart: columns in which rows of one key count apart; they come in the same part
    """
    schema = rows.collect_schema()
    rows = rows.drop_nulls(keys) if keys else rows
    size = part_rows or rows_within(_PART_BYTES, schema.dtypes())
    total = int(rows.select(pl.len()).collect().item())
    packing = _Packing(schema, keys)
    if total <= size:
        yield _kept(packing.with_place(rows.collect()), order, apart).drop(_PLACE)
        return
    splits = _splits(rows.select(keys), packing, total, -(-total // size))
    with tempfile.TemporaryDirectory(prefix="newest-") as folder:
        runs = []
        for number, batch in enumerate(rows.collect_batches(chunk_size=size)):
            if not batch.is_empty():
                runs.append(f"{folder}/{number}.arrow")
                run = _kept(packing.with_place(batch), order, apart)
                write_run(runs[-1], run, [int(run[_PLACE].search_sorted(split)) for split in splits])
        for part in range(len(splits) + 1):
            pieces = pa.Table.from_batches([read_run(run, part) for run in runs])
            yield _kept(pl.DataFrame(pl.from_arrow(pieces)), order, apart).drop(_PLACE)


def changed(
    rows: pl.LazyFrame,
    known: pl.LazyFrame,
    keys: Sequence[str],
    order: Sequence[str],
    *,
    part_rows: int | None = None,
) -> Iterator[pl.DataFrame]:
    """As :func:`newest` the rows that are not, value by value, the newest of their key in ``known`` too."""
    sides = ((known, True), (rows, False))
    both = pl.concat([side.with_columns(pl.lit(is_known).alias(_KNOWN)) for side, is_known in sides])
    for part in newest(both, keys, order, apart=[_KNOWN], part_rows=part_rows):
        now, before = (part.filter(side).drop(_KNOWN) for side in (~pl.col(_KNOWN), pl.col(_KNOWN)))
        yield now.join(before, on=now.columns, how="anti", nulls_equal=True, maintain_order="left")


class _Packing:
    """Makes one column of bytes of a row's keys: that by which an online store orders them, if it can be."""

    def __init__(self, schema: pl.Schema, keys: Sequence[str]) -> None:
        kinds: dict[str, KeyKind] = {}
        self._casts = []
        for key in keys:
            dtype, column = schema[key], pl.col(key)
            if dtype in (pl.Int32, pl.String, pl.Binary):
                kinds[key] = "int32" if dtype == pl.Int32 else "string" if dtype == pl.String else "bytes"
            elif dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128):
                kinds[key] = "int64"
            elif dtype == pl.Datetime:
                kinds[key], column = "timestamp", column.to_physical()
            else:
                kinds[key], column = "string", column.cast(pl.String)
            self._casts.append(column)
        self._keys = EntityKeys(kinds)

    def pack(self, frame: pl.DataFrame) -> pl.Series:
        return pl.Series(_PLACE, self._keys.pack_frame(frame.with_columns(self._casts)), pl.Binary)

    def with_place(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(self.pack(frame))


def _splits(keys: pl.LazyFrame, packing: _Packing, total: int, parts: int) -> list[bytes]:
    """The keys at which parts begin, all but the first; about as many rows are in each."""
    if not keys.collect_schema():
        return []
    sample = packing.pack(keys.gather_every(max(1, total // _SAMPLE)).collect()).sort()
    return [sample[len(sample) * part // parts] for part in range(1, parts)]


def _kept(rows: pl.DataFrame, order: Sequence[str], apart: Sequence[str]) -> pl.DataFrame:
    """Of each key the newest row, in the keys' order."""
    ordered = rows.sort(_PLACE, *apart, *order, maintain_order=True, nulls_last=False)
    marks = [pl.col(name) for name in (_PLACE, *apart)]
    return ordered.filter(pl.any_horizontal(mark.ne_missing(mark.shift(-1)) for mark in marks))
