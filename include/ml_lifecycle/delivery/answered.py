"""The answers of a step that labels and business metrics are held against, whenever those become known.

Each look needs all of them anew. So they are read from the log once, narrow, and kept in few files in the
lake. What is kept is what its manifest names: files come before it, and go after it. A look that is killed
leaves at most files that nobody names; of two at once, either's manifest is whole; and what one of them has
taken from the other is read from the log again.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import polars as pl

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, sha256
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.adapters.prediction_parts import Part, alike, scan_parts
from ml_lifecycle.adapters.predictions import SCHEMA, as_logged
from ml_lifecycle.delivery.judgements import watch_folder
from ml_lifecycle.delivery.step_log import BATCH_BYTES, StepLog, segment_columns
from ml_lifecycle.records import Record, digest_of, from_json, to_json

# In memory, of one file: such a one is not merged with others any more.
_MOST_BYTES = 2**27
_COLUMNS = ("prediction_id", "model_version", "entity_keys", "event_time", "outputs", "score")


@dataclass(frozen=True)
class KeptFile:
    """Some of the rows, in Parquet.

    :param size: bytes that they take in memory
    """

    path: str
    size: int


@dataclass(frozen=True)
class Kept(Record):
    """What was read of a step's log.

    :param counted: server → number of the newest of its parts that was read
    :param files: what was found in them; each that is not full has at least twice the size of the next, so
        there are few, however often was looked
    """

    schema: ClassVar[str] = "watch_rows/1"
    counted: Mapping[str, int] = field(default_factory=dict)
    files: tuple[KeptFile, ...] = ()


def answered(
    log: StepLog, columns: Collection[str], unreadable: Collection[str], *, anew: bool = False
) -> Iterator[pl.DataFrame]:
    """A step's answered requests that say which moment they are about, some at a time.

    :param columns: what its segments are made of
    :param unreadable: parts that are left out
    :param anew: read all of the log, whatever is kept
    :raises LakeFileMissingError: another look has merged files that this one was to read. Retry: yes, anew.
    """
    for file in _keep(log, columns, unreadable, anew).files:
        yield _load(log.lake, file)


def _keep(log: StepLog, columns: Collection[str], unreadable: Collection[str], anew: bool) -> Kept:
    """Keep what came since the last look, too."""
    folder = f"{watch_folder(log.release)}/answered-{digest_of(sorted(columns))[:12]}"
    before = Kept() if anew else _kept(log.lake, folder)
    fresh = log.fresh(before.counted)
    if not fresh:
        return before
    files, named = list(before.files), set(before.files)
    for rows in _read(log, columns, [part for part in fresh if part.path not in unreadable]):
        while files and _merged(files[-1].size, int(rows.estimated_size())):
            rows = pl.concat([_load(log.lake, files.pop()), rows])
        files.append(_save(log.lake, folder, rows))
        named.add(files[-1])
    counted = {**before.counted, **{part.server: part.number for part in fresh}}
    kept = Kept(counted, tuple(files))
    log.lake.write_json(f"{folder}/kept.json", to_json(kept))
    for file in named.difference(files):
        log.lake.delete(file.path)
    return kept


def _kept(lake: Lake, folder: str) -> Kept:
    try:
        return from_json(Kept, lake.read_json(f"{folder}/kept.json"))
    except LakeFileMissingError:
        return Kept()


def _merged(older: int, newer: int) -> bool:
    return older < 2 * newer and older + newer <= _MOST_BYTES


def _read(log: StepLog, columns: Collection[str], parts: Collection[Part]) -> Iterator[pl.DataFrame]:
    known = log.requests() & (pl.col("status") == 200) & pl.col("event_time").is_not_null()
    named = {part.path: part for part in parts}
    for paths in alike({part.path: part.size for part in parts}, BATCH_BYTES):
        rows = as_logged(scan_parts(log.lake, [named[path] for path in paths])).filter(known)
        made = segment_columns(rows.collect_schema(), columns)
        found = rows.select(*(pl.col(name).cast(SCHEMA[name]) for name in _COLUMNS), *made).collect()
        if found.height:
            yield found


def _save(lake: Lake, folder: str, rows: pl.DataFrame) -> KeptFile:
    data = parquet_bytes(rows)
    return KeptFile(lake.write_bytes(f"{folder}/{sha256(data)}.parquet", data), int(rows.estimated_size()))


def _load(lake: Lake, file: KeptFile) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(lake.read_bytes(file.path)))
