"""How a release was judged while it had a part of the traffic: from the ledger and production's lake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy.exc import NoResultFound

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.judgements import is_left_alone, read_judgement
from ml_lifecycle.delivery.release_history import PRODUCTION, ReleaseHistory
from ml_lifecycle.delivery.route import read_pointer
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.records import RecordError, to_json
from ml_lifecycle.spec.types import parse_duration
from ml_lifecycle.spec.watch import Watch
from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError
from ml_lifecycle_ui.views import step_view

if TYPE_CHECKING:
    from ml_lifecycle.delivery.judging import Comparison, Judgement
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.records import Release

log = logging.getLogger(__name__)


def watched(
    database: Database,
    open_lake: Callable[[], Lake],
    model: str,
    endpoint: str,
    revision: int,
    now: datetime,
) -> dict[str, Any] | None:
    """One of the model's production releases with its last judgement; None if there is no such release.

    A step that nobody has looked at yet shows the judgement by which the step before was promoted.

    :param open_lake: production's; what keeps it from being read is told in the view, under ``problem``, as
        is that nobody looks any more
    """
    releases = ReleaseHistory(database)
    release = _find(releases, endpoint, revision)
    if release is None or release.model != model:
        return None
    step, judged, problem = _look(open_lake, releases, release)
    if step is not None and step["watched"] and judged is None and problem is None:
        before = _find(releases, endpoint, revision - 1)
        if before is not None and before.evidence_digest == release.evidence_digest:
            _, judged, problem = _look(open_lake, releases, before)
    overdue = step is not None and step["watched"] and problem is None and _is_overdue(release, judged, now)
    if overdue:
        since = f"{_looked(release, judged):%Y-%m-%d %H:%M} UTC"
        problem = f"Nobody has looked since {since}: is the DAG there, does the model folder load?"
    return {
        "version": release.version,
        "revision": release.revision,
        "state": release.state,
        "reason": release.reason,
        "step": step,
        "judged": judged,
        "problem": problem,
        "overdue": overdue,
    }


def _is_overdue(release: Release, judged: dict[str, Any] | None, now: datetime) -> bool:
    """Whether a step that is under way is watched no longer.

    How often it should be looked at is known from the last look at it, or at the step before. The first look
    at a release comes at once, whatever its folder says, and so the usual time is waited for it.
    """
    every = judged["every"] if judged is not None else None
    often = Watch().every if every is None else parse_duration(every)
    return release.state == "applied" and is_left_alone(_looked(release, judged), often, now)


def _looked(release: Release, judged: dict[str, Any] | None) -> datetime:
    """When a step was looked at last; before that, when it began."""
    if judged is None or judged["revision"] != release.revision:
        return release.created_at
    return datetime.fromisoformat(judged["judged_at"])


def _find(releases: ReleaseHistory, endpoint: str, revision: int) -> Release | None:
    try:
        return releases.get(PRODUCTION, endpoint, revision)
    except NoResultFound:
        return None


def _look(
    open_lake: Callable[[], Lake], releases: ReleaseHistory, release: Release
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
    """The step where a release stands or stood, and :func:`_judged` of it where it is watched."""
    step = step_view(release, releases.route(release))
    if step is None or not step["watched"]:
        return step, None, None
    return step, *_judged(open_lake, release, step)


def _judged(
    open_lake: Callable[[], Lake], release: Release, step: dict[str, Any]
) -> tuple[dict[str, Any] | None, str | None]:
    """The judgement of a step, or why it cannot be read; neither before the first look."""
    try:
        lake = open_lake()
        judgement = _last(lake, release)
        # Beside a watched step there is a champion, whose route is where the watch writes.
        elsewhere = judgement is None and read_pointer(lake, release.endpoint) is None
    except (AirflowNotFoundException, ConnectionIncompleteError) as error:
        return None, f"The lake of {PRODUCTION} has no connection: {error}"
    except (IntegrityError, RecordError):
        log.exception("the judgement of revision %d of %s", release.revision, release.endpoint)
        return None, "Its file is torn, or of another version; the API server's log says more."
    except Exception:  # the client of each kind of store raises errors of its own
        log.exception("the judgement of revision %d of %s", release.revision, release.endpoint)
        return None, f"The lake of {PRODUCTION} cannot be read; the API server's log says why."
    if elsewhere:
        return None, f"{release.endpoint} is not served from the lake that the page knows for {PRODUCTION}."
    if judgement is None:
        return None, None
    return {"revision": release.revision, "step": step, **_view(judgement)}, None


def _last(lake: Lake, release: Release) -> Judgement | None:
    try:
        return read_judgement(lake, release)
    except LakeFileMissingError:
        return None


def _view(judgement: Judgement) -> dict[str, Any]:
    shown = to_json(judgement)
    for comparison, row in zip(judgement.comparisons, shown["comparisons"], strict=True):
        row["missing_rows"] = _missing_rows(comparison, judgement.min_rows)
    return shown


def _missing_rows(comparison: Comparison, min_rows: int | None) -> int | None:
    """How many a promotion still waits for; None where it waits for none, or nobody kept how many."""
    if not comparison.required or min_rows is None:
        return None
    return max(0, min_rows - comparison.challenger_rows)
