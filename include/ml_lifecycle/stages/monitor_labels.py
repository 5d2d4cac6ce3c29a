"""The part of the monitor that joins predictions with labels: in partitions, of any number of rows.

Both sides are cut by a hash of entity keys and event time, into as many parts as a part of either fits into
memory. Small windows stay there; of large ones the parts wait on the local disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import polars as pl

from ml_lifecycle.adapters.local_files import no_room_said
from ml_lifecycle.metrics import label_texts
from ml_lifecycle.records import Interval
from ml_lifecycle.spec.model import Labels

TIME = "event_time"
TRUTH = "truth"
_UTC = pl.Datetime("us", "UTC")
_BATCH_ROWS = 131_072
_WHOLE = 2.0**63  # beyond, no integer of 64 bits is the same
_HELD_BYTES = 48 * 2**20


class Parts:
    """Frames cut in parts by a hash of some columns; what is more than a little waits on the disk.

    :param count: of parts
    :raises NoSpaceError: while adding: the local disk is full. Retry: yes, when there is room.
    """

    def __init__(self, folder: Path, count: int, by: Sequence[str]) -> None:
        self._folder = folder
        self._by = list(by)
        self._held: list[list[pl.DataFrame]] = [[] for _ in range(count)]
        self._files: list[list[Path]] = [[] for _ in range(count)]
        self._bytes = 0
        folder.mkdir()

    def add(self, rows: pl.DataFrame) -> None:
        """Cut a frame."""
        count = len(self._held)
        if count == 1:
            self._held[0].append(rows)
        else:
            part = pl.struct(self._by).hash(0) % count
            cut = rows.with_columns(part.alias("part")).partition_by("part", as_dict=True, include_key=False)
            for (number,), frame in cut.items():
                self._held[number].append(frame)
        self._bytes += int(rows.estimated_size())
        if self._bytes > _HELD_BYTES:
            self._write()

    def each(self) -> Iterator[pl.DataFrame | None]:
        """The parts in their order; None for one without rows."""
        for held, files in zip(self._held, self._files, strict=True):
            frames = [*(pl.read_ipc(file) for file in files), *held]
            yield pl.concat(frames) if frames else None

    def _write(self) -> None:
        for number, held in enumerate(self._held):
            if held:
                file = self._folder / f"{number}-{len(self._files[number])}.arrow"
                with no_room_said(file):
                    pl.concat(held).write_ipc(file, compression="lz4")
                self._files[number].append(file)
                held.clear()
        self._bytes = 0


class KnownLabels:
    """The window's labels that were known before some moment: keys as text, ``event_time`` and ``truth``.

    Of several labels for one key and time, the one known last holds; if that is null, none does.

    :param digest: of them all, whatever their order
    """

    def __init__(self, labels: Labels, folder: Path, parts: int) -> None:
        self.names = (*labels.keys, TIME)
        self.digest = ""
        self.rows = 0
        self.folder = folder
        self.count = parts
        self._labels = labels
        self._parts = Parts(folder / "labels", parts, self.names)

    def read(self, table: pl.LazyFrame, window: Interval, as_of: datetime) -> None:
        """Read them from the table.

        :raises polars.exceptions.PolarsError: a column of ``labels:`` in the spec is not in it. Retry: no.
        """
        raw = Parts(self.folder / "raw", self.count, self.names)
        for rows in _known(self._labels, table, window, as_of, self.folder / "known.parquet"):
            raw.add(rows)
        total = 0
        for part in raw.each():
            if part is not None:
                newest = part.unique(self.names, keep="any", maintain_order=False)
                if newest.height < part.height:  # few tables have revisions, and to sort takes the longest
                    ordered = part.sort("known_at", TRUTH)
                    newest = ordered.unique(self.names, keep="last", maintain_order=False)
                newest = newest.drop("known_at").drop_nulls(TRUTH)
                total = (total + _sum_of_hashes(newest)) % 2**256
                self.rows += newest.height
                self._parts.add(newest)
        self.digest = f"{self.rows}-{total:064x}"

    def before(self, moment: datetime) -> int:
        """How many of them are about earlier times."""
        return sum(
            part.filter(pl.col(TIME) < moment).height for part in self._parts.each() if part is not None
        )

    def join(self, rows: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The rows whose label is known, with ``truth``.

        :param rows: with ``entity_keys`` as JSON, and ``event_time``; one without a time has no label
        """
        keys = pl.Struct(dict.fromkeys(self._labels.keys, pl.String))
        served = Parts(self.folder / "served", self.count, self.names)
        for batch in rows:
            known = batch.filter(pl.col(TIME).is_not_null())
            unpacked = known.select(pl.col("entity_keys").str.json_decode(keys)).unnest("entity_keys")
            served.add(pl.concat([known.drop("entity_keys"), unpacked], how="horizontal"))
        for part, truth in zip(served.each(), self._parts.each(), strict=True):
            if part is not None and truth is not None:
                yield part.join(truth, on=list(self.names), how="inner", maintain_order="left")


@contextmanager
def room_for_labels(labels: Labels, parts: int) -> Iterator[KnownLabels]:
    """Where they may wait while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="monitor-") as folder:
        yield KnownLabels(labels, Path(folder), parts)


def _known(
    labels: Labels, table: pl.LazyFrame, window: Interval, as_of: datetime, file: Path
) -> Iterator[pl.DataFrame]:
    """The labels that count, in batches, keys and truth as text."""
    import pyarrow.parquet

    keys = [f"key:{key}" for key in labels.keys]
    with no_room_said(file):
        known_rows(labels, table, window, as_of).sink_parquet(file, compression="lz4", statistics=False)
    stored = pl.scan_parquet(file)
    plain = _plain(stored, [*keys, TRUTH])
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_BATCH_ROWS):
        rows = pl.from_arrow(batch)
        assert isinstance(rows, pl.DataFrame)  # a record batch always is one
        rows = rows.with_columns(plain)
        yield rows.select(
            *(label_texts(rows[key]).alias(name) for key, name in zip(keys, labels.keys, strict=True)),
            TIME,
            label_texts(rows[TRUTH]).alias(TRUTH),
            "known_at",
        )


def _sum_of_hashes(rows: pl.DataFrame) -> int:
    """The same for the same rows in any order and any parts; 256 bits, by four seeds."""
    row = pl.struct(pl.all())
    low = 2**32 - 1
    halves = [
        half
        for seed in range(1, 5)
        for half in ((row.hash(seed) & low).sum(), (row.hash(seed) // 2**32).sum())
    ]
    sums = rows.select(half.cast(pl.UInt64).alias(str(place)) for place, half in enumerate(halves)).row(0)
    return sum(value << (32 * place) for place, value in enumerate(sums))


def known_rows(labels: Labels, table: pl.LazyFrame, window: Interval, as_of: datetime) -> pl.LazyFrame:
    """The window's labels that were known before ``as_of``: each key as ``key:…``, times and ``truth``.

    The truth of one that was withdrawn is null.
    """
    return table.select(
        *(pl.col(key).alias(f"key:{key}") for key in labels.keys),
        pl.col(labels.event_time).cast(_UTC).alias(TIME),
        pl.col(labels.column).alias(TRUTH),
        pl.col(labels.known_at).cast(_UTC).alias("known_at"),
    ).filter(
        pl.col(TIME).is_between(window.start, window.end, closed="left"),
        pl.col("known_at") < as_of,
    )


def _plain(stored: pl.LazyFrame, columns: Sequence[str]) -> list[pl.Expr]:
    """Whether floats are whole numbers is said of all of them at once, or a batch would be other text."""
    floats = [name for name, dtype in stored.collect_schema().items() if name in columns and dtype.is_float()]
    if not floats:
        return []
    are_whole = (pl.col(floats) % 1 == 0) & (pl.col(floats).abs() < _WHOLE)
    whole = stored.select(are_whole.all()).collect(engine="streaming").row(0, named=True)
    return [pl.col(name).cast(pl.Int64 if whole[name] else pl.String) for name in floats]
