"""Letting go of snapshots that nothing needs, safely beside runs that ingest.

**What stays**: what a registered version was trained on, the newest that passed its validation, the newest
few, and what is young. Age is measured in the model's own time, against its newest snapshot.

**In what order.** A snapshot goes in two steps. First its manifest: no run begins with it any more, and a
note, in ``collected/``, says which files it had. Then, once the note is older than the grace, its files, if
no snapshot of any model names them. So a run that began with a snapshot just before it went has the grace to
end. A file that nothing names at all may be one that a run has just written: it stays for the grace too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.records import Record, Snapshot, from_json, to_json
from ml_lifecycle.snapshots.history import Kept, all_snapshots, history, validations_of

_NOTES = "collected"


@dataclass(frozen=True)
class Policy:
    """What stays beside what registered versions need.

    :param newest: so many of the newest snapshots
    :param days: and all that are at most so much older than the newest
    :param grace: how long the longest run takes
    """

    newest: int = 3
    days: int = 30
    grace: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Collected(Record):
    """A snapshot that went: its files may follow."""

    schema: ClassVar[str] = "collected/1"
    at: AwareDatetime
    snapshot: Snapshot


@dataclass(frozen=True)
class Collection:
    """What went, or would go.

    :param snapshots: whose manifests went now
    :param files: that went now, with their sizes in bytes
    """

    snapshots: tuple[Snapshot, ...]
    files: dict[str, int]


def superfluous(kept: Sequence[Kept], policy: Policy) -> list[Snapshot]:
    """The snapshots of a model's history, newest first, that nothing needs."""
    if not kept:
        return []
    oldest = kept[0].as_of - timedelta(days=policy.days)
    validated = next((one for one in kept if one.validated), None)
    return [
        one.snapshot
        for one in kept[policy.newest :]
        if one.as_of < oldest and not one.versions and one is not validated
    ]


def collect(
    lake: Lake,
    model: str,
    policy: Policy,
    now: datetime,
    archive: Lake | None = None,
    *,
    dry_run: bool = False,
) -> Collection:
    """Let go of a model's snapshots that nothing needs, and of files that no snapshot of any model names.

    Killed anywhere and called again it goes on. With ``dry_run`` it tells what would go, and changes nothing.

    :param archive: another lake, where files and manifests are put first, under the same paths: copied back,
        they are there again
    """
    going = superfluous(history(lake, model), policy)
    if not dry_run:
        for snapshot in going:
            _let_go(lake, snapshot, now, archive)
    gone = {snapshot.path for snapshot in going}
    named = set[str]()
    for other in lake.folders("snapshots"):
        named |= {path for one in all_snapshots(lake, other) if one.path not in gone for path in _files(one)}
    named |= {path for note in _notes(lake) if now - note.at < policy.grace for path in _files(note.snapshot)}
    if dry_run:
        named |= {path for snapshot in going for path in _files(snapshot)}  # which stay for the grace
    files = {
        path: size
        for path, size in lake.sizes("objects").items()
        if path not in named and now - lake.modified(path) >= policy.grace
    }
    if not dry_run:
        for path in files:
            if archive is not None:
                _copy(lake, path, archive)
            lake.delete(path)
        _forget(lake, policy, now)
    return Collection(tuple(going), files)


def _let_go(lake: Lake, snapshot: Snapshot, now: datetime, archive: Lake | None) -> None:
    """The note first; then whatever leads to the snapshot, its manifest last."""
    model = safe_name(snapshot.run.model)
    note = f"{_NOTES}/{model}/{snapshot.digest}.json"
    lake.write_json(note, to_json(Collected(now, snapshot)))
    if archive is not None:
        _copy(lake, snapshot.path, archive)
    for path in validations_of(lake, snapshot.run.model).get(snapshot.digest, ()):
        lake.delete(path)
    lake.delete(snapshot.path)


def _notes(lake: Lake) -> list[Collected]:
    return [from_json(Collected, lake.read_json(path)) for path in lake.list(_NOTES)]


def _forget(lake: Lake, policy: Policy, now: datetime) -> None:
    """Notes whose files went."""
    for path in lake.list(_NOTES):
        if now - from_json(Collected, lake.read_json(path)).at >= policy.grace:
            lake.delete(path)


def _files(snapshot: Snapshot) -> set[str]:
    return {file.path for table in snapshot.tables.values() for file in table.files}


def _copy(lake: Lake, path: str, archive: Lake) -> None:
    if not archive.exists(path):
        with lake.open(path) as source, archive.writing(path) as target:
            while piece := source.read(2**20):
                target.write(piece)
