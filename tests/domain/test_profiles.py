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

from ml_lifecycle.profiles.distance import jensen_shannon, missing_share, new_categories, psi
from ml_lifecycle.profiles.profile import (
    CategoricalColumn,
    NumericColumn,
    Profile,
    ProfileError,
    make_profile,
    merge,
)
from ml_lifecycle.records import ColumnSpec, from_json, to_json

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
@given(rows, rows, rows)
def test_merging_equals_profiling_together(reference, one, two):  # type: ignore[no-untyped-def]
    like = make_profile(as_frame(reference), COLUMNS)
    merged = merge(make_profile(as_frame(one), COLUMNS, like), make_profile(as_frame(two), COLUMNS, like))
    together = make_profile(as_frame(one + two), COLUMNS, like)
    assert merged.rows == together.rows
    for name in ("c", "b"):
        assert merged.columns[name] == together.columns[name]
    for name in ("x", "k"):
        mine, its = numeric(merged, name), numeric(together, name)
        assert (mine.count, mine.missing, mine.edges, mine.counts, mine.min, mine.max) == (
            its.count, its.missing, its.edges, its.counts, its.min, its.max,
        )  # fmt: skip
        assert (mine.mean is None) == (its.count == 0)
        if its.count:
            assert mine.mean == pytest.approx(its.mean, rel=1e-9, abs=1e-6)
            assert mine.std == pytest.approx(its.std, rel=1e-6, abs=1e-3)


@settings(max_examples=150, deadline=None)
@given(rows, rows)
def test_distances_are_zero_to_oneself_and_never_negative(one, two):  # type: ignore[no-untyped-def]
    reference = make_profile(as_frame(one), COLUMNS)
    current = make_profile(as_frame(two), COLUMNS, reference)
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


@settings(max_examples=50, deadline=None)
@given(rows)
def test_json_returns_the_same_profile(values):  # type: ignore[no-untyped-def]
    profile = make_profile(as_frame(values), COLUMNS)
    text = json.dumps(to_json(profile), allow_nan=False)
    assert from_json(Profile, json.loads(text)) == profile


def test_quantile_edges_put_a_tenth_in_each_bin():
    column = numeric(make_profile(normal(10_000), [X]))
    assert len(column.edges) == 11
    assert column.counts[0] == 1  # the minimum: the lower end is open
    assert column.counts[-1] == 0  # nothing is above the maximum
    assert all(abs(count - 1000) <= 1 for count in column.counts[1:-1])
    assert column.mean == pytest.approx(0, abs=0.05)


def test_a_discrete_column_has_a_bin_for_each_value():
    column = numeric(make_profile(pl.DataFrame({"k": [0] * 96 + [1] * 3 + [7]}), [K]), "k")
    assert column.edges == (0, 1, 7)
    assert column.counts == (96, 3, 1, 0)


def test_values_out_of_the_reference_fall_in_the_open_ends():
    reference = make_profile(pl.DataFrame({"x": [1.0, 2.0, 3.0]}), [X])
    column = numeric(make_profile(pl.DataFrame({"x": [-9.0, 1.0, 3.0, 3.5, 99.0]}), [X], reference))
    assert column.counts == (2, 0, 1, 2)


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
    assert numeric(profile).counts == (0,)


def test_an_empty_frame_has_a_profile():
    profile = make_profile(frame([], [], [], []), COLUMNS)
    assert profile.rows == 0
    assert all(column.count == column.missing == 0 for column in profile.columns.values())
    with pytest.raises(ProfileError, match="at least one row"):
        missing_share(profile.columns["x"])


def test_a_constant_column_drifts_when_it_changes():
    reference = make_profile(pl.DataFrame({"x": [5.0] * 100}), [X])
    same = make_profile(pl.DataFrame({"x": [5.0] * 30}), [X], reference)
    moved = make_profile(pl.DataFrame({"x": [6.0] * 30}), [X], reference)
    assert psi(reference.columns["x"], same.columns["x"]) == 0
    assert psi(reference.columns["x"], moved.columns["x"]) > 10
    assert jensen_shannon(reference.columns["x"], moved.columns["x"]) == 1


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
    current = make_profile(pl.DataFrame({"c": ["a", "z", "y", "z", None]}), [C], reference)
    assert new_categories(reference.columns["c"], current.columns["c"]) == {"z": 2, "y": 1}
    assert psi(reference.columns["c"], current.columns["c"]) > 1


def test_more_values_than_a_profile_keeps():
    many = pl.DataFrame({"c": [f"N{n % 1500:05}" for n in range(3000)] + ["common"] * 50})
    reference = make_profile(many, [C])
    column = categorical(reference)
    assert len(column.counts) == 1000
    assert column.counts["common"] == 50
    assert sum(column.counts.values()) + column.other == column.count == 3050
    current = make_profile(pl.DataFrame({"c": ["never seen"] * 9}), [C], reference)
    assert new_categories(column, current.columns["c"]) == {}  # it might be one of the 501 not kept
    assert psi(column, make_profile(many.reverse(), [C], reference).columns["c"]) == 0


def test_psi_is_the_textbook_sum():
    reference = CategoricalColumn(100, 0, {"a": 60, "b": 40})
    current = CategoricalColumn(10, 0, {"a": 3, "b": 7})
    expected = (0.3 - 0.6) * math.log(0.3 / 0.6) + (0.7 - 0.4) * math.log(0.7 / 0.4)
    assert psi(reference, current) == pytest.approx(expected)
    gone = CategoricalColumn(10, 0, {"a": 10})
    floored = (1 - 0.6) * math.log(1 / 0.6) + (1e-4 - 0.4) * math.log(1e-4 / 0.4)
    assert psi(reference, gone) == pytest.approx(floored)


def test_jensen_shannon_is_scipys():
    reference = make_profile(normal(5000), [X])
    current = make_profile(normal(4000, shift=0.7, seed=1), [X], reference)
    expected = jensenshannon(numeric(reference).counts, numeric(current).counts, base=2)
    assert jensen_shannon(reference.columns["x"], current.columns["x"]) == pytest.approx(expected)


def test_psi_separates_drift_from_noise():
    reference = make_profile(normal(20_000), [X])
    for seed in range(1, 6):
        same = make_profile(normal(2000, seed=seed), [X], reference)
        assert psi(reference.columns["x"], same.columns["x"]) < 0.05
    moved = make_profile(normal(2000, shift=0.6, seed=9), [X], reference)
    assert psi(reference.columns["x"], moved.columns["x"]) > 0.25


def test_unlike_profiles_do_not_mix():
    one, two = make_profile(normal(10), [X]), make_profile(normal(10, seed=1), [X])
    with pytest.raises(ProfileError, match="edges"):
        merge(one, two)
    with pytest.raises(ProfileError, match="edges"):
        psi(one.columns["x"], two.columns["x"])
    text = make_profile(pl.DataFrame({"x": ["a"]}), [ColumnSpec("x", "string")], one)
    with pytest.raises(ProfileError, match="numeric in one profile and categorical in the other"):
        merge(one, text)
    with pytest.raises(ProfileError, match="reference is numeric, the current categorical"):
        psi(one.columns["x"], text.columns["x"])
    with pytest.raises(ProfileError, match="only one of them has c"):
        merge(one, make_profile(normal(10), [X, C]))
