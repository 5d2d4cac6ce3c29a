"""Compact: many small files of an endpoint's prediction log become few, and days that are too old go.

A busy server writes a part a second, and each that is opened costs a third of a millisecond, as much as a
hundred rows. Compacted are the stretches that are full, and of days that are over the rest as well. Of a few
parts it is left for a week: each late one would become a file of its own. Rows stay in their order, which is
that of their receipt; what is torn stays where it is, for the monitor to tell.

:mod:`ml_lifecycle.adapters.prediction_parts` says what holds at any moment. A compaction that is killed goes
on when it is called again: files are named by their content, so they are written again where they were, and
nobody reads them before their index is there; parts that an index names are deleted by whichever comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from itertools import groupby

import polars as pl

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.adapters.prediction_parts import (
    BATCH_BYTES,
    COMPACTED,
    GRACE,
    PARTS,
    STRETCH_BYTES,
    CompactedFile,
    LoggedDay,
    Stretch,
    StretchIndex,
    days,
    list_day,
    part_table,
)
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.records import Release, to_json
from ml_lifecycle.spec.model import ModelSpec

# Servers that could not write keep parts and try again.
_OVER = timedelta(hours=1)
_FEWEST = 16
_LONG_OVER = timedelta(days=7)
_TABLE = {"name": pl.String, "size": pl.Int64, "rows": pl.Int64, "file": pl.Int64}


@dataclass(frozen=True)
class Compaction:
    """What became of a log.

    :param parts: that became ``files``
    :param deleted: parts that had been compacted before
    """

    parts: int = 0
    files: int = 0
    deleted: int = 0

    def __add__(self, other: Compaction) -> Compaction:
        return Compaction(self.parts + other.parts, self.files + other.files, self.deleted + other.deleted)


def compact(
    lake: Lake,
    endpoint: str,
    now: datetime,
    *,
    at_most: int | None = None,
    grace: timedelta = GRACE,
    batch_bytes: int = BATCH_BYTES,
    stretch_bytes: int = STRETCH_BYTES,
) -> Compaction:
    """Compact what can be of an endpoint's log, the newest first, and delete what was compacted before.

    :param lake: of the environment that the endpoint is served in
    :param at_most: parts; beyond, the rest is left for the next time
    :param grace: how long compacted parts stay: as the longest reader takes
    :param batch_bytes: of the parts in a file; as those who read the log have it
    :param stretch_bytes: of the parts in a stretch; likewise
    :raises IntegrityError: a compacted file is damaged. Its parts, if they are there, stay. Retry: no.
    :raises LakeFileMissingError: somebody deleted parts meanwhile. Retry: yes.
    """
    done = Compaction()
    for day in reversed(days(lake, endpoint, [PARTS])):
        listed = list_day(lake, endpoint, day)
        done += Compaction(deleted=_delete_replaced(lake, listed, now - grace))
        for stretch in _compactable(listed, now, stretch_bytes):
            if at_most is not None and done.parts >= at_most:
                return done
            index = _rewrite(lake, endpoint, stretch, now, batch_bytes)
            if index is None:
                continue
            if not lake.create_json(f"{COMPACTED}/{endpoint}/{stretch.name}.json", to_json(index)):
                break  # somebody else compacts this day
            done += Compaction(parts=index.parts, files=len(index.files))
    return done


def _compactable(listed: LoggedDay, now: datetime, stretch_bytes: int) -> Iterator[Stretch]:
    """In the order of their numbers: what is left loose then is what comes after them."""
    end = datetime.fromisoformat(listed.day).replace(tzinfo=UTC) + timedelta(days=1)
    loose = [stretch for stretch in listed.stretches(stretch_bytes) if stretch.index is None]
    for _, alike in groupby(loose, lambda stretch: stretch.name.rsplit("-", 1)[0]):
        *full, last = alike
        yield from full
        if now - end >= (_OVER if last.parts >= _FEWEST else _LONG_OVER):
            yield last


def _rewrite(
    lake: Lake, endpoint: str, stretch: Stretch, now: datetime, batch_bytes: int
) -> StretchIndex | None:
    """Write the files of a stretch; None if there is nothing in it that can be read."""
    path = f"{COMPACTED}/{endpoint}/{stretch.name}"
    files: list[CompactedFile] = []
    parts: list[tuple[str, int, int, int]] = []
    taken: dict[str, int] = {}
    for batch in stretch.batches(batch_bytes):
        counts, rows = _read(lake, batch)
        for part, count in counts.items():
            parts.append((part.rsplit("/", 1)[-1], stretch.files[part], count, len(files)))
            taken[part] = stretch.files[part]
        if counts:
            files.append(_write(lake, path, rows))
    if not files:
        return None
    table = _write(lake, f"{path}-parts", pl.DataFrame(parts, schema=_TABLE, orient="row"))
    digest = Stretch(stretch.name, taken).digest
    return StretchIndex(now, digest, len(taken), sum(taken.values()), tuple(files), table)


def _read(lake: Lake, paths: Sequence[str]) -> tuple[Mapping[str, int], pl.DataFrame]:
    """The rows of parts, and how many each has; without those that cannot be read."""
    found = dict(zip(paths, lake.read_all(paths), strict=True))
    rows = _rows(found)
    if rows is None:
        rows = _rows({path: data for path, data in found.items() if _rows({path: data}) is not None})
    return rows or ({}, pl.DataFrame())  # else they do not fit together


def _rows(parts: Mapping[str, bytes]) -> tuple[Mapping[str, int], pl.DataFrame] | None:
    """None if they cannot be read together."""
    import pyarrow.parquet as pq

    if not parts:
        return None
    try:
        counts = {path: pq.read_metadata(BytesIO(data)).num_rows for path, data in parts.items()}
        rows = pl.scan_parquet(list(parts.values())).collect().rechunk()
    except (Exception, pl.exceptions.PanicException):  # noqa: BLE001 - damaged bytes raise whatever you like
        return None
    return (counts, rows) if rows.height == sum(counts.values()) else None


def _write(lake: Lake, path: str, rows: pl.DataFrame) -> CompactedFile:
    """Write rows, and read them back: nobody will have them any more but here."""
    data = parquet_bytes(rows)
    digest = sha256(data)
    written = lake.write_bytes(f"{path}-{digest[:16]}.parquet", data)
    if not pl.read_parquet(BytesIO(lake.read_bytes(written, digest))).equals(rows):
        raise IntegrityError(f"{lake.uri(written)} does not hold the rows that were written")
    return CompactedFile(written, len(data), rows.height, digest)


def _delete_replaced(lake: Lake, listed: LoggedDay, before: datetime) -> int:
    """Delete the parts of stretches that were compacted before a moment, and are whole."""
    deleted = 0
    for name, parts in listed.replaced.items():
        index = listed.indexes[name]
        if not parts or index.made_at > before:
            continue
        for file in index.files:
            if lake.digest(file.path) != file.digest:
                raise IntegrityError(
                    f"{lake.uri(file.path)} is damaged; its parts are still there: delete "
                    f"{COMPACTED}/…/{name}.json, and they are read, and compacted, again"
                )
        if part_table(lake, index)["rows"].sum() != sum(file.rows for file in index.files):
            raise IntegrityError(f"{lake.uri(index.table.path)} does not fit the files it is about")
        lake.delete_all(parts)
        deleted += len(parts)
    return deleted


def kept_from(spec: ModelSpec, now: datetime, window: datetime, release: Release | None) -> date | None:
    """The first day that an endpoint's log has to be kept of; None keeps all.

    :param window: the beginning of the oldest window that is still measured
    :param release: one that is watched; it is judged by the log since the day before
    """
    keep = spec.monitoring.keep_predictions
    if keep is None:
        return None
    moments = [now - keep, window]
    if release is not None:
        moments.append(release.created_at - timedelta(days=1))
    return min(moments).astimezone(UTC).date()


def expire(lake: Lake, endpoint: str, before: date) -> list[str]:
    """Delete whole days of an endpoint's log, and say which had any file.

    :param before: by the day that rows are about
    """
    gone = []
    for day in days(lake, endpoint):
        if date.fromisoformat(day) >= before:
            break
        parts = list(lake.sizes(f"{PARTS}/{endpoint}/{day}"))
        compacted = list(lake.sizes(f"{COMPACTED}/{endpoint}/{day}"))
        # Indexes last: without them parts that are still there would be read as well.
        for paths in (parts, sorted(compacted, key=lambda path: path.endswith(".json"))):
            lake.delete_all(paths)
        gone += [day] if parts or compacted else []
    return gone
