"""The part of the monitor about the online store: how old are its values, and are they right?"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.personal import personal_columns, told
from ml_lifecycle.records import Finding, Record, Snapshot, from_json
from ml_lifecycle.spec.feature_tags import personal_features
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import INSTANT, build_tables, features_of, local_tables

if TYPE_CHECKING:
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


def staleness(folder: ModelFolder, online_store: str, as_of: datetime) -> tuple[Finding, ...]:
    """How old at ``as_of`` what an online store was given is, by its own ledger; in seconds.

    Of each feature view the age of its newest event, and the age of the newest finished materialisation.
    Later ones do not count: the same moment gives the same answer. A store that cannot be read, or was never
    given a view, is a finding with an ``error``; nothing is raised.
    """
    written, error = None, f"nothing was materialised as of {as_of.isoformat()} or before"
    features = features_of(folder)
    try:
        with _ledger(folder, online_store) as ledger:
            written = next((window for window in ledger.windows() if window.as_of <= as_of), None)
    except LifecycleError as failure:
        error = str(failure)
    newest = written.newest if written is not None else {}
    views = sorted(view.name for view in features.views if view.online)
    moments = [("feature_staleness_seconds", view, newest.get(view)) for view in views]
    moments.append(
        ("materialisation_staleness_seconds", None, written.as_of if written is not None else None)
    )
    return tuple(
        Finding(metric, view, None, 0, error=error)
        if moment is None
        else Finding(metric, view, (as_of - moment).total_seconds(), 1)
        for metric, view, moment in moments
    )


def mismatches(
    folder: ModelFolder, lake: Lake, online_store: str
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """The share of an online store's values that the offline join, as of the last materialisation, has not.

    In all, and of each feature with such values; sampled keys, see :func:`audit_online`. Nothing is said of a
    store that was written by another state of the model folder, or is written while it is looked at. What
    cannot be compared is a finding with an ``error``.

    :returns: findings, and a few differing values in words
    :raises OSError: the lake cannot be reached. Retry: yes.
    """
    try:
        with _ledger(folder, online_store) as ledger:
            written = ledger.last()
        if written is None or written.code_digest != folder.code_digest:
            return (), ()
        snapshot = from_json(Snapshot, lake.read_json(written.snapshot_path))
        audit = audit_online(folder, lake, snapshot, online_store, written.as_of, _SAMPLE)
        with _ledger(folder, online_store) as ledger:
            if _of_latest(ledger) != written:
                return (), ()
    except LakeFileMissingError as error:  # the snapshot was let go of
        return (Finding(MISMATCH, None, None, 0, error=f"nothing was compared: {error}"),), ()
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - it runs the user's code; all else must still be measured
        return (Finding(MISMATCH, None, None, 0, error=f"nothing was compared: {told(error)}"),), ()
    if not audit.compared:
        return (), ()
    differing = sum(audit.differing.values())
    return (
        Finding(MISMATCH, None, differing / audit.compared, audit.compared),
        *(Finding(MISMATCH, name, n / audit.compared, audit.compared) for name, n in audit.differing.items()),
    ), audit.examples


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
    contracts = folder.contracts.values()
    personal = personal_columns(contracts) | personal_features(features.tags(), contracts)
    differing = Counter(difference.feature for difference in differences)
    return Audit(
        as_of, compared, dict(differing), tuple(difference.shown(personal) for difference in differences[:10])
    )


def _of_latest(ledger: OnlineWriter) -> Written | None:
    """The newest materialisation, if none was begun after it."""
    last, begun = ledger.last(), ledger.begun()
    return last if begun is None or last is None or begun.as_of <= last.as_of else None


@contextlib.contextmanager
def _ledger(folder: ModelFolder, online_store: str) -> Iterator[OnlineWriter]:
    from ml_lifecycle.adapters.feast_written import OnlineWriter

    with (
        tempfile.TemporaryDirectory(prefix="features-") as name,
        contextlib.closing(OnlineWriter(features_of(folder), Path(name), online_store)) as ledger,
    ):
        yield ledger
