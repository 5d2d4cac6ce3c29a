"""Entity rows that come as a pandas frame: each text once, and its number in every row.

pandas keeps a text column as one Python object a row, and what reads Parquet, joins or repeats rows gives the
same object again for the same text. So the addresses of the objects, which are numbers, tell all texts apart
without a look at any object. Only those few are turned into Arrow's; the join compares their numbers, and the
result's texts are copied by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Where nearly every row looked at has an object of its own there is nothing to win.
_SAMPLE = 10_000
_OWN = 0.9
# What one Arrow array of texts can hold.
_ARRAY_BYTES = 2**31 - 1


@dataclass(frozen=True)
class _Texts:
    """A text column.

    :param numbers: of each row's text among ``texts``
    :param texts: a text more than once, if several objects are equal; null, if rows have none
    """

    numbers: pa.Array
    texts: pa.Array

    @cached_property
    def _step(self) -> int:
        """How many rows' texts fit into an array, whichever they are."""
        longest: int = pc.max(pc.binary_length(self.texts)).as_py()
        return max(1, _ARRAY_BYTES // max(1, longest))

    def part(self, first: int, rows: int) -> pa.ChunkedArray:
        end = first + rows
        chunks = [self.numbers.slice(at, min(self._step, end - at)) for at in range(first, end, self._step)]
        return pa.chunked_array([self.texts.take(chunk) for chunk in chunks], pa.string())

    def key(self) -> pl.Series:
        texts = pl.Series(pl.from_arrow(self.texts))
        once = pl.Enum(texts.drop_nulls().unique(maintain_order=True))
        return texts.cast(once).gather(pl.Series(pl.from_arrow(self.numbers)))


class EntityFrame:
    """A pandas frame in the types that pyarrow finds for it.

    :param moment: the column with times; it stays as it is even if it holds texts
    :raises ValueError, TypeError: pyarrow knows no type for a column's values. Retry: no.
    """

    def __init__(self, frame: pd.DataFrame, moment: str) -> None:
        self.names = [str(name) for name in frame.columns]
        self._texts: dict[str, _Texts] = {}
        if len({*self.names}) == len(self.names):  # else pyarrow says what is doubled
            for name, kind in frame.dtypes.items():
                if name == moment or not pd.api.types.is_object_dtype(kind):
                    continue
                if (texts := _texts(frame[name].to_numpy())) is not None:
                    self._texts[str(name)] = texts
            rest = {name: frame[name] for name in frame.columns if str(name) not in self._texts}
            frame = pd.DataFrame(rest, copy=False)
        self._rest = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()

    def keys(self, names: Sequence[str]) -> pl.DataFrame:
        """The columns of these names that there are, texts as an Enum of those in the frame."""
        rest = self._rest.select([name for name in names if name in self._rest.column_names])
        return pl.DataFrame(pl.from_arrow(rest)).with_columns(
            self._texts[name].key().alias(name) for name in names if name in self._texts
        )

    def part(self, first: int, rows: int) -> list[pa.ChunkedArray]:
        """All columns of some rows."""
        rest = self._rest.slice(first, rows)
        return [
            self._texts[name].part(first, rows) if name in self._texts else rest[name] for name in self.names
        ]


class _Addresses:
    """Has numpy read an array of objects as their addresses."""

    def __init__(self, objects: NDArray[np.object_]) -> None:
        self._objects = objects  # must outlive what is read
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": np.dtype(np.uintp).str,
            "shape": objects.shape,
            "data": (objects.ctypes.data, True),
        }


def _texts(objects: NDArray[np.object_]) -> _Texts | None:
    """None if the objects are no texts, or nearly all different."""
    objects = np.ascontiguousarray(objects)
    addresses = np.asarray(_Addresses(objects))
    sample = addresses[:: len(addresses) // _SAMPLE + 1]
    if len(np.unique(sample)) > _OWN * len(sample):
        return None
    numbers = pa.array(addresses).dictionary_encode().indices
    rows = pl.Series(pl.from_arrow(numbers)).arg_unique().to_numpy()
    first = rows[np.argsort(numbers.to_numpy()[rows])]  # the row where each number comes first
    try:
        texts = pa.array(objects[first], from_pandas=True)
    except (ValueError, TypeError, ArithmeticError):
        return None  # the whole column says what is wrong, and where
    return _Texts(numbers, texts) if pa.types.is_string(texts.type) else None
