"""What the model knows of a flight when the day begins: schedule, weather, recent delays, aircraft."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64, String

# Predictions for a day's flights are made at 4 in the morning in New York, when hardly any flight departs.
DAY_STARTS = timedelta(hours=8)
LATE_MINUTES = 15


def _source(name: str) -> FileSource:
    return FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")


flight = Entity(name="flight", join_keys=["flight_id"], value_type=ValueType.STRING)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
route = Entity(name="route", join_keys=["route"], value_type=ValueType.STRING)
plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)

flight_schedule = FeatureView(
    name="flight_schedule",
    entities=[flight],
    ttl=timedelta(days=3),
    schema=[
        # Tags say which contract field a feature holds unchanged: its rules are then the model's input's too.
        Field(name="carrier", dtype=String, tags={"contract": "flights.carrier"}),
        Field(name="departs_from", dtype=String),
        Field(name="destination", dtype=String),
        Field(name="departure_minute", dtype=Int64),
        Field(name="weekday", dtype=Int64),
        Field(name="distance", dtype=Float32, tags={"contract": "flights.distance"}),
        Field(name="scheduled_minutes", dtype=Float32, tags={"contract": "flights.scheduled_minutes"}),
    ],
    source=_source("flight_schedule"),
)
origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temperature", dtype=Float32),
        Field(name="humidity", dtype=Float32),
        Field(name="wind_speed", dtype=Float32),
        Field(name="visibility", dtype=Float32),
        Field(name="precipitation", dtype=Float32),
        Field(name="precipitation_6h", dtype=Float32),
    ],
    source=_source("origin_weather"),
)
origin_delays = FeatureView(
    name="origin_delays",
    entities=[origin],
    ttl=timedelta(days=1),
    schema=[Field(name="origin_late_share_1d", dtype=Float32)],
    source=_source("origin_delays"),
)
route_delays = FeatureView(
    name="route_delays",
    entities=[route],
    ttl=timedelta(days=28),
    schema=[Field(name="route_late_share_28d", dtype=Float32)],
    source=_source("route_delays"),
)
plane_registry = FeatureView(
    name="plane_registry",
    entities=[plane],
    ttl=timedelta(0),  # never too old
    schema=[
        Field(name="manufacturer", dtype=String),
        Field(name="year_built", dtype=Float32),
        Field(name="seats", dtype=Float32),
    ],
    source=_source("plane_registry"),
)

service = FeatureService(
    name="flight_delay",
    features=[flight_schedule, origin_weather, origin_delays, route_delays, plane_registry],
)


def tables(sources: Mapping[str, pl.LazyFrame]) -> Mapping[str, pl.LazyFrame]:
    """A feature row counts from just after its event time: the moment it became known."""
    flights = sources["flights"].with_columns(
        route=pl.format("{}-{}", "origin", "dest"),
        # A flight without an aircraft yet asks for, and is remembered by, the empty tail number.
        tailnum=pl.col("tailnum").fill_null(""),
        event_timestamp=(pl.col("scheduled_departure") - DAY_STARTS).dt.truncate("1d") + DAY_STARTS,
    )
    # Flights that never land (cancelled, diverted) have no arrival: they say nothing, and have no label.
    landed = sources["arrivals"].select(
        "flight_id", "landed_at", late=(pl.col("arr_delay") > LATE_MINUTES).cast(pl.Int64)
    )
    delays = _as_published(landed, flights)
    asked = _asked(flights)
    return {
        "flight_schedule": _schedule(flights),
        "origin_weather": _weather(sources["weather"]),
        "origin_delays": _late_share(delays, "origin", "1d", "origin_late_share_1d"),
        "route_delays": _late_share(delays, "route", "28d", "route_late_share_28d"),
        "plane_registry": _planes(sources["planes"]),
        "labels": asked.join(landed, on="flight_id").rename({"landed_at": "known_at"}),
        "entities": asked,
    }


def _asked(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Each morning's flights as they stood then; one published later was never there to predict.

    The airline may publish a flight again, with another aircraft: what it said afterwards was not known.
    """
    return (
        flights.filter(pl.col("published_at") < pl.col("event_timestamp"))
        .sort("published_at")
        .unique(["flight_id", "event_timestamp"], keep="last", maintain_order=True)
        .select("flight_id", "origin", "route", "tailnum", "event_timestamp")
    )


def _as_published(landed: pl.LazyFrame, flights: pl.LazyFrame) -> pl.LazyFrame:
    """Landings with where the flight was from and to, by what was last published before it landed."""
    published = flights.select("flight_id", "origin", "route", "published_at").sort("published_at")
    return (
        landed.sort("landed_at")
        .join_asof(
            published,
            left_on="landed_at",
            right_on="published_at",
            by="flight_id",
            check_sortedness=False,  # both are sorted above; with keys Polars cannot check and warns
        )
        .drop_nulls("route")
    )


def _schedule(flights: pl.LazyFrame) -> pl.LazyFrame:
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    return flights.select(
        "flight_id",
        "carrier",
        "distance",
        "scheduled_minutes",
        event_timestamp="published_at",
        departs_from="origin",
        destination="dest",
        departure_minute=local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute(),
        weekday=local.dt.weekday().cast(pl.Int64),
    )


def _weather(observations: pl.LazyFrame) -> pl.LazyFrame:
    # Rain is measured in hundredths of an inch and added up as whole numbers: a running sum of fractions
    # keeps rounding errors, and a dry hour's value would depend on how far back the data go.
    hundredths = (pl.col("precip") * 100).round().cast(pl.Int64)
    return observations.sort("observed_at").select(
        "origin",
        event_timestamp="observed_at",
        temperature="temp",
        humidity="humid",
        wind_speed="wind_speed",
        visibility="visib",
        precipitation="precip",
        precipitation_6h=hundredths.rolling_sum_by("observed_at", "6h").over("origin") / 100,
    )


def _late_share(landed: pl.LazyFrame, key: str, span: str, name: str) -> pl.LazyFrame:
    """The share of late arrivals over the ``span`` up to each landing; one row an instant."""
    share = pl.col("late").mean().alias(name)
    return (
        landed.sort(key, "landed_at")
        .rolling("landed_at", period=span, group_by=key)
        .agg(share)
        .unique([key, "landed_at"], keep="any")
        .rename({"landed_at": "event_timestamp"})
    )


def _planes(registry: pl.LazyFrame) -> pl.LazyFrame:
    long_known = pl.lit(datetime(2000, 1, 1, tzinfo=UTC)).cast(pl.Datetime("us", "UTC"))
    return registry.select("tailnum", "manufacturer", "year_built", "seats", event_timestamp=long_known)
