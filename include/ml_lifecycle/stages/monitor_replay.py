"""The part of the monitor that replays served requests through the path that training takes.

A few of the window's requests are chosen, evenly among route revisions, versions and ways to features. Of
each the features are computed by the code of the version that answered and joined as they were known then,
typed as the training set's columns, scored with the ONNX file that has the logged digest, and decided upon.
The first step that differs is named.

A request that was served an older row than the join has, or a newer one, is told apart from one whose values
no row has: the former is a matter of when features are materialised, the latter of how they are computed. So
is one whose values another state of the model folder computes: that is what the store was written with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.errors import LifecycleError, NoSpaceError
from ml_lifecycle.personal import masked, told
from ml_lifecycle.records import Finding, Training
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.monitor_kept import KeptFindings
from ml_lifecycle.stages.replay_features import Offline, OfflineFeatures
from ml_lifecycle.stages.replay_models import ServedModels
from ml_lifecycle.stages.replay_rows import ServedRow, sample_rows
from ml_lifecycle.stages.replay_steps import Difference

MISMATCH, CODE = "replay_mismatch_share", "replay_code_share"
STALE, AHEAD = "replay_stale_share", "replay_ahead_share"
METRICS = (MISMATCH, CODE, STALE, AHEAD)

_EXAMPLES = 10


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    :param report: for ``report.json``
    """

    findings: tuple[Finding, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)


def replay(
    spec: ModelSpec,
    lake: Lake,
    environment_lake: Lake,
    log: PredictionWindow,
    kept: KeptFindings,
    training_of: Callable[[str], Training | None],
    offline: Offline | None,
) -> Replayed:
    """Replay some of the window's requests, and say where they differ.

    :param training_of: model digest → the training that made it, None if it is unknown
    :param offline: None compares what needs no feature store: types, model and outputs
    :raises OSError: a lake cannot be reached. Retry: yes.
    """
    if not spec.monitoring.replay.rows:
        return Replayed()
    try:
        rows = list(sample_rows(log, kept, spec.monitoring.replay.rows, spec.monitoring.replay.seed))
        if not rows:
            return Replayed()
        training_of = cache(training_of)
        features = OfflineFeatures(lake, offline, rows, training_of)
        models = ServedModels(spec, lake, environment_lake, training_of)
        found = [_first(one, number, features, models) for number, one in enumerate(rows)]
    except FileNotFoundError as error:  # there is a lake, and somebody took something out of it
        return Replayed(_failed(error, offline))
    except (OSError, NoSpaceError):
        raise  # the lake is unreachable or full: a retry helps
    except Exception as error:  # noqa: BLE001 - it runs the user's code; all else must still be measured
        return Replayed(_failed(error, offline))
    return _tell(rows, found, features)


def _failed(error: Exception, offline: Offline | None) -> tuple[Finding, ...]:
    # Errors of frames quote values, some of which may be personal.
    quiet = offline is not None and offline.personal and not isinstance(error, LifecycleError)
    text = type(error).__name__ if quiet else told(error)
    return (Finding(MISMATCH, None, None, 0, error=f"nothing was replayed: {text}"),)


@dataclass(frozen=True)
class _Steps:
    """What was found of one row.

    :param first: None if the replay gave the same, or differs for reasons of time only
    :param timing: features of another event than the join's
    :param unsettled: whether its data changed since, and what was known then is not at hand
    """

    first: Difference | None = None
    timing: tuple[Difference, ...] = ()
    unsettled: bool = False
    looked_up: bool = False

    @property
    def all(self) -> tuple[Difference, ...]:
        """What differs, that which is no matter of time first."""
        return self.timing if self.first is None else (self.first, *self.timing)


def _first(row: ServedRow, number: int, features: OfflineFeatures, models: ServedModels) -> _Steps:
    looked_up = number in features.offline
    if number in features.unsettled:
        return _Steps(unsettled=True, looked_up=looked_up)
    differences = features.differences.get(number, ())
    timing = tuple(one for one in differences if not one.is_mismatch)
    first = next((one for one in differences if one.is_mismatch), None)
    if first is None:
        same_event = features.offline.get(number) if not timing else None
        first = models.compare(row, same_event)
    return _Steps(first, timing, looked_up=looked_up)


def _tell(rows: Sequence[ServedRow], found: Sequence[_Steps], features: OfflineFeatures) -> Replayed:
    settled = [(row, steps) for row, steps in zip(rows, found, strict=True) if not steps.unsettled]
    looked_up = [(row, steps) for row, steps in settled if steps.looked_up]
    steps_seen = Counter(one.first.step for _, one in settled if one.first is not None)
    findings = [_share(MISMATCH, None, settled, lambda steps: steps.first is not None)]
    for step in steps_seen:
        findings.append(_share(MISMATCH, step, settled, _stands_at(step)))
    for metric, cause in ((CODE, "code"), (STALE, "stale"), (AHEAD, "ahead")):
        if looked_up:
            findings.append(_share(metric, None, looked_up, _has_cause(cause)))
    report = {
        "rows": len(rows),
        "with_features": len(looked_up),
        "unsettled": len(rows) - len(settled),
        "code": [code.told(rows) for code in features.codes],
        "first_differences": dict(steps_seen.most_common()),
        "timing": _timing(looked_up),
        "examples": _examples(settled, features.hidden),
    }
    return Replayed(tuple(findings), report)


def _stands_at(step: str) -> Callable[[_Steps], bool]:
    return lambda steps: steps.first is not None and steps.first.step == step


def _has_cause(cause: str) -> Callable[[_Steps], bool]:
    return lambda steps: any(one.cause == cause for one in steps.all)


def _share(
    metric: str,
    column: str | None,
    rows: Sequence[tuple[ServedRow, _Steps]],
    counts: Callable[[_Steps], bool],
) -> Finding:
    """Of the window's rows, as the replayed ones stand for them."""
    total = sum(row.weight for row, _ in rows)
    if not total:
        error = "of no replayed row is it known what its features were"
        return Finding(metric, column, None, 0, error=error)
    share = sum(row.weight for row, steps in rows if counts(steps)) / total
    return Finding(metric, column, share, len(rows))


def _timing(rows: Sequence[tuple[ServedRow, _Steps]]) -> dict[str, Any]:
    """By view, of what other age the rows were that were served."""
    ages: dict[str, dict[str, list[Difference]]] = {}
    for _, steps in rows:
        for one in steps.timing:
            ages.setdefault(one.view, {}).setdefault(str(one.cause), []).append(one)
    told = {}
    for view, causes in ages.items():
        for cause, differences in causes.items():
            seconds = sorted(one.age.total_seconds() for one in differences if one.age is not None)
            told[f"{view} {cause}"] = {
                "rows": len(differences),
                "without_any": len(differences) - len(seconds),
                "median_seconds": seconds[len(seconds) // 2] if seconds else None,
                "largest_seconds": seconds[-1] if seconds else None,
            }
    return told


def _examples(rows: Sequence[tuple[ServedRow, _Steps]], hidden: frozenset[str]) -> list[dict[str, Any]]:
    """Some of each step, those that are no matter of time first."""
    told: list[tuple[int, dict[str, Any]]] = []
    seen: Counter[tuple[str, str | None]] = Counter()
    for row, steps in rows:
        for one in steps.all:
            kind = one.step, one.cause
            told.append((seen[kind] + (0 if one.is_mismatch else 1), _example(row, one, hidden)))
            seen[kind] += 1
    return [example for _, example in sorted(told, key=lambda pair: pair[0])[:_EXAMPLES]]


def _example(row: ServedRow, difference: Difference, hidden: frozenset[str]) -> dict[str, Any]:
    name = difference.step.split(":")[-1].strip()
    logged, replayed = (
        masked({name: _told(value)}, hidden)[name] for value in (difference.logged, difference.replayed)
    )
    return {
        "prediction_id": row.id,
        "row": row.row,
        "received_at": row.received_at.isoformat(),
        "moment": row.moment.isoformat(),
        "version": row.version,
        "route_revision": row.revision,
        "features_from": row.origin,
        "entity_keys": masked(row.keys, hidden),
        "step": difference.step,
        "cause": difference.cause,
        "age_seconds": None if difference.age is None else difference.age.total_seconds(),
        "logged": logged,
        "replayed": replayed,
        "detail": difference.detail,
    }


def _told(value: object) -> object:
    """JSON has neither NaN nor NumPy's numbers."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, list):
        return [_told(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
