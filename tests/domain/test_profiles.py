"""Profiles merge exactly, survive bad columns, and their distances agree with SciPy's."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp, wasserstein_distance
from scipy.stats.contingency import association

from ml_lifecycle.profiles.distance import (
    chi_square,
    correlation_changes,
    cramers_v,
    jensen_shannon,
    kolmogorov_smirnov,
    missing_share,
    new_categories,
    psi,
    wasserstein,
    wasserstein_normed,
)
from ml_lifecycle.profiles.drift import drift_findings
from ml_lifecycle.profiles.profile import (
    SCORE_COLUMN,
    CategoricalColumn,
    HistogramColumn,
    NumericColumn,
    Profile,
    ProfileError,
    merge,
    read_profile,
)
from ml_lifecycle.profiles.profiling import make_profile, profile_batches
from ml_lifecycle.profiles.significance import adjusted, chi_square_p_value, ks_p_value
from ml_lifecycle.records import ColumnSpec, Finding, from_json, to_json

X = ColumnSpec("x", "float", nullable=True)
K = ColumnSpec("k", "int")
C = ColumnSpec("c", "string")
B = ColumnSpec("b", "bool")
COLUMNS = (X, K, C, B)


def frame(
    x: list[float | None], k: list[int | None], c: list[str | None], b: list[bool | None]
) -> pl.DataFrame:
    schema = {"x": pl.Float64, "k": pl.Int64, "c": pl.String, "b": pl.Boolean}
    return pl.DataFrame({"x": x, "k": k, "c": c, "b": b}, schema=schema)


def normal(n: int, shift: float = 0.0, seed: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"x": np.random.default_rng(seed).normal(shift, 1, n)})


def numeric(profile: Profile, name: str = "x") -> NumericColumn:
    column = profile.columns[name]
    assert isinstance(column, NumericColumn)
    return column


def categorical(profile: Profile, name: str = "c") -> CategoricalColumn:
    column = profile.columns[name]
    assert isinstance(column, CategoricalColumn)
    return column


rows = st.lists(
    st.tuples(
        st.none() | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]),
        st.none() | st.integers(-3, 3),
        st.none() | st.sampled_from(["", "EWR", "JFK", "LGA", "ü"]),
        st.none() | st.booleans(),
    ),
    max_size=40,
)


def as_frame(values: list[tuple[float | None, int | None, str | None, bool | None]]) -> pl.DataFrame:
    columns = list(zip(*values, strict=True)) or [(), (), (), ()]
    return frame(*(list(column) for column in columns))  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(rows, rows)
def test_merging_equals_profiling_together(one, two):  # type: ignore[no-untyped-def]
    merged = merge(make_profile(as_frame(one), COLUMNS), make_profile(as_frame(two), COLUMNS))
    together = make_profile(as_frame(one + two), COLUMNS)
    assert merged.rows == together.rows
    for name in ("c", "b"):
        assert merged.columns[name] == together.columns[name]
    for name in ("x", "k"):
        mine, its = numeric(merged, name), numeric(together, name)
        assert (mine.count, mine.missing, mine.sketch, mine.min, mine.max) == (
            its.count, its.missing, its.sketch, its.min, its.max,
        )  # fmt: skip
        assert (mine.mean is None) == (its.count == 0)
        if its.count:
            assert mine.mean == pytest.approx(its.mean, rel=1e-9, abs=1e-6)
            assert mine.std == pytest.approx(its.std, rel=1e-6, abs=1e-3)


@settings(max_examples=150, deadline=None)
@given(rows, rows)
def test_distances_are_zero_to_oneself_and_never_negative(one, two):  # type: ignore[no-untyped-def]
    reference = make_profile(as_frame(one), COLUMNS)
    current = make_profile(as_frame(two), COLUMNS)
    for name, column in reference.columns.items():
        other = current.columns[name]
        if not column.count:
            with pytest.raises(ProfileError, match="no values"):
                psi(column, column)
            continue
        assert psi(column, column) == 0
        assert jensen_shannon(column, column) == 0
        if other.count:
            assert psi(column, other) >= 0
            assert 0 <= jensen_shannon(column, other) <= 1
        if other.count and isinstance(column, NumericColumn):
            assert 0 == kolmogorov_smirnov(column, column) <= kolmogorov_smirnov(column, other) <= 1
            assert 0 == wasserstein(column, column) <= wasserstein(column, other)
        if other.count and isinstance(column, CategoricalColumn):
            assert 0 <= cramers_v(column, other) <= 1


@settings(max_examples=50, deadline=None)
@given(rows)
def test_json_returns_the_same_profile(values):  # type: ignore[no-untyped-def]
    profile = make_profile(as_frame(values), COLUMNS)
    text = json.dumps(to_json(profile), allow_nan=False)
    assert from_json(Profile, json.loads(text)) == profile


def test_what_is_no_finite_number_is_missing():
    values = pl.DataFrame({"x": [1.0, None, math.nan, math.inf, -math.inf]})
    column = numeric(make_profile(values, [X]))
    assert (column.count, column.missing, column.mean) == (1, 4, 1.0)
    assert missing_share(column) == 0.8


@pytest.mark.parametrize(
    "values",
    [
        pl.DataFrame({"x": [None] * 5, "c": [None] * 5}, schema={"x": pl.Float64, "c": pl.String}),
        pl.DataFrame({"x": pl.Series([None] * 5), "c": pl.Series([None] * 5)}),
        pl.DataFrame({"x": ["much", "of", "it", "is", "text"], "c": [""] * 5}),
        pl.DataFrame({"unrelated": range(5)}),
    ],
    ids=["null", "untyped-null", "text", "absent"],
)  # fmt: skip
def test_a_column_without_values_is_missing_in_every_row(values):
    profile = make_profile(values, [X, C])
    assert profile.rows == 5
    for column in profile.columns.values():
        assert (column.count, column.missing) == (0, 5)
        assert missing_share(column) == 1
    assert numeric(profile).sketch is None


def test_an_empty_frame_has_a_profile():
    profile = make_profile(frame([], [], [], []), COLUMNS)
    assert profile.rows == 0
    assert all(column.count == column.missing == 0 for column in profile.columns.values())
    with pytest.raises(ProfileError, match="at least one row"):
        missing_share(profile.columns["x"])


def test_a_constant_column_drifts_when_it_changes():
    reference = make_profile(pl.DataFrame({"x": [5.0] * 100}), [X])
    same = make_profile(pl.DataFrame({"x": [5.0] * 30}), [X])
    moved = make_profile(pl.DataFrame({"x": [6.0] * 30}), [X])
    assert psi(reference.columns["x"], same.columns["x"]) == 0
    assert psi(reference.columns["x"], moved.columns["x"]) > 10
    assert jensen_shannon(reference.columns["x"], moved.columns["x"]) == 1


MANY = [*map(float, range(1, 31))]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([5.0] * 100, [4.0] * 100),
        ([0.0, 1.0] * 50, [-1.0, 1.0] * 50),
        ([0.0, 10.0] * 50, [0.0, 5.0] * 50),
        ([0.0] * 60 + MANY, [-1.0] * 60 + MANY),
    ],
    ids=["a constant falls", "a flag gets a third value", "between two values", "zeros become a sentinel"],
)
def test_values_that_were_never_there_are_in_no_bin_of_those_that_were(before, now):
    old, new = (make_profile(pl.DataFrame({"x": x}), [X]).columns["x"] for x in (before, now))
    assert psi(old, new) > 1
    assert jensen_shannon(old, new) > 0.5
    assert psi(old, old) == 0


def test_huge_values_still_make_json():
    values = make_profile(pl.DataFrame({"x": [1.7e308, -1.7e308, 1.7e308]}), [X])
    json.dumps(to_json(merge(values, values)), allow_nan=False)
    assert numeric(values).max == 1.7e308


def test_bools_are_categories_however_they_are_stored():
    for stored in ([True, False, None], [1, 0, None], [1.0, 0.0, None], ["true", "False", ""]):
        column = categorical(make_profile(pl.DataFrame({"b": stored}), [B]), "b")
        assert column.counts == {"true": 1, "false": 1}
        assert column.missing == 1


def test_unseen_categories_are_found():
    reference = make_profile(pl.DataFrame({"c": ["a", "a", "b"]}), [C])
    current = make_profile(pl.DataFrame({"c": ["a", "z", "y", "z", None]}), [C])
    assert new_categories(reference.columns["c"], current.columns["c"]) == {"z": 2, "y": 1}
    assert psi(reference.columns["c"], current.columns["c"]) > 1


def test_more_values_than_a_profile_keeps():
    many = pl.DataFrame({"c": [f"N{n % 1500:05}" for n in range(3000)] + ["common"] * 50})
    reference = make_profile(many, [C])
    column = categorical(reference)
    assert len(column.counts) == 1000
    assert column.counts["common"] == 50
    assert column.error == 2
    assert sum(column.counts.values()) + column.other == column.count == 3050
    current = make_profile(pl.DataFrame({"c": ["never seen"] * 9}), [C])
    assert new_categories(column, current.columns["c"]) == {}  # it might be one of the 501 not kept
    assert psi(column, make_profile(many.reverse(), [C]).columns["c"]) == 0


def test_psi_is_the_textbook_sum():
    reference = CategoricalColumn(100, 0, {"a": 60, "b": 40})
    current = CategoricalColumn(10, 0, {"a": 3, "b": 7})
    expected = (0.3 - 0.6) * math.log(0.3 / 0.6) + (0.7 - 0.4) * math.log(0.7 / 0.4)
    assert psi(reference, current) == pytest.approx(expected)
    gone = CategoricalColumn(10, 0, {"a": 10})
    floored = (1 - 0.6) * math.log(1 / 0.6) + (1e-4 - 0.4) * math.log(1e-4 / 0.4)
    assert psi(reference, gone) == pytest.approx(floored)


def test_distances_are_scipys():
    before, now = normal(5000)["x"].to_numpy(), normal(4000, shift=0.7, seed=1)["x"].to_numpy()
    reference, current = (make_profile(pl.DataFrame({"x": x}), [X]).columns["x"] for x in (before, now))
    assert isinstance(reference, NumericColumn)
    cuts = reference.quantiles.cuts(10)
    shares = [np.histogram(x, [-np.inf, *cuts[1:-1], np.inf])[0] for x in (before, now)]
    expected = jensenshannon(*shares, base=2)
    assert jensen_shannon(reference, current) == pytest.approx(expected, abs=0.005)
    test = ks_2samp(before, now)
    assert kolmogorov_smirnov(reference, current) == pytest.approx(test.statistic, abs=0.005)
    exact = wasserstein_distance(before, now)
    assert wasserstein(reference, current) == pytest.approx(exact, rel=0.02)
    assert wasserstein_normed(reference, current) == pytest.approx(exact / before.std(), rel=0.02)


def test_p_values_are_scipys_while_nothing_is_put_together():
    before, now = normal(900)["x"].to_numpy(), normal(800, shift=0.1, seed=1)["x"].to_numpy()
    reference, current = (make_profile(pl.DataFrame({"x": x}), [X]).columns["x"] for x in (before, now))
    exact = ks_2samp(before, now, method="asymp").pvalue
    assert ks_p_value(reference, current) == pytest.approx(exact, rel=0.1)


def test_chi_square_is_scipys():
    table = [[300, 200, 50, 0], [250, 260, 40, 9]]
    reference, current = (
        CategoricalColumn(sum(row), 0, dict(zip("abcd", row, strict=True))) for row in table
    )
    expected = chi2_contingency(table, correction=False)
    statistic, freedom = chi_square(reference, current)
    assert (statistic, freedom) == (pytest.approx(expected.statistic), expected.dof)
    assert chi_square_p_value(reference, current) == pytest.approx(expected.pvalue)
    assert cramers_v(reference, current) == pytest.approx(association(np.array(table), method="cramer"))


def test_p_values_need_rows_and_are_corrected_for_their_number():
    few = make_profile(normal(50), [X]).columns["x"]
    with pytest.raises(ProfileError, match="at least 100"):
        ks_p_value(few, few)
    p_values = np.random.default_rng(1).random(200) ** 3
    assert adjusted(p_values.tolist()) == pytest.approx(false_discovery_control(p_values))
    assert adjusted([]) == []


def test_a_large_sample_of_the_same_is_not_significant_by_its_sketch():
    reference, current = (make_profile(normal(400_000, seed=k), [X]).columns["x"] for k in (1, 2))
    assert ks_p_value(reference, current) > 0.05


def test_psi_separates_drift_from_noise():
    reference = make_profile(normal(20_000), [X])
    for seed in range(1, 6):
        same = make_profile(normal(2000, seed=seed), [X])
        assert psi(reference.columns["x"], same.columns["x"]) < 0.05
    moved = make_profile(normal(2000, shift=0.6, seed=9), [X])
    assert psi(reference.columns["x"], moved.columns["x"]) > 0.25


def test_unlike_profiles_do_not_mix():
    one = make_profile(normal(10), [X])
    text = make_profile(pl.DataFrame({"x": ["a"]}), [ColumnSpec("x", "string")])
    with pytest.raises(ProfileError, match="is categorical and quantiles in profiles that are to be merged"):
        merge(one, text)
    with pytest.raises(ProfileError, match="reference is quantiles, the current categorical"):
        psi(one.columns["x"], text.columns["x"])
    with pytest.raises(ProfileError, match="only one of them has c"):
        merge(one, make_profile(normal(10), [X, C]))
    with pytest.raises(ProfileError, match="only one of them has c=a"):
        merge(text, make_profile(pl.DataFrame({"x": ["a"]}), [X, C], {"c": ["a"]}))
    with pytest.raises(ProfileError, match="no segments of origin"):
        make_profile(normal(10), [X], {"origin": ["EWR"]})


def test_counts_of_very_many_categories_are_within_their_error():
    rng = np.random.default_rng(1)
    values = rng.zipf(1.3, 60_000).clip(max=50_000).astype(str)
    exact = dict(zip(*(column.tolist() for column in np.unique(values, return_counts=True)), strict=True))
    batches = [pl.DataFrame({"c": part}) for part in np.array_split(values, 7)]
    for order in (batches, batches[::-1]):
        column = categorical(profile_batches(order, [C]))
        assert len(column.counts) == 1000
        assert sum(column.counts.values()) + column.other == column.count == 60_000
        assert column.error < 60_000 / 500
        for value, count in exact.items():
            assert 0 <= count - column.counts.get(value, 0) <= column.error


def test_batches_of_any_size_come_to_the_same():
    frame_of_all = normal(9000).with_columns(c=pl.Series(["a", "b", None] * 3000))
    whole = make_profile(frame_of_all, [X, C], {"c": ["a"]})
    parts = profile_batches(frame_of_all.iter_slices(700), [X, C], {"c": ["a"]})
    assert (parts.rows, parts.columns["c"]) == (whole.rows, whole.columns["c"])
    assert parts.segments["c=a"].rows == 3000
    assert kolmogorov_smirnov(whole.columns["x"], parts.columns["x"]) <= 0.005
    assert numeric(parts).std == pytest.approx(numeric(whole).std)


# Findings

S = ColumnSpec(SCORE_COLUMN, "float")
Y = ColumnSpec("y", "float")


def traffic(n: int, seed: int, together: float = 0.8, **changes: pl.Expr) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    made = {
        "x": x,
        "y": together * x + rng.normal(size=n),
        "c": rng.choice(["a", "b"], n),
        SCORE_COLUMN: rng.random(n),
    }
    return pl.DataFrame(made).with_columns(**changes)


def found_in(reference: Profile, current: Profile) -> dict[tuple[str, str | None, str | None], Finding]:
    return {(one.metric, one.column, one.segment): one for one in drift_findings(reference, current)}


def test_a_segment_looks_like_its_rows_alone():
    """They are picked from the whole's order, and are not sorted anew."""
    rng = np.random.default_rng(0)
    n = 20_000
    rows = pl.DataFrame(
        {
            "x": np.where(rng.random(n) < 0.1, np.nan, rng.lognormal(0, 3, n)),
            "k": rng.integers(-2, 2, n),
            "y": rng.normal(1e6, 1, n).round(2),
            "c": rng.choice(["a", "b", ""], n),
        }
    ).with_columns(pl.col("x").fill_nan(None), pl.when(pl.col("k") != 1).then("k"))
    hidden = ColumnSpec("y", "float", personal=True)
    columns, segments = [X, K, hidden, C], {"c": ["a", "none"], "k": ["-1", "0", "0.0", "?"]}
    whole = make_profile(rows, columns, segments)
    for name, alone in {
        "c=a": rows.filter(pl.col("c") == "a"),
        "c=none": rows.clear(),
        "k=-1": rows.filter(pl.col("k") == -1),
        "k=0": rows.filter(pl.col("k") == 0),
        "k=0.0": rows.filter(pl.col("k") == 0),
        "k=?": rows.clear(),
    }.items():
        expected, part = make_profile(alone, columns), whole.segments[name]
        assert (part.rows, part.columns) == (expected.rows, expected.columns)
        assert part.pairs is not None
        assert expected.pairs is not None
        np.testing.assert_allclose(part.pairs.correlations(), expected.pairs.correlations(), rtol=1e-9)
    assert whole.columns == make_profile(rows, columns).columns


def test_a_segment_is_compared_with_the_same_of_the_reference():
    columns, segments = [X, Y, C, S], {"c": ["a", "b", "z"]}
    reference = make_profile(traffic(4000, 1), columns, {"c": ["a", "b"]})
    moved = pl.when(pl.col("c") == "b").then(pl.col("x") + 2).otherwise("x")
    current = make_profile(traffic(3000, 2, x=moved), columns, segments)
    found = found_in(reference, current)
    assert found["psi", "x", "c=a"].value < 0.05
    assert found["psi", "x", "c=b"].value > 1
    assert found["wasserstein", "x", "c=b"].value == pytest.approx(2, rel=0.1)
    assert found["volume", None, "c=b"].value == found["psi", "x", "c=b"].n
    assert found["score_psi", None, "c=a"].value < 0.05
    assert "no such segment" in found["segment", None, "c=z"].error
    assert found["ks_statistic", "x", "c=b"].p_adjusted < 0.001
    quiet = found["ks_statistic", "x", "c=a"]
    assert quiet.p_value <= quiet.p_adjusted


def test_a_changed_correlation_is_found_where_no_column_moved():
    columns = [X, Y, C, S]
    reference = make_profile(traffic(4000, 1), columns)
    current = make_profile(traffic(4000, 2, x=pl.col("x").shuffle(3)), columns)
    found = found_in(reference, current)
    assert found["psi", "x", None].value < 0.05
    assert found["correlation_change", "x", None].value == pytest.approx(0.62, abs=0.06)
    assert reference.pairs is not None
    assert correlation_changes(reference.pairs, reference.pairs) == {"x": (0, "y"), "y": (0, "x")}


DEAD = {
    "null": pl.lit(None, pl.Float64),
    "constant": pl.lit(3.0),
    "two values": (pl.col("x") > 0).cast(pl.Float64),
    "one value": pl.when(pl.int_range(pl.len()) == 7).then(1.0),
    "not finite": pl.lit(float("nan")),
    "enormous": pl.lit(1.7e308),
    "text": pl.lit("much"),
}


@pytest.mark.parametrize("now", DEAD)
@pytest.mark.parametrize("before", ["normal", *DEAD])
def test_no_column_is_too_poor_to_be_reported_on(before, now):
    columns, segments = [X, Y, C, S], {"c": ["a", "b"]}
    changes = {} if before == "normal" else {"x": DEAD[before]}
    reference = make_profile(traffic(500, 1, **changes), columns, segments)
    for current in (traffic(500, 2, x=DEAD[now]), traffic(500, 2).clear()):
        found = found_in(read_profile(to_json(reference)), make_profile(current, columns, segments))
        assert {"psi", "ks_statistic", "wasserstein"} <= {metric for metric, _, _ in found}
        for finding in found.values():
            assert (finding.value is None) == (finding.error is not None)
            assert finding.value is None or math.isfinite(finding.value)
            assert "ZeroDivision" not in (finding.error or "")


def test_a_profile_of_schema_1_is_still_a_reference():
    histogram = {
        "count": 1000, "missing": 0, "edges": [0.0, 1.0, 2.0], "counts": [1, 499, 500, 0],
        "min": 0.0, "max": 2.0, "mean": 1.0, "std": 0.5, "kind": "numeric",
    }  # fmt: skip
    letters = {"count": 1000, "missing": 0, "counts": {"a": 1000}, "other": 0, "kind": "categorical"}
    old = {
        "schema": "profile/1",
        "rows": 1000,
        "columns": {"x": histogram, "c": letters, "__score__": histogram},
    }
    reference = read_profile(old)
    assert isinstance(reference.columns["x"], HistogramColumn)
    x = np.random.default_rng(1).uniform(1, 3, 1000)
    frame_now = pl.DataFrame({"x": x, "c": ["a"] * 500 + ["z"] * 500, SCORE_COLUMN: x / 2})
    found = found_in(reference, make_profile(frame_now, [X, C, S]))
    shares = [np.array([1, 499, 500, 0]) / 1000, np.histogram(x, [-9, 0, 1, 2, 9])[0] / 1000]
    assert found["jensen_shannon", "x", None].value == pytest.approx(jensenshannon(*shares, base=2))
    assert found["psi", "x", None].value > 0.25
    assert found["new_categories", "c", None].value == 0.5
    assert found["score_mean_shift", None, None].value == pytest.approx(0, abs=0.02)
    assert "train again" in found["wasserstein", "x", None].error
