"""What the model sees of a scan: its 64 pixels, a number each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

PIXELS = [f"pixel_{number:02d}" for number in range(64)]
# A value counts from just after its moment on, so a scan can be asked about a minute after it was made.
ASKED_AFTER = timedelta(minutes=1)

image = Entity(name="image", join_keys=["image_id"], value_type=ValueType.STRING)
image_pixels = FeatureView(
    name="image_pixels",
    entities=[image],
    ttl=timedelta(days=2),  # nobody asks about older scans
    # Whole numbers cannot be missing: an image that is not there is refused, as no model could answer it. A
    # float could be, and training.py would have to say what then. All are numbers, so the server also takes
    # one packed tensor with an image a row.
    schema=[Field(name=pixel, dtype=Int64) for pixel in PIXELS],
    source=FileSource(name="image_pixels", path="image_pixels.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="digits", features=[image_pixels])


def tables(sources: Mapping[str, pl.LazyFrame]) -> Mapping[str, pl.LazyFrame]:
    """Each scan's pixels as they were scanned, and its digit as of when a clerk had read it."""
    scans, readings = sources["scans"], sources["readings"]
    ink = pl.col("pixels").str.split(" ")
    asked = (pl.col("scanned_at") + ASKED_AFTER).alias("event_timestamp")
    return {
        "image_pixels": scans.select(
            "image_id",
            *(ink.list.get(number).cast(pl.Int64).alias(pixel) for number, pixel in enumerate(PIXELS)),
            event_timestamp="scanned_at",
        ),
        "labels": readings.join(scans, on="image_id").select("image_id", asked, "digit", known_at="read_at"),
        "entities": scans.select("image_id", asked),
    }
