"""The part of the monitor about the online store: how old are its values, and are they right?"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import LifecycleError, NoSpaceError
from ml_lifecycle.personal import told
from ml_lifecycle.records import Finding, Record, Snapshot, from_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    build_tables,
    features_of,
    local_tables,
    personal_names,
)

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features
    from ml_lifecycle.adapters.feast_written import OnlineWriter, Written

MISMATCH = "online_mismatch_share"
_SAMPLE = 100  # keys of each view


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


@dataclass(frozen=True)
class Online:
    """What is said of an online store at a run's moment.

    :param staleness: how old what it was given is, in seconds: of each feature view the age of its newest
        event, and the age of the newest finished materialisation. The same moment gives the same answer
    :param mismatches: the share of its values that the offline join has not, in all and of each feature with
        such values. Sampled as the store is now, so that it is asked once: nothing is named by them
    :param examples: a few differing values in words
    """

    staleness: tuple[Finding, ...] = ()
    mismatches: tuple[Finding, ...] = ()
    examples: tuple[str, ...] = ()


def look_at(folder: ModelFolder, lake: Lake, online_store: str, as_of: datetime) -> Online:
    """How old at ``as_of`` is what an online store was given, by its own ledger, and is it right?

    Later materialisations do not count. Values are compared as of the last one that does, and only while no
    later one has replaced any; nor if another state of the model folder wrote them, or they are written while
    they are looked at. What cannot be read or compared, or was never given, is a finding with an ``error``.

    :raises OSError: the lake cannot be reached. Retry: yes.
    """
    features = features_of(folder)
    views = sorted(view.name for view in features.views if view.online)
    try:
        with _ledger(features, online_store) as ledger:
            written = next((window for window in ledger.windows() if window.as_of <= as_of), None)
            nothing = f"nothing was materialised as of {as_of.isoformat()} or before"
            ages = _staleness(views, as_of, written, nothing)
            if written is None or written.code_digest != folder.code_digest or _newest(ledger) != written:
                return Online(ages)
            audit = _audit(folder, lake, online_store, written)
            if _newest(ledger) != written:
                return Online(ages)
    except LifecycleError as failure:
        return Online(_staleness(views, as_of, None, str(failure)))
    if isinstance(audit, str):
        return Online(ages, (Finding(MISMATCH, None, None, 0, error=f"nothing was compared: {audit}"),))
    return Online(ages, _mismatches(audit), audit.examples)


def _staleness(
    views: Sequence[str], as_of: datetime, written: Written | None, error: str
) -> tuple[Finding, ...]:
    newest = written.newest if written is not None else {}
    moments: list[tuple[str, str | None, datetime | None]] = [
        *(("feature_staleness_seconds", view, newest.get(view)) for view in views),
        ("materialisation_staleness_seconds", None, written.as_of if written is not None else None),
    ]
    return tuple(
        Finding(metric, view, None, 0, error=error)
        if moment is None
        else Finding(metric, view, (as_of - moment).total_seconds(), 1)
        for metric, view, moment in moments
    )


def _audit(folder: ModelFolder, lake: Lake, online_store: str, written: Written) -> Audit | str:
    """The audit; or why there is none."""
    try:
        snapshot = from_json(Snapshot, lake.read_json(written.snapshot_path))
        return audit_online(folder, lake, snapshot, online_store, written.as_of, _SAMPLE)
    except LakeFileMissingError as error:  # the snapshot was let go of
        return str(error)
    except (OSError, NoSpaceError):
        raise
    except Exception as error:  # noqa: BLE001 - it runs the user's code; all else must still be measured
        return told(error)


def _mismatches(audit: Audit) -> tuple[Finding, ...]:
    if not audit.compared:
        return ()
    whole = (None, sum(audit.differing.values()))
    of_each: list[tuple[str | None, int]] = [whole, *audit.differing.items()]
    return tuple(Finding(MISMATCH, name, n / audit.compared, audit.compared) for name, n in of_each)


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

    :param as_of: that of the last materialisation
    """
    from ml_lifecycle.adapters.feast_audit import compare
    from ml_lifecycle.adapters.feast_repo import open_store

    features = features_of(folder)
    with local_tables(lake, build_tables(folder, lake, snapshot)) as path:
        store = open_store(features, path, online_store)
        compared, differences = compare(store, features, as_of - INSTANT, sample, seed)
    personal = personal_names(folder, features)
    differing = Counter(difference.feature for difference in differences)
    return Audit(
        as_of, compared, dict(differing), tuple(difference.shown(personal) for difference in differences[:10])
    )


def _newest(ledger: OnlineWriter) -> Written | None:
    """The newest materialisation; None if one was begun after it, which may have replaced some values."""
    last, begun = ledger.last(), ledger.begun()
    return last if begun is None or last is None or begun.as_of <= last.as_of else None


@contextlib.contextmanager
def _ledger(features: Features, online_store: str) -> Iterator[OnlineWriter]:
    from ml_lifecycle.adapters.feast_written import OnlineWriter

    with (
        tempfile.TemporaryDirectory(prefix="features-") as name,
        contextlib.closing(OnlineWriter(features, Path(name), online_store)) as ledger,
    ):
        yield ledger
