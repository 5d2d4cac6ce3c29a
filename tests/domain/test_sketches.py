"""Sketches against exact computation: SciPy's distances, NumPy's moments, and Apache's own t-digest."""

from __future__ import annotations

import base64
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, wasserstein_distance

from ml_lifecycle.profiles.moments import PairMoments, pair_moments
from ml_lifecycle.profiles.sketches import RANK_ERROR, SIZE, Quantiles, _fewer, in_bins, shares_of_both

N = 60_000
KS_BOUND = 0.005
WASSERSTEIN_BOUND = 0.02
NOTHING = 0.001  # standard deviations: two samples of one distribution are no nearer


def sketch(values: np.ndarray, batch: int = N) -> Quantiles:
    parts = [Quantiles.of_sorted(np.sort(values[k : k + batch])) for k in range(0, len(values), batch)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def distances(one: Quantiles, two: Quantiles) -> tuple[float, float]:
    points, before, now = shares_of_both(one, two)
    apart = np.abs(before - now)
    return float(apart.max()), float((apart[:-1] * np.diff(points)).sum())


def check_bounds(before: np.ndarray, now: np.ndarray, batch: int) -> None:
    ks, wasserstein = distances(sketch(before, batch), sketch(now, batch))
    assert abs(ks - ks_2samp(before, now, method="asymp").statistic) <= KS_BOUND
    exact = wasserstein_distance(before, now)
    assert abs(wasserstein - exact) <= max(WASSERSTEIN_BOUND * exact, NOTHING * before.std())


SHAPES = {
    "normal": lambda rng, by: rng.normal(by, 1, N),
    "wider": lambda rng, by: rng.normal(0, 1 + by, N),
    "heavy tail": lambda rng, by: rng.lognormal(by, 1.5, N),
    "heavier tail": lambda rng, by: rng.pareto(1.5 - by, N),
    "beyond the reference": lambda rng, by: np.where(rng.random(N) < by / 2, 50.0, rng.normal(0, 1, N)),
    "two hills": lambda rng, by: np.where(
        rng.random(N) < 0.5 + by, rng.normal(-9, 1, N), rng.normal(9, 1, N)
    ),
    "counts": lambda rng, by: rng.poisson(4 + by, N).astype(float),
    "hours": lambda rng, by: np.floor(rng.random(N) * (18 + 9 * by)),
    "yes and no": lambda rng, by: (rng.random(N) < 0.3 + by).astype(float),
    "half zero": lambda rng, by: np.where(rng.random(N) < 0.7 - by, 0.0, rng.exponential(1, N)),
    "rounded": lambda rng, by: np.round(rng.normal(by, 1, N), 1),
    "huge": lambda rng, by: rng.normal(by, 1, N) * 1e100,
}


@pytest.mark.parametrize("batch", [N, 7_000])
@pytest.mark.parametrize("by", [0.02, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_within_their_bounds(shape, by, batch):
    make = SHAPES[shape]
    check_bounds(make(np.random.default_rng(1), 0), make(np.random.default_rng(2), by), batch)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.floats(0.1, 3),
    st.floats(-2, 2),
    st.sampled_from([None, 0, 1, 2]),
)
def test_any_mixture_in_any_parts_is_within_the_bounds(seed, parts, spread, by, decimals):
    rng = np.random.default_rng(seed)
    before = np.concatenate([rng.normal(rng.normal(0, 5), spread, 400) for _ in range(parts)])
    now = rng.choice(before, len(before)) * rng.choice([1, 1.1]) + by
    if decimals is not None:
        before, now = before.round(decimals), now.round(decimals)
    check_bounds(rng.permutation(before), now, batch=int(rng.integers(100, 4000)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=80), st.integers(1, 79)
)
def test_a_few_values_are_kept_as_they_are(values, cut):
    whole = sketch(np.array(values))
    parts = [np.sort(part) for part in (values[:cut], values[cut:]) if len(part)]
    merged = Quantiles.of_sorted(parts[0]) if len(parts) == 1 else (
        Quantiles.of_sorted(parts[0]) + Quantiles.of_sorted(parts[1])
    )  # fmt: skip
    for found in (whole, merged):
        assert found.rank_error == 0
        assert np.repeat(found.means, found.weights.astype(int)).tolist() == sorted(values)
        assert (found.low, found.high) == (min(values), max(values))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_any_order_of_merging_comes_to_the_same_within_the_error(order):
    values = np.random.default_rng(3).lognormal(0, 1, N)
    parts = [Quantiles.of_sorted(np.sort(part)) for part in np.array_split(values, 4)]
    a, b, c, d = (parts[index] for index in order)
    at = np.quantile(values, np.linspace(0, 1, 501))
    exact = np.searchsorted(np.sort(values), at, side="right") / N
    for merged in (((a + b) + c) + d, (a + b) + (c + d), a + (b + (c + d))):
        assert merged.count == N
        assert np.abs(merged.shares_to(at) - exact).max() <= RANK_ERROR
        assert (merged.weights @ merged.means) / N == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize("n", [SIZE, SIZE + 1, 4_999, 65_536, 100_003])
@pytest.mark.parametrize("scale", [1.0, 1e305])
def test_different_values_come_to_the_same_as_weighted_ones(n, scale):
    values = np.sort((np.random.default_rng(n).pareto(2, n) + np.arange(n) * 1e-9) * scale)
    values = values[np.isfinite(values)]
    short, long = _fewer(values, None), _fewer(values, np.ones(len(values)))
    assert [one.tolist() for one in short] == [one.tolist() for one in long]


def test_its_size_does_not_grow():
    whole = sketch(np.random.default_rng(4).normal(size=N), 500)
    assert len(whole.means) <= SIZE
    assert len(whole.encode()) < 22_000


def test_tenths_hold_a_tenth_each():
    values = np.random.default_rng(5).normal(size=N)
    whole = sketch(values)
    cuts = whole.cuts(10)
    assert len(cuts) == 11
    assert in_bins(whole, cuts)[1:-1] == pytest.approx(np.full(10, 0.1), abs=2 * RANK_ERROR)
    exact = np.histogram(values, cuts)[0] / N
    assert exact == pytest.approx(np.full(10, 0.1), abs=2 * RANK_ERROR)


def test_values_near_the_largest_number_do_not_overflow():
    values = np.linspace(-1, 1, 5000) * 1.7e308
    whole = Quantiles.of_sorted(values) + Quantiles.of_sorted(values)
    assert np.isfinite(whole.means).all()
    assert np.all(np.diff(whole.means) > 0)


def test_what_is_no_sketch_is_refused():
    text = sketch(np.arange(5.0)).encode()
    for wrong in (base64.b64encode(b"short").decode(), "!", base64.b64encode(b"\x01" * 64).decode()):
        with pytest.raises(ValueError, match=r"t-digest|base64"):
            Quantiles.decode(wrong)
    assert Quantiles.decode(text).encode() == text


@pytest.mark.parametrize("n", [1, 2, 50, N])
def test_apache_datasketches_reads_and_merges_it(n):
    datasketches = pytest.importorskip("datasketches", reason="it has no wheels for Python 3.14")
    values = np.random.default_rng(6).normal(size=n)
    theirs = datasketches.tdigest_double.deserialize(base64.b64decode(sketch(values).encode()))
    assert theirs.get_total_weight() == n
    assert (theirs.get_min_value(), theirs.get_max_value()) == (values.min(), values.max())
    assert theirs.get_rank(float(np.median(values))) == pytest.approx(0.5, abs=1 / n + RANK_ERROR)
    theirs.merge(datasketches.tdigest_double.deserialize(base64.b64decode(sketch(values + 1).encode())))
    assert theirs.get_total_weight() == 2 * n


# Pair moments


def rows_with_gaps(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(1e6, 3, (n, 4))
    rows[:, 1] += rows[:, 0]
    rows[:, 3] = 7
    rows[rng.random((n, 4)) < 0.2] = np.nan
    return rows


def exact_correlation(rows: np.ndarray, i: int, j: int) -> float:
    both = rows[~np.isnan(rows[:, [i, j]]).any(axis=1)]
    return float(np.corrcoef(both[:, i], both[:, j])[0, 1])


NAMES = ("a", "b", "c", "constant")


def test_correlations_are_exact_however_they_were_added_up():
    rows = rows_with_gaps(9000, 1)
    parts = [pair_moments(NAMES, part) for part in np.split(rows, [10, 11, 3000])]
    one_way = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    other_way = parts[3] + (parts[2] + (parts[1] + parts[0]))
    for moments in (pair_moments(NAMES, rows), one_way, other_way):
        found = moments.correlations()
        for i, j in [(0, 1), (1, 0), (0, 2), (1, 2)]:
            assert found[i, j] == pytest.approx(exact_correlation(rows, i, j), abs=1e-9)
        assert np.isnan(found[3]).all()


def test_no_rows_add_nothing():
    rows = rows_with_gaps(50, 2)
    none = pair_moments(NAMES, np.empty((0, 4)))
    assert np.isnan(none.correlations()).all()
    all_null = pair_moments(NAMES, np.full((5, 4), np.nan))
    moments = pair_moments(NAMES, rows)
    for added in (none + moments, moments + none, moments + all_null):
        assert added.correlations() == pytest.approx(moments.correlations(), nan_ok=True)
    assert isinstance(added, PairMoments)
