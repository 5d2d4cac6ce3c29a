"""What a prediction log consists of: parts, as servers write them, and stretches, as they are compacted.

A part is about one UTC day and of one model. A stretch is many of a day's parts of one model in their order,
as much as is looked at together; compacted (:mod:`ml_lifecycle.stages.compact`) it is a few files.

**The invariant.** At any moment each row is read from one place: from the stretch whose index names its part,
else from the part.

- Parts never change. Neither does a stretch: its index is written once, by a put on condition that there is
  none, after its files are whole in the lake. They hold the rows of the parts it names, in the same order.
- The indexes of a day and model are numbered, and each is written by somebody who has read all before it and
  names no part that these name. Of two at once one has the number, and the other stops.
- Who reads lists the parts first, then the indexes: what is compacted meanwhile is read as its parts.
- A part is deleted :data:`GRACE` after the index that names it was written. Who listed it before has read it
  by then, or finds it missing: an error, never less rows.
- What is compacted has the name and digest that the same parts have while they lie loose, and is read in the
  same batches. So whatever is found in a log is the same before and after, to the last bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from itertools import groupby
from typing import ClassVar, TypeVar

import polars as pl
from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.records import Record, digest_of, from_json

T = TypeVar("T")

GRACE = timedelta(days=1)
"""How long the longest reader takes."""

STRETCH_BYTES = 64 * 2**20
"""Of the parts of a stretch."""

BATCH_BYTES = 16 * 2**20
"""Of the parts read at once; JSON text grows tenfold and more when it is unpacked."""

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What reading a damaged part raises. A panic is no Exception: it would end whoever reads."""

PARTS = "predictions"
COMPACTED = "predictions_compacted"

_PART_NAME = re.compile(r"(?P<first>\d{8}T\d{12})-(?P<server>.+)-(?P<number>\d{6,})-[0-9a-z]+\.parquet")


@dataclass(frozen=True)
class CompactedFile:
    """Rows of some of a stretch's parts: those of one batch.

    :param digest: SHA-256 of its bytes
    """

    path: str
    size: int
    rows: int
    digest: str


@dataclass(frozen=True)
class StretchIndex(Record):
    """What was made of a stretch's parts.

    :param digest: :attr:`Stretch.digest` of the parts
    :param parts: how many there were
    :param size: their bytes
    :param table: a Parquet file with a row a part, in order: ``name``, ``size``, ``rows``, and ``file``,
        which of ``files`` its rows are in
    """

    schema: ClassVar[str] = "compacted_stretch/1"
    made_at: AwareDatetime
    digest: str
    parts: int
    size: int
    files: tuple[CompactedFile, ...]
    table: CompactedFile


@dataclass(frozen=True)
class Stretch:
    """Parts of one model and day, some of the log, of which what was found may be kept.

    :param name: the same while parts are added at the end of the day
    :param files: path → size, of what is read
    :param index: given if these are compacted
    """

    name: str
    files: Mapping[str, int]
    index: StretchIndex | None = None

    @property
    def digest(self) -> str:
        """Parts are never changed, so their names and sizes say what is in them."""
        return digest_of(dict(self.files)) if self.index is None else self.index.digest

    @property
    def parts(self) -> int:
        """How many parts it is, or was."""
        return len(self.files) if self.index is None else self.index.parts

    @property
    def size(self) -> int:
        """The bytes of its parts."""
        return sum(self.files.values()) if self.index is None else self.index.size

    def batches(self, at_most: int) -> Iterator[list[str]]:
        """The files that are read together: parts of so many bytes."""
        if self.index is None:
            yield from cut(self.files, self.files.__getitem__, at_most)
        else:
            yield from ([path] for path in self.files)


@dataclass(frozen=True)
class LoggedDay:
    """A day of an endpoint's log, listed.

    :param loose: path → size of the parts that are in no compacted stretch
    :param indexes: of the compacted stretches, by name
    :param replaced: by name, the parts in them that are not deleted yet
    """

    day: str
    loose: Mapping[str, int]
    indexes: Mapping[str, StretchIndex] = field(default_factory=dict)
    replaced: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def stretches(self, at_most: int) -> Iterator[Stretch]:
        """All rows of the day: one model's stretches after another's, in the order of their numbers.

        :param at_most: bytes of the parts in one
        """
        found: dict[str, dict[int, Stretch]] = {}
        for name, index in self.indexes.items():
            kind, _, digits = name.rsplit("/", 1)[-1].rpartition("-")
            files = {file.path: file.size for file in index.files}
            found.setdefault(kind, {})[int(digits)] = Stretch(name, files, index)
        for paths in alike(self.loose, at_most):
            kind = _kind(paths[0]) or "all"
            numbered = found.setdefault(kind, {})
            number = next(n for n in range(len(numbered) + 1) if n not in numbered)
            files = {path: self.loose[path] for path in paths}
            numbered[number] = Stretch(f"{self.day}/{kind}-{number:04d}", files)
        for kind in sorted(found, key=lambda kind: "" if kind == "all" else kind):
            yield from (found[kind][number] for number in sorted(found[kind]))


def list_day(lake: Lake, endpoint: str, day: str) -> LoggedDay:
    """List a day.

    :raises LakeFileMissingError: it was deleted meanwhile: it is older than the log is kept. Retry: yes.
    :raises IntegrityError: an index is damaged. Retry: no.
    """
    parts = lake.sizes(f"{PARTS}/{endpoint}/{day}")  # before the indexes
    folder = f"{COMPACTED}/{endpoint}"
    paths = [path for path in lake.list(f"{folder}/{day}") if path.endswith(".json")]
    indexes = {
        path.removeprefix(f"{folder}/").removesuffix(".json"): _index(lake, path, data)
        for path, data in zip(paths, lake.read_all(paths), strict=True)
    }
    replaced: dict[str, Sequence[str]] = {}
    if parts:
        for name, index in indexes.items():
            named = (f"{PARTS}/{endpoint}/{day}/{part}" for part in part_table(lake, index)["name"])
            replaced[name] = [path for path in named if parts.pop(path, None) is not None]
    return LoggedDay(day, parts, indexes, replaced)


def _index(lake: Lake, path: str, data: bytes) -> StretchIndex:
    try:
        return from_json(StretchIndex, json.loads(data))
    except ValueError as error:
        raise IntegrityError(f"{lake.uri(path)} is damaged: {error}") from error


def part_table(lake: Lake, index: StretchIndex) -> pl.DataFrame:
    """The parts that a stretch was made of.

    :raises IntegrityError: the table is damaged. Retry: no.
    """
    return pl.read_parquet(BytesIO(lake.read_bytes(index.table.path, index.table.digest)))


@dataclass(frozen=True)
class Part:
    """Rows that one server wrote for one model, together.

    :param path: of the file they were written to
    :param number: rising as a server writes, over all of its endpoints; parts are written in this order
    :param first: when the first of its rows was received, by the server's clock
    :param size: bytes of that file
    :param place: once compacted: the file they are in, how many rows there are before them, and how many
        they are
    """

    path: str
    server: str
    number: int
    first: datetime
    size: int
    place: tuple[str, int, int] | None = None


def find_parts(lake: Lake, endpoint: str, day: date) -> list[Part]:
    """The parts with rows about ``day`` (UTC) or later, compacted or not.

    Of one server there are all up to the newest: a part that was written while another folder was being
    listed is left for the next time, with all that were written after it.
    """
    newest: dict[str, int] = {}
    for part in _list_parts(lake, endpoint, day):
        newest[part.server] = max(part.number, newest.get(part.server, 0))
    # Whatever was written before these is there by now.
    found = [part for part in _list_parts(lake, endpoint, day) if part.number <= newest.get(part.server, 0)]
    return sorted(found, key=lambda part: part.path)


def _list_parts(lake: Lake, endpoint: str, day: date) -> Iterator[Part]:
    for name in days(lake, endpoint):
        if name >= day.isoformat():
            listed = list_day(lake, endpoint, name)
            for path, size in listed.loose.items():
                yield from _parsed(path, size, None)
            for index in listed.indexes.values():
                table = part_table(lake, index)
                before = table.select(pl.col("rows").cum_sum().over("file") - pl.col("rows")).to_series()
                for (part, size, rows, file), offset in zip(table.iter_rows(), before, strict=True):
                    place = index.files[file].path, offset, rows
                    yield from _parsed(f"{PARTS}/{endpoint}/{name}/{part}", size, place)


def _parsed(path: str, size: int, place: tuple[str, int, int] | None) -> Iterator[Part]:
    if (found := _PART_NAME.fullmatch(path.rsplit("/", 1)[-1])) is not None:
        first = datetime.strptime(found["first"], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
        yield Part(path, found["server"], int(found["number"]), first, size, place)


def days(lake: Lake, endpoint: str, roots: Sequence[str] = (PARTS, COMPACTED)) -> list[str]:
    """The days that the log has folders of, in order; a folder that is none is somebody else's."""
    names = {name for root in roots for name in lake.folders(f"{root}/{endpoint}")}
    return sorted(filter(_is_day, names))


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def scan_parts(lake: Lake, parts: Iterable[Part]) -> pl.LazyFrame:
    """The rows of parts that one model wrote, as they were written, wherever they are."""
    found: list[pl.LazyFrame] = []
    for file, run in groupby(parts, lambda part: part.place and part.place[0]):
        if file is None:
            found.append(lake.scan([part.path for part in run], whole=True))
        else:
            rows = lake.scan([file], whole=True).collect()
            slices = [rows.slice(*part.place[1:]) for part in run if part.place is not None]
            found.append(pl.concat(slices, rechunk=True).lazy())
    return pl.concat(found)


def alike(files: Mapping[str, int], at_most: int) -> Iterator[list[str]]:
    """Paths of parts in batches of so many bytes, each of one model: only those have the same columns.

    :param files: path → size
    """
    for _, paths in groupby(sorted(files, key=_kind), _kind):
        yield from cut(paths, files.__getitem__, at_most)


def cut(items: Iterable[T], size: Callable[[T], int], at_most: int) -> Iterator[list[T]]:
    """Items in their order, in batches of so many bytes, or of one item that is larger by itself."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > at_most:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def _kind(path: str) -> str:
    """What the names of one model's parts end with; of schema 1 all parts have the same columns."""
    ending = path.rsplit("-", 1)[-1]
    if ending.removesuffix(".parquet").isdigit() and len(ending) == 14:
        return ""
    return ending.removesuffix(".parquet")
