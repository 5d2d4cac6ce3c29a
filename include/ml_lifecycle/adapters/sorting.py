"""Rows in order, in tables of any length.

A table that is longer than a part is cut by the order itself. Every batch that is read is sorted and put on
disk; then each part is read from all of them, and sorted. No more is held than a batch or a part, unless more
rows than that are alike in all that they are ordered by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise

import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.as_of import rows_within
from ml_lifecycle.adapters.local_files import no_room_said

# Sorting takes a few times as much.
_PART_BYTES = 96 * 2**20
_SAMPLE = 10_000  # rows, by which a table is cut
_ROWS = "__rows"  # false in a row that is none, but where a part begins


def sorted_batches(
    rows: pl.LazyFrame, by: Sequence[str], *, part_rows: int | None = None
) -> Iterator[pl.DataFrame]:
    """The rows by some columns, nulls first; those that are alike in them stay in the table's order.

    The rows of all batches and their order do not depend on the size; a batch may be empty.

    :raises NoSpaceError: the local disk is full. Retry: yes, when there is room.
    """
    schema = rows.collect_schema()
    size = part_rows or rows_within(_PART_BYTES, schema.dtypes())
    total = int(rows.select(pl.len()).collect(engine="streaming").item())
    if total <= size:
        yield rows.collect().sort(by, maintain_order=True)
        return
    starts = _starts(rows.select(by), by, total, -(-total // size))
    with tempfile.TemporaryDirectory(prefix="sorted-") as folder:
        runs = []
        for number, batch in enumerate(rows.collect_batches(chunk_size=size, engine="streaming")):
            if not batch.is_empty():
                runs.append(f"{folder}/{number}.arrow")
                write_run(runs[-1], *_sorted_run(batch, by, starts))
        for part in range(starts.height + 1):
            pieces = pa.Table.from_batches([read_run(run, part) for run in runs])
            yield pl.DataFrame(pl.from_arrow(pieces)).cast(schema).sort(by, maintain_order=True)


def _starts(keys: pl.LazyFrame, by: Sequence[str], total: int, parts: int) -> pl.DataFrame:
    """The rows at which parts begin, all but the first; about as many rows are in each."""
    every = max(1, total // _SAMPLE)
    batches = keys.collect_batches(chunk_size=max(every, total // parts), engine="streaming")
    sample = pl.concat(batch.gather_every(every) for batch in batches).sort(by)
    return sample[[sample.height * part // parts for part in range(1, parts)]]


def _sorted_run(
    batch: pl.DataFrame, by: Sequence[str], starts: pl.DataFrame
) -> tuple[pl.DataFrame, list[int]]:
    """A batch in order, and where in it parts begin: sorted among its rows, their starts say so."""
    marked = [batch.with_columns(pl.lit(True).alias(_ROWS)), starts.with_columns(pl.lit(False).alias(_ROWS))]
    both = pl.concat(marked, how="diagonal").sort([*by, _ROWS], maintain_order=True)
    places = both[_ROWS].not_().arg_true()
    run = both.filter(pl.col(_ROWS)).drop(_ROWS)
    return run, [place - number for number, place in enumerate(places)]


def write_run(path: str, run: pl.DataFrame, cuts: Sequence[int]) -> None:
    """Put rows on disk, those between two cuts as one Arrow batch.

    :raises NoSpaceError: the disk is full. Retry: yes, when there is room.
    """
    (rows,) = run.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()
    with no_room_said(path), pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        for first, last in pairwise([0, *cuts, run.height]):
            writer.write_batch(rows.slice(first, last - first))


def read_run(path: str, part: int) -> pa.RecordBatch:
    """What :func:`write_run` put between two cuts."""
    with pa.OSFile(path) as file:
        return pa.ipc.open_file(file).get_batch(part)
