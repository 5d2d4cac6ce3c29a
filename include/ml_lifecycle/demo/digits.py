"""The second example's world: handwritten digits, arriving one after the other as a scanner would send them.

:func:`land` writes what became known in a span of time:

- ``scans/``: a row when an image was scanned, its 64 pixels as text
- ``readings/``: a row when a clerk has read it, eight hours later: the truth

The data are those that scikit-learn brings (``load_digits``: 1,797 images of 8 × 8 pixels, the test part of
the UCI set *Optical Recognition of Handwritten Digits*, Alpaydin and Kaynak, 1998; CC BY 4.0). They have no
times: here one image is scanned every ten minutes from :data:`FIRST_SCAN` on, in the order of the file.
Several people wrote them, and the file is not shuffled: a model of its first part knows the later ones less
well.
"""

from __future__ import annotations

import functools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from ml_lifecycle.demo.files import rows_between, write_csv
from ml_lifecycle.records import Interval

FIRST_SCAN = datetime(2024, 3, 1, tzinfo=UTC)
EVERY = timedelta(minutes=10)
READ_AFTER = timedelta(hours=8)


def land(folder: str | os.PathLike[str], start: datetime, end: datetime) -> tuple[Path, ...]:
    """Write the files that arrive in ``start <= t < end``, one a source and day; returns their paths.

    A day is counted from ``start``; a repeated call writes the same bytes. A file appears whole.

    :param folder: where ``scans/`` and ``readings/`` go
    """
    written = []
    for table, frame, moment in (("scans", scans(), "scanned_at"), ("readings", readings(), "read_at")):
        day = start
        while day < end:
            rows = rows_between(frame, moment, Interval(day, min(day + timedelta(days=1), end)))
            written.append(write_csv(Path(folder) / table / f"{day:%Y-%m-%dT%H%M}.csv", rows))
            day += timedelta(days=1)
    return tuple(written)


@functools.cache
def scans() -> pl.DataFrame:
    """Every image, as it is scanned: ``image_id``, ``scanned_at``, ``pixels`` (0 to 16, row by row)."""
    images, _ = _data()
    return pl.DataFrame(
        {
            "image_id": [f"image-{number:04d}" for number in range(len(images))],
            "scanned_at": [FIRST_SCAN + number * EVERY for number in range(len(images))],
            "pixels": [" ".join(str(int(pixel)) for pixel in image) for image in images],
        },
        schema_overrides={"scanned_at": pl.Datetime("us", "UTC")},
    )


@functools.cache
def readings() -> pl.DataFrame:
    """Every image, as it is read: ``image_id``, ``read_at``, ``digit``."""
    _, digits = _data()
    return scans().select(
        "image_id", (pl.col("scanned_at") + READ_AFTER).alias("read_at"), pl.Series("digit", digits)
    )


def _data() -> tuple[list[list[float]], list[int]]:
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    return images.tolist(), digits.tolist()
