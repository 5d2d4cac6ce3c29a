"""Features, online: snapshot → online store; :mod:`.features` says when a value counts."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl
from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Evidence, Record, Run, Snapshot, Training, from_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    feature_queries,
    features_of,
    personal_names,
    sources_of,
)

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features


@dataclass(frozen=True)
class Materialisation(Record):
    """What became known until the run's ``as_of``, written to an online store.

    :param since: digest of the snapshot that the store was given before; None for all there is
    :param rows: feature view → rows written
    :param healed: the moment of one that was begun before and never finished, which this one made up for
    """

    schema: ClassVar[str] = "materialisation/1"
    run: Run
    snapshot_digest: str
    code_digest: str
    since: str | None
    rows: dict[str, int]
    healed: AwareDatetime | None = None


def materialise(
    folder: ModelFolder,
    lake: Lake,
    snapshot: Snapshot,
    online_store: str,
    clock: Callable[[], float] = time.time,
) -> Materialisation:
    """Bring an online store up to the run's ``as_of``; newest event wins.

    What is written is what counts now and did not when the store was last written, by what was known then:
    new events, but also rows that came late, that a late row changed, or that a static table gained. A store
    that knows of no earlier materialisation, or of one by another state of the model folder, gets all.
    Runs may come in any order and at the same time: an older one replaces nothing newer. One that was
    interrupted is made up for by the next.

    A row that is withdrawn at its source stays until a newer event of its key.

    :param online_store: URL, ``sqlite:////absolute/path.db`` or ``redis://host:port/database``
    :param clock: seconds since 1970
    :raises FeatureError: a table or column is missing, or the run's ``as_of`` is in the future. Retry: no.
    :raises SparkElsewhereError: an application is to find the newest rows first. Retry: no, run it.
    :raises OnlineStoreUnavailableError: the store cannot be used now. Retry: yes.
    :raises CanaryError: what was written is read differently. Retry: yes.
    """
    from ml_lifecycle.adapters.feast_bulk import check_window
    from ml_lifecycle.adapters.feast_written import OnlineWriter, Written

    check_window(None, snapshot.run.as_of, clock)
    features, now = features_of(folder), Written(snapshot.path, folder.code_digest, snapshot.run.as_of)
    personal = personal_names(folder, features)
    with tempfile.TemporaryDirectory(prefix="features-") as name:
        newest = _newest_rows(folder, features, lake, snapshot, Path(name) / "now")
        (repository := Path(name) / "repository").mkdir()
        with contextlib.closing(OnlineWriter(features, repository, online_store, personal)) as writer:
            last, begun = writer.last(), writer.begun()
            before, known = None, dict[str, pl.LazyFrame]()
            if last is not None:
                earlier = (moment for moment in (last.as_of, last.since) if moment is not None)
                now = replace(now, since=next((moment for moment in earlier if moment < now.as_of), None))
            if last is not None and last.code_digest == now.code_digest and lake.exists(last.snapshot_path):
                stored = from_json(Snapshot, lake.read_json(last.snapshot_path))
                known = _known_rows(folder, features, lake, stored, last.as_of, Path(name) / "known")
                if known:
                    before, now = stored, replace(now, newest=last.newest)
            rows = writer.write(newest, known, now)
    since = before.digest if before is not None else None
    healed = None
    if begun is not None and begun.as_of <= now.as_of and (last is None or last.as_of < begun.as_of):
        healed = begun.as_of
    return Materialisation(snapshot.run, snapshot.digest, folder.code_digest, since, rows, healed)


def _newest_rows(
    folder: ModelFolder, features: Features, lake: Lake, snapshot: Snapshot, into: Path
) -> dict[str, pl.LazyFrame]:
    """Rows that count as of the snapshot's run, by feature view; among them the newest of each key."""
    if folder.spec.engine == "spark":
        from ml_lifecycle.spark.newest import find_newest

        return find_newest(folder, lake, snapshot).scan(lake)
    return _by_view(features, counting_rows(folder, features, lake, snapshot, snapshot.run.as_of, into))


def _known_rows(
    folder: ModelFolder, features: Features, lake: Lake, snapshot: Snapshot, as_of: datetime, into: Path
) -> dict[str, pl.LazyFrame]:
    """As :func:`_newest_rows` of an earlier materialisation; none if Spark did not find them, or no more."""
    if folder.spec.engine == "spark":
        from ml_lifecycle.spark.newest import kept_newest

        kept = kept_newest(folder, lake, snapshot, as_of)
        return {} if kept is None else kept.scan(lake)
    return _by_view(features, counting_rows(folder, features, lake, snapshot, as_of, into))


def _by_view(features: Features, tables: Mapping[str, pl.LazyFrame]) -> dict[str, pl.LazyFrame]:
    return {view.name: tables[view.batch_source.name] for view in features.views}


def counting_rows(
    folder: ModelFolder, features: Features, lake: Lake, snapshot: Snapshot, as_of: datetime, into: Path
) -> dict[str, pl.LazyFrame]:
    """Every feature table's rows that can count at ``as_of``, computed from no more history than they take.

    They are put on disk as they are computed: what ``tables()`` makes is not held.
    """
    last, lookback = as_of - INSTANT, folder.spec.features.lookback
    lifetimes = {table: features.lifetime(table) for table in features.source_tables()}
    brief = {table: life for table, life in lifetimes.items() if life is not None and lookback is not None}
    lasting = [table for table in lifetimes if table not in brief]
    into.mkdir()

    def put(names: Collection[str], start: datetime | None) -> None:
        queries = feature_queries(folder, features, sources_of(folder, lake, snapshot, start), names)
        sinks = [
            features.counting(table, rows, last).sink_ipc(into / f"{table}.arrow", lazy=True)
            for table, rows in queries.items()
        ]
        pl.collect_all(sinks, engine="streaming")

    put(lasting, None)
    if lookback is not None and brief:
        put(brief, last - max(brief.values()) - lookback)
    return {table: pl.scan_ipc(into / f"{table}.arrow") for table in lifetimes}


def prepare_online(folder: ModelFolder, lake: Lake, evidence: Evidence, online_store: str) -> Materialisation:
    """Bring an online store up to a candidate's data, before the candidate is served.

    Values that are newer already stay.
    """
    training = from_json(Training, lake.read_json(f"{evidence.training_path}/manifest.json"))
    path = f"snapshots/{evidence.model}/{evidence.snapshot_digest}/manifest.json"
    snapshot = replace(from_json(Snapshot, lake.read_json(path)), run=training.run)
    return materialise(folder, lake, snapshot, online_store)
