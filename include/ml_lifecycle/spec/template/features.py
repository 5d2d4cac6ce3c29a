"""What the model sees. Tasks and pods import this file; parsing the DAGs does not.

Feast's own objects say which features there are; ``tables`` computes the rows behind them. A feature view
reads the table that its FileSource is named after.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)

customer_orders = FeatureView(
    name="customer_orders",
    entities=[customer],
    ttl=timedelta(days=365),  # older values count as missing
    schema=[
        # Not Int64: a customer's first order has no earlier one, and integers cannot be missing.
        Field(name="orders_closed", dtype=Float64),
        Field(name="return_share", dtype=Float64),
        Field(name="mean_amount", dtype=Float64),
        Field(name="last_channel", dtype=String),
    ],
    # The name says which table of tables() it is. Feast insists on a path: the name and ".parquet"; the file
    # is made for each run.
    source=FileSource(
        name="customer_orders", path="customer_orders.parquet", timestamp_field="event_timestamp"
    ),
)

service = FeatureService(name="new_model", features=[customer_orders])


def tables(sources: Mapping[str, pl.LazyFrame]) -> Mapping[str, pl.LazyFrame]:
    """One frame for each FileSource, the labels, and the entities.

    A feature row counts from its ``event_timestamp`` on: the moment its values were known, not the moment
    they are about. An order's return is known when the order is closed, so that is the moment here.

    ``entities`` are what the score DAG predicts, and as of when: here each order, as it comes in.

    It must do with sources without rows too: `ml-lifecycle check` calls it with such.

    :param sources: the rows of each source in model.yaml, up to the time the run stands for
    """
    orders = sources["orders"]
    closed = orders.filter(pl.col("closed_at").is_not_null()).sort("closed_at", "order_id")
    count = pl.int_range(1, pl.len() + 1).over("customer_id")
    customer_orders = closed.select(
        "customer_id",
        pl.col("closed_at").alias("event_timestamp"),
        count.alias("orders_closed"),
        (pl.col("returned").cast(pl.Float64).cum_sum().over("customer_id") / count).alias("return_share"),
        (pl.col("amount").cum_sum().over("customer_id") / count).alias("mean_amount"),
        pl.col("channel").alias("last_channel"),
    )
    labels = closed.filter(pl.col("returned").is_not_null()).select(
        "customer_id",
        pl.col("ordered_at").alias("event_timestamp"),
        pl.col("closed_at").alias("known_at"),
        pl.col("returned").cast(pl.Int64),
    )
    entities = orders.select("customer_id", pl.col("ordered_at").alias("event_timestamp"))
    return {"customer_orders": customer_orders, "labels": labels, "entities": entities}
