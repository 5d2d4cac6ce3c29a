"""Features, online: snapshot → online store; :mod:`.features` says when a value counts."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Evidence, Interval, Record, Run, Snapshot, Training, from_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import (
    BEGINNING,
    INSTANT,
    build_tables,
    features_of,
    history_start,
    local_tables,
    make_frames,
    sources_of,
)


@dataclass(frozen=True)
class Materialisation(Record):
    """One window written to an online store.

    :param rows: table → live feature rows of the window; of each key the newest was written
    """

    schema: ClassVar[str] = "materialisation/1"
    run: Run
    snapshot_digest: str
    code_digest: str
    window: Interval
    rows: dict[str, int]


@dataclass(frozen=True)
class Audit(Record):
    """Online values held against what the offline join says for the same keys and moment.

    :param compared: values compared
    :param differing: values that differ, by ``view:feature``; empty is what should be
    :param examples: a few of them, in words
    """

    schema: ClassVar[str] = "feature_audit/1"
    as_of: AwareDatetime
    compared: int
    differing: dict[str, int]
    examples: tuple[str, ...]


def materialise(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, online_store: str, window: Interval
) -> Materialisation:
    """Write the features that became known in ``window`` to the online store; newest event wins.

    The first materialisation starts at 1970-01-01, so that static tables are in it.

    :param online_store: URL, ``sqlite:////absolute/path.db``
    :raises FeatureError: the window ends after the run's ``as_of``: its features are not known yet, or a
        table or column is missing. Retry: no.
    """
    from ml_lifecycle.adapters.feast_repo import materialise, open_store

    if window.end > snapshot.run.as_of:
        raise FeatureError(
            f"the window ends {window.end.isoformat()}, after the run's as_of "
            f"{snapshot.run.as_of.isoformat()}: its features are not known yet"
        )
    features = features_of(folder)
    sources = sources_of(folder, lake, snapshot, history_start(folder, window))
    frames = make_frames(folder, features, sources, labels=False)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="features-") as name:
        for table, frame in frames.items():
            new = frame.filter(features.known_in(table, window))
            new.write_parquet(Path(name) / f"{table}.parquet")
            rows[table] = new.height
        if window.length:
            store = open_store(features, Path(name), online_store)
            materialise(store, window.start, window.end - INSTANT)
    return Materialisation(snapshot.run, snapshot.digest, folder.code_digest, window, rows)


def prepare_online(folder: ModelFolder, lake: Lake, evidence: Evidence, online_store: str) -> Materialisation:
    """Fill an online store with what is live as of a candidate's data, before the candidate is served.

    Values that are newer already stay.
    """
    training = from_json(Training, lake.read_json(f"{evidence.training_path}/manifest.json"))
    path = f"snapshots/{evidence.model}/{evidence.snapshot_digest}/manifest.json"
    snapshot = replace(from_json(Snapshot, lake.read_json(path)), run=training.run)
    return materialise(folder, lake, snapshot, online_store, Interval(BEGINNING, training.run.as_of))


def audit_online(
    folder: ModelFolder,
    lake: Lake,
    snapshot: Snapshot,
    online_store: str,
    as_of: datetime,
    sample: int = 100,
    seed: int = 0,
) -> Audit:
    """Hold ``sample`` keys of each view in the online store against the offline join as of ``as_of``.

    :param as_of: the end of the last window that was materialised
    """
    from ml_lifecycle.adapters.feast_audit import compare
    from ml_lifecycle.adapters.feast_repo import open_store

    features = features_of(folder)
    with local_tables(lake, build_tables(folder, lake, snapshot)) as path:
        store = open_store(features, path, online_store)
        compared, differences = compare(store, features, as_of - INSTANT, sample, seed)
    differing = Counter(difference.feature for difference in differences)
    return Audit(as_of, compared, dict(differing), tuple(str(difference) for difference in differences[:10]))
