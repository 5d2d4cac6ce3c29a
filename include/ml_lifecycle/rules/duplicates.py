"""Rows that hold the same in some columns: found exactly, at any number of rows, in bounded memory.

Rows with different hashes differ, so one pass over the columns' 64-bit hashes, put aside on disk in parts,
finds every row that may have a twin. Most tables have none and are done. Only what shares a hash is looked
at again, and compared by its values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import polars as pl

# Hashes sorted at a time: 32 MiB, as much again while they are.
AT_ONCE = 4_000_000
_IN_MEMORY = 64 * 2**20
# No column of a table has such names.
_HASH, _NEW, _OLDER = "\0hash", "\0new", "\0older"


@dataclass(frozen=True)
class Duplicates:
    """What a search found.

    :param rows: how many were looked at: the new ones, and older ones that share their values
    :param missing: rows of them without a value in any column
    :param duplicated: rows that are not the only ones with their values
    :param sample: the first of them; None without any
    """

    rows: int
    missing: int
    duplicated: int
    sample: pl.DataFrame | None


def find_duplicates(
    frame: pl.LazyFrame,
    older: pl.LazyFrame | None,
    columns: Sequence[str],
    *,
    limit: int,
    at_once: int = AT_ONCE,
) -> Duplicates:
    """Rows of ``frame`` with the same in ``columns`` as another of its rows or one of ``older``.

    :param older: what is found there counts too; duplicates among the older alone do not
    :param limit: rows of the sample
    """
    new, known = _Rows(frame, columns), None if older is None else _Rows(older, columns)
    total = new.count() + (0 if known is None else known.count())
    parts = 1 + total // at_once
    shared, duplicated, twins = 0, 0, list[pl.Series]()
    with _Hashes(new, parts) as hashes, _Hashes(known, parts) as known_hashes:
        suspects = (_suspects(hashes.part(n), known_hashes.part(n)) for n in range(parts))
        for chunk in _chunks(suspects, at_once // 4):
            groups = _groups(new, known, chunk)
            shared += int(groups[_OLDER].sum())
            several = groups.filter(pl.col(_NEW) + pl.col(_OLDER) > 1)
            duplicated += int(several[_NEW].sum()) + int(several[_OLDER].sum())
            if sum(map(len, twins)) < limit:
                twins.append(several.head(limit)[_HASH])
    sample = None
    if duplicated:
        frames = [new.hashed] if known is None else [new.hashed, known.hashed]
        # By their hashes: of others than the twins themselves one in 2⁶⁴ has one of these.
        found = pl.concat(frames).filter(pl.col(_HASH).is_in(pl.concat(twins).implode()))
        sample = found.drop(_HASH).head(limit).collect(engine="streaming")
    rows = new.count()
    return Duplicates(rows + shared, rows - hashes.count, duplicated, sample)


class _Rows:
    """A frame's rows and the hash of their columns; NaN is null, as everywhere in contracts."""

    def __init__(self, frame: pl.LazyFrame, columns: Sequence[str]) -> None:
        schema = frame.collect_schema()
        floats = [name for name in columns if schema[name].is_float()]
        self._frame = frame.with_columns(pl.col(floats).fill_nan(None)) if floats else frame
        self.columns = list(columns)

    def count(self) -> int:
        return int(self._frame.select(pl.len()).collect(engine="streaming").item())

    @property
    def hashed(self) -> pl.LazyFrame:
        """Rows with a value in any of the columns, each with its hash."""
        names = self.columns
        some = pl.any_horizontal(pl.col(names).is_not_null())
        value = pl.col(names[0]) if len(names) == 1 else pl.struct(names)
        return self._frame.filter(some).with_columns(value.hash().alias(_HASH))


class _Hashes:
    """The hashes of some rows on disk, in parts that each fit into memory; few rows never leave memory."""

    def __init__(self, rows: _Rows | None, parts: int) -> None:
        self.count = 0
        self._rows, self._parts = rows, parts
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> _Hashes:
        with self._open:
            for _ in range(self._parts if self._rows is not None else 0):
                file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY // self._parts)
                self._files.append(self._open.enter_context(file))
            if self._rows is not None:
                for batch in self._rows.hashed.select(_HASH).collect_batches(engine="streaming"):
                    self._add(batch[_HASH].to_numpy())
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _add(self, hashes: np.ndarray) -> None:
        self.count += len(hashes)
        if self._parts == 1:
            self._files[0].write(hashes.tobytes())
            return
        part = hashes % np.uint64(self._parts)
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part.astype(np.int64), minlength=self._parts))
        for file, some in zip(self._files, np.split(hashes[order], ends[:-1]), strict=True):
            file.write(some.tobytes())

    def part(self, number: int) -> np.ndarray:
        """The hashes of one part, sorted, each at most twice; the same hash is always in the same part."""
        found = np.empty(0, np.uint64)
        if self._files:
            file = self._files[number]
            file.seek(0)
            # One value in most rows would make one part of most rows: hence in pieces.
            while piece := file.read(AT_ONCE * found.itemsize):
                found = np.sort(np.concatenate([found, np.frombuffer(piece, np.uint64)]))
                found = found[np.concatenate([[True] * len(found[:2]), found[2:] != found[:-2]])]
        return found


def _suspects(hashes: np.ndarray, older: np.ndarray) -> np.ndarray:
    """Of sorted hashes those that occur twice, or also among the older."""
    twice = hashes[1:][hashes[1:] == hashes[:-1]]
    if not len(older):
        return np.unique(twice)
    place = np.minimum(np.searchsorted(older, hashes), len(older) - 1)
    return np.unique(np.concatenate([twice, hashes[older[place] == hashes]]))


def _chunks(arrays: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The arrays' values in pieces of at least ``size``, the last of what is left."""
    held: list[np.ndarray] = []
    for array in arrays:
        held.append(array)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if sum(map(len, held)):
        yield np.concatenate(held)


def _groups(new: _Rows, known: _Rows | None, hashes: np.ndarray) -> pl.DataFrame:
    """How many new and older rows hold the same values, for values of new rows with one of these hashes."""
    wanted = pl.Series(hashes).implode()
    sides = [(new, 1)] if known is None else [(new, 1), (known, 0)]
    rows = pl.concat(
        side.hashed.filter(pl.col(_HASH).is_in(wanted)).select(
            *side.columns, _HASH, _number(is_new).alias(_NEW), _number(1 - is_new).alias(_OLDER)
        )
        for side, is_new in sides
    )
    counted = rows.group_by([*new.columns, _HASH]).agg(pl.col(_NEW, _OLDER).sum())
    found = counted.select(_HASH, _NEW, _OLDER).filter(pl.col(_NEW) > 0)
    return found.collect(engine="streaming")


def _number(value: int) -> pl.Expr:
    return pl.lit(value, dtype=pl.Int64)
