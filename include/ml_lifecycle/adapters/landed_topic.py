"""Records of a topic that were brought into the lake: one chain of landings, each following the one before.

Who writes landing *n* first has it. Another fetch that read the same at the same time finds it there, drops
its own and goes on after it: so every record is in one landing, whoever reads and whenever they are killed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.landed import landed_folder
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.records import Record, from_json, to_json
from ml_lifecycle.spec.contract_rules import FieldType
from ml_lifecycle.spec.source import Source

if TYPE_CHECKING:
    from ml_lifecycle.adapters.kafka_records import Decoded  # imports librdkafka, which few have


@dataclass(frozen=True)
class TopicLanding(Record):
    """What one chunk of a topic's records became.

    :param number: 1, 2, 3 …
    :param topic_id: what the brokers call the topic; one that is made anew has another
    :param begin: partition → the offset that was read first
    :param end: partition → the offset that is to be read next
    :param path: the rows; None where it has none, because all were markers, tombstones or set aside
    :param kinds: the type of every column so far
    :param tombstones: left out
    :param set_aside: the records that could not be read; None without any
    :param lost: partition → records that were deleted before they were read
    """

    schema: ClassVar[str] = "topic_landing/1"
    number: int
    topic_id: str | None
    begin: dict[int, int]
    end: dict[int, int]
    path: str | None
    digest: str | None
    rows: int
    kinds: dict[str, FieldType]
    tombstones: int = 0
    set_aside: str | None = None
    lost: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """Up to where a topic is in the lake.

    :param begin: as :class:`TopicLanding` has it, of the chunk that is to be kept
    """

    topic_id: str | None
    begin: Mapping[int, int]
    end: Mapping[int, int]
    lost: Mapping[int, int]


class TopicLandings:
    """The landings of one source.

    A source whose topic or columns are declared otherwise starts anew.
    """

    def __init__(self, lake: Lake, name: str, source: Source) -> None:
        self._lake = lake
        self._folder = landed_folder(name, source)

    def last(self) -> TopicLanding | None:
        """The newest; None before the first.

        :raises IntegrityError: an earlier one is missing. Retry: no.
        """
        paths = self._paths()
        return self._read(paths[-1]) if paths else None

    def current(self) -> list[TopicLanding]:
        """All of them, in their order.

        :raises IntegrityError: one is missing. Retry: no.
        """
        return [self._read(path) for path in self._paths()]

    def _paths(self) -> list[str]:
        paths = [path for path in self._lake.list(self._folder) if path.endswith(".json")]
        if paths != [self._path(number) for number in range(1, len(paths) + 1)]:
            raise IntegrityError(f"of the landings in {self._folder} some are missing: bring them back")
        return paths

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _read(self, path: str) -> TopicLanding:
        return from_json(TopicLanding, self._lake.read_json(path))

    def add(self, before: TopicLanding | None, decoded: Decoded, reached: Reached) -> TopicLanding | None:
        """Keep a chunk after the landing ``before``; None if another fetch was first."""
        number = 1 if before is None else before.number + 1
        own = f"{self._folder}/{number:08d}-{uuid.uuid4().hex[:12]}"
        path = aside = None
        if decoded.rows.height:
            path = write_parquet(self._lake, f"{own}.parquet", decoded.rows)
        if decoded.set_aside.height:
            aside = write_parquet(self._lake, f"{own}.unreadable.parquet", decoded.set_aside)
        landing = TopicLanding(
            number=number,
            topic_id=reached.topic_id,
            begin=dict(reached.begin),
            end=dict(reached.end),
            path=path,
            digest=None if path is None else self._lake.digest(path),
            rows=decoded.rows.height,
            kinds=dict(decoded.kinds),
            tombstones=decoded.tombstones,
            set_aside=aside,
            lost=dict(reached.lost),
        )
        if self._lake.create_json(self._path(number), to_json(landing)):
            return landing
        for unused in (path, aside):
            if unused is not None:
                self._lake.delete(unused)
        return None
