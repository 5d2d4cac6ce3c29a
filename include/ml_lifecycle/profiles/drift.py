"""What has changed between a reference profile and a window's: one finding a metric and column."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ml_lifecycle.profiles.distance import jensen_shannon, missing_share, new_categories, psi
from ml_lifecycle.profiles.profile import (
    SCORE_COLUMN,
    CategoricalColumn,
    ColumnProfile,
    NumericColumn,
    Profile,
    ProfileError,
)
from ml_lifecycle.records import Finding


def measured(metric: str, column: str | None, n: int, measure: Callable[[], float]) -> Finding:
    """The finding that ``measure()`` gives; whatever it raises becomes the finding's error."""
    try:
        return Finding(metric, column, measure(), n)
    except Exception as error:  # noqa: BLE001 - a metric that fails is itself what the monitor has to report
        return Finding(metric, column, None, n, error=f"{type(error).__name__}: {error}")


def feature_findings(reference: Profile, current: Profile) -> Iterator[Finding]:
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
    yield measured("missing_share", name, rows, lambda: missing_share(now))
    yield measured("missing_increase", name, rows, lambda: missing_share(now) - missing_share(before))
    if isinstance(before, CategoricalColumn):
        share = "new_categories"
        yield measured(share, name, now.count, lambda: sum(new_categories(before, now).values()) / now.count)
    yield measured("psi", name, now.count, lambda: psi(before, now))
    yield measured("jensen_shannon", name, now.count, lambda: jensen_shannon(before, now))


def score_findings(reference: Profile, current: Profile) -> Iterator[Finding]:
    """How the model's own answers have moved."""
    now = current.columns[SCORE_COLUMN]
    yield measured("score_psi", None, now.count, lambda: psi(_score(reference), now))
    yield measured("score_jensen_shannon", None, now.count, lambda: jensen_shannon(_score(reference), now))
    yield measured("score_mean_shift", None, now.count, lambda: _mean(now) - _mean(_score(reference)))


def _score(profile: Profile) -> ColumnProfile:
    if SCORE_COLUMN not in profile.columns:
        raise ProfileError(f"the reference profile has no column {SCORE_COLUMN!r}")
    return profile.columns[SCORE_COLUMN]


def _mean(column: ColumnProfile) -> float:
    if not isinstance(column, NumericColumn) or column.mean is None:
        raise ProfileError("there are no scores to take the mean of")
    return column.mean
