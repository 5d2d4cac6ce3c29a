"""Writers and readers of an online store that the tests run in processes of their own, importable there."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.online_file import OnlineFile, PackedRow
from ml_lifecycle.records import Snapshot, from_json
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.online_features import materialise

Seen = dict[tuple[str, tuple[str, ...]], list[tuple[datetime, tuple[object, ...]]]]


def write(
    folder: Path, lake: str, snapshot: dict[str, Any], url: str, kill: tuple[int, str] | None = None
) -> None:
    """Materialise; with ``kill`` die ``before``, ``among`` or ``after`` the rows of the n-th batch."""
    if kill is not None:
        _die_at(*kill)
    materialise(load_folder(folder), Lake(lake), from_json(Snapshot, snapshot), url)


def _die_at(batch: int, where: str) -> None:
    write_batch, numbers = OnlineFile.write, itertools.count()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(rows: list[PackedRow]) -> Iterator[PackedRow]:
        yield from rows[: len(rows) // 2]
        die()

    def dying(file: OnlineFile, table: str, rows: Iterable[PackedRow]) -> None:
        here = next(numbers) == batch
        if here and where == "before":
            die()
        write_batch(file, table, half(list(rows)) if here and where == "among" else rows)
        if here and where == "after":
            die()

    OnlineFile.write = dying  # type: ignore[method-assign]


def read(registry: bytes, url: str, keys: dict[str, list[str]], stop: Event, answers: Connection) -> None:
    """Read all keys over and over until told to stop; sends ``"reading"`` at first, and at last how often
    it read and what it saw: by view and key the values with their event times, in the order they came.
    """
    reader = OnlineReader(registry, "flight_delay", url)
    seen: Seen = {}
    reads = 0
    try:
        while not stop.is_set() or not reads:
            _look(reader, keys, seen)
            reads += 1
            if reads == 1:
                answers.send("reading")
        answers.send((reads, seen))
    except Exception as error:  # noqa: BLE001 - any failed read is what the test is about
        answers.send(error)


def _look(reader: OnlineReader, keys: dict[str, list[str]], seen: Seen) -> None:
    store, service = reader._store, reader._service
    response = store.get_online_features(features=service, entity_rows=keys)
    values = response.to_dict()
    names = list(response.proto.metadata.feature_names.val)
    stamps = dict(zip(names, response.proto.results, strict=True))
    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        join_keys = [column.name for column in view.entity_columns]
        features = [feature.name for feature in projection.features]
        for row, key in enumerate(zip(*(keys[name] for name in join_keys), strict=True)):
            event = stamps[features[0]].event_timestamps[row].ToDatetime()
            found = event, tuple(values[feature][row] for feature in features)
            before = seen.setdefault((projection.name, key), [])
            if not before or before[-1] != found:
                before.append(found)
