"""Values that another table lacks: found exactly, at any number of rows on both sides, in bounded memory.

What the other table holds is looked up part by part, by a hash of the values, so that at most some millions
of them are in memory; the rows themselves stream by. Of most tables one part is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ml_lifecycle.rules.duplicates import AT_ONCE

# No column of a table has such names.
_ROW, _KNOWN = "\0row", "\0known"


@dataclass(frozen=True)
class Unknown:
    """What a search found.

    :param missing: rows without a value
    :param unknown: rows whose value the other table lacks
    :param sample: the first of them; None without any
    """

    rows: int
    missing: int
    unknown: int
    sample: pl.DataFrame | None


def find_unknown(
    frame: pl.LazyFrame, known: pl.LazyFrame, column: str, *, limit: int, at_once: int = AT_ONCE
) -> Unknown:
    """Rows of ``frame`` whose value in ``column`` is not in the only column of ``known``; null is left out.

    :param limit: rows of the sample
    :param at_once: rows of ``known`` that may be in memory
    """
    value, held = pl.col(column), pl.col(_KNOWN)
    numbers = frame.select(pl.len(), value.null_count().alias(_KNOWN)).collect(engine="streaming")
    rows, missing = numbers.row(0)
    values = known.select(pl.all().name.map(lambda _: _KNOWN)).filter(held.is_not_null())
    numbered = frame.with_row_index(_ROW).filter(value.is_not_null())
    parts = 1 + int(values.select(pl.len()).collect(engine="streaming").item()) // at_once
    unknown, samples = 0, []
    for part in range(parts):
        some, looked_up = numbered, values
        if parts > 1:
            some, looked_up = (
                numbered.filter(_part(value, parts, part)),
                values.filter(_part(held, parts, part)),
            )
        lacking = some.join(looked_up.unique(), left_on=column, right_on=_KNOWN, how="anti")
        if count := int(lacking.select(pl.len()).collect(engine="streaming").item()):
            unknown += count
            samples.append(lacking.bottom_k(limit, by=_ROW).collect(engine="streaming"))
    sample = pl.concat(samples).sort(_ROW).head(limit).drop(_ROW) if samples else None
    return Unknown(rows, missing, unknown, sample)


def _part(value: pl.Expr, parts: int, part: int) -> pl.Expr:
    return value.hash() % parts == part
