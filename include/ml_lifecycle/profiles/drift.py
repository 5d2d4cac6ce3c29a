"""What has changed between a reference profile and a window's: one finding a metric, column and segment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

from ml_lifecycle.personal import told
from ml_lifecycle.profiles import distance, significance
from ml_lifecycle.profiles.profile import (
    SCORE_COLUMN,
    CategoricalColumn,
    ColumnProfile,
    HistogramColumn,
    NumericColumn,
    Part,
    Profile,
    ProfileError,
)
from ml_lifecycle.records import Finding

Distance = Callable[[ColumnProfile, ColumnProfile], float]

_OF_NUMBERS: dict[str, tuple[Distance, Distance | None]] = {
    "wasserstein": (distance.wasserstein_normed, None),
    "wasserstein_absolute": (distance.wasserstein, None),
    "ks_statistic": (distance.kolmogorov_smirnov, significance.ks_p_value),
}
_OF_CATEGORIES: dict[str, tuple[Distance, Distance | None]] = {
    "cramers_v": (distance.cramers_v, significance.chi_square_p_value),
}


def measured(metric: str, column: str | None, n: int, measure: Callable[[], float]) -> Finding:
    """The finding that ``measure()`` gives; whatever it raises becomes the finding's error."""
    try:
        value = measure()
        if not math.isfinite(value):
            raise ProfileError(f"the values are too large to be measured: {value}")
        return Finding(metric, column, value, n)
    except Exception as error:  # noqa: BLE001 - a metric that fails is itself what the monitor has to report
        return Finding(metric, column, None, n, error=told(error))


def drift_findings(reference: Profile, current: Profile) -> list[Finding]:
    """All that can be measured between the two: of features, scores and their correlation, and by segment.

    A segment is compared with the same one of the reference; without one there, that is a finding.
    """
    found = [
        *feature_findings(reference, current),
        *score_findings(reference, current),
        *correlation_findings(reference, current),
    ]
    for name, part in current.segments.items():
        found += [dataclasses.replace(one, segment=name) for one in _segment(name, reference, part)]
    return corrected(found)


def corrected(findings: Iterable[Finding]) -> list[Finding]:
    """With p-values corrected for their number."""
    found = list(findings)
    tested = [index for index, finding in enumerate(found) if finding.p_value is not None]
    for index, p_value in zip(
        tested,
        significance.adjusted([found[index].p_value or 0.0 for index in tested]),
        strict=True,
    ):
        found[index] = dataclasses.replace(found[index], p_adjusted=p_value)
    return found


def feature_findings(reference: Profile | Part, current: Profile | Part) -> Iterator[Finding]:
    """Missing values, unseen categories and distances of each feature of the reference."""
    for name, before in reference.columns.items():
        if name == SCORE_COLUMN:
            continue
        now = current.columns.get(name)
        if now is None:
            yield Finding("missing_share", name, None, current.rows, error="the window has no such column")
            continue
        yield from _column_findings(name, before, now, current.rows)


def _column_findings(name: str, before: ColumnProfile, now: ColumnProfile, rows: int) -> Iterator[Finding]:
    yield measured("missing_share", name, rows, lambda: distance.missing_share(now))
    rise = "missing_increase"
    yield measured(rise, name, rows, lambda: distance.missing_share(now) - distance.missing_share(before))
    if isinstance(before, CategoricalColumn):
        yield measured("new_categories", name, now.count, lambda: distance.new_share(before, now))
    yield measured("psi", name, now.count, lambda: distance.psi(before, now))
    yield measured("jensen_shannon", name, now.count, lambda: distance.jensen_shannon(before, now))
    more = _OF_CATEGORIES if isinstance(before, CategoricalColumn) else _OF_NUMBERS
    for metric, (effect, p_value) in more.items():
        yield _tested(metric, name, before, now, effect, p_value)


def _tested(
    metric: str,
    name: str | None,
    before: ColumnProfile,
    now: ColumnProfile,
    effect: Distance,
    p_value: Distance | None,
) -> Finding:
    found = measured(metric, name, now.count, lambda: effect(before, now))
    if p_value is None or found.value is None:
        return found
    try:
        return dataclasses.replace(found, p_value=p_value(before, now))
    except ProfileError:  # too few values: the effect stands without
        return found


def score_findings(reference: Profile | Part, current: Profile | Part) -> Iterator[Finding]:
    """How the model's own answers have moved; nothing where none were profiled."""
    if SCORE_COLUMN not in current.columns:
        return
    now = current.columns[SCORE_COLUMN]

    def score(metric: str, effect: Distance) -> Finding:
        return measured(metric, None, now.count, lambda: effect(_score(reference), now))

    yield score("score_psi", distance.psi)
    yield score("score_jensen_shannon", distance.jensen_shannon)
    yield score("score_wasserstein", distance.wasserstein_normed)
    yield score("score_ks_statistic", distance.kolmogorov_smirnov)
    yield score("score_mean_shift", lambda before, now: _mean(now) - _mean(before))


def correlation_findings(reference: Profile | Part, current: Profile | Part) -> Iterator[Finding]:
    """How far each numeric feature's correlation with another has changed at most.

    None of a column that does not vary, nor where the reference does not tell.
    """
    before, now = reference.pairs, current.pairs
    if before is None or now is None:
        return
    try:
        changes = distance.correlation_changes(before, now)
    except ProfileError as error:
        yield Finding("correlation_change", None, None, current.rows, error=str(error))
        return
    for name, (change, _) in changes.items():
        yield Finding("correlation_change", name, change, current.columns[name].count)


def _segment(name: str, reference: Profile, part: Part) -> Iterator[Finding]:
    yield Finding("volume", None, float(part.rows), part.rows)
    before = reference.segments.get(name)
    if before is None:
        error = "the reference has no such segment: train again to compare with it"
        yield Finding("segment", None, None, part.rows, error=error)
        return
    yield from feature_findings(before, part)
    yield from score_findings(before, part)
    yield from correlation_findings(before, part)


def _score(profile: Profile | Part) -> ColumnProfile:
    if SCORE_COLUMN not in profile.columns:
        raise ProfileError(f"the reference profile has no column {SCORE_COLUMN!r}")
    return profile.columns[SCORE_COLUMN]


def _mean(column: ColumnProfile) -> float:
    if not isinstance(column, NumericColumn | HistogramColumn) or column.mean is None:
        raise ProfileError("there are no scores to take the mean of")
    return column.mean
