"""A pandas frame comes to what pyarrow makes of it, whatever way its texts took."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ml_lifecycle.adapters import feast_frame
from ml_lifecycle.adapters.feast_frame import EntityFrame

TIMES = pd.to_datetime([datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 7)])
TEXTS = ["a", "b", "a", "", "ü" * 3, "b"]


def framed(values: object, name: object = "key") -> pd.DataFrame:
    return pd.DataFrame({"at": TIMES, name: values})


def own(texts: list[str]) -> list[str]:
    """The same texts, each an object of its own."""
    return ["".join([*text]) for text in texts]


def parted(frame: pd.DataFrame, size: int) -> pa.Table:
    rows = EntityFrame(frame, "at")
    parts = [rows.part(first, min(size, len(frame) - first)) for first in range(0, len(frame), size)]
    return pa.concat_tables(pa.table(part, names=rows.names) for part in parts)


FRAMES = {
    "texts": framed(TEXTS),
    "equal texts of several objects": framed(own(["long text", "long text", "b"]) * 2),
    "no text twice": framed(list("abcdef")),
    "all that is missing": framed(["a", None, float("nan"), pd.NA, pd.NaT, "a"]),
    "nothing but missing": framed(pd.Series([None] * 6, dtype=object)),
    "numbers as objects": framed(pd.Series([1, 1, None, 2, 2, 1], dtype=object)),
    "bytes": framed([b"a", b"b", b"a", b"a", b"a", None]),
    "numpy's texts": framed(pd.Series([np.str_("a"), np.str_("b")] * 3, dtype=object)),
    "categories": framed(pd.Categorical(["a", "b", None, "a", "b", "b"])),
    "pandas' own texts": framed(pd.array(["a", None, "b", "a", "b", "b"], dtype="string[python]")),
    "Arrow's texts": framed(pd.array(["a", None, "b", "a", "b", "b"], dtype="string[pyarrow]")),
    "whole numbers with missing": framed(pd.array([1, None, 2, 1, 2, 1], dtype="Int64")),
    "a doubled index": framed(TEXTS).set_axis([0, 0, 1, 1, 2, 2]),
    "an index of texts": framed(TEXTS).set_axis(TEXTS),
    "a name that is no text": framed(TEXTS, 7),
    "rows beside each other": pd.DataFrame([["a", "b"], ["a", "c"], ["d", "b"]] * 2).assign(at=TIMES),
    "every other row": framed(TEXTS).iloc[::-2],
    "another zone": framed(TEXTS).assign(at=TIMES.tz_convert("America/New_York")),
    "several zones": framed(TEXTS).assign(
        at=pd.Series([*TIMES[:3], *TIMES[3:].tz_convert("Asia/Tokyo")], dtype=object)
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("size", [2, 100])
def test_columns_are_those_that_pyarrow_makes(kind: str, size: int) -> None:
    frame = FRAMES[kind]
    expected = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    assert parted(frame, size).equals(expected)
    before = frame.copy()
    found = EntityFrame(frame, "at").keys(["key", "at", "none"])
    assert {*found.columns} == {"at", "key"} & {*frame.columns}
    if "key" in found.columns:
        texts = pl.DataFrame(pl.from_arrow(expected))["key"]
        assert found["key"].cast(texts.dtype).equals(texts)
    pd.testing.assert_frame_equal(frame, before)


def test_a_frame_without_rows_has_its_columns() -> None:
    frame = framed(TEXTS).head(0)
    assert [len(column) for column in EntityFrame(frame, "at").part(0, 0)] == [0, 0]
    assert EntityFrame(frame, "at").keys(["at", "key"]).shape == (0, 2)


@pytest.mark.parametrize(
    "frame",
    [
        framed(["a", 1, "a", 1, "a", 1]),
        framed(["a", "a", "a", "\ud800", "\ud800", "a"]),
        pd.concat([framed(TEXTS), framed(TEXTS)["key"]], axis=1),
    ],
    ids=["mixed types", "half a character", "a name twice"],
)
def test_what_pyarrow_refuses_is_refused_in_its_words(frame: pd.DataFrame) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        pa.Table.from_pandas(frame, preserve_index=False)
    with pytest.raises(type(expected.value)) as found:
        EntityFrame(frame, "at")
    assert str(found.value) == str(expected.value)


def test_texts_longer_than_an_array_may_be_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feast_frame, "_ARRAY_BYTES", 7)  # the longest text has six
    frame = framed(TEXTS)
    [_, column] = EntityFrame(frame, "at").part(1, 5)
    assert column.num_chunks == 5
    assert column.to_pylist() == TEXTS[1:]


def test_where_texts_are_few_the_join_gets_numbers() -> None:
    frame = framed(TEXTS)
    assert EntityFrame(frame, "at").keys(["key"])["key"].dtype == pl.Enum(["a", "b", "", "üüü"])
    apart = framed(own(["xy"] * 6))
    assert EntityFrame(apart, "at").keys(["key"])["key"].dtype == pl.String
