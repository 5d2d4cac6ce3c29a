"""The rows of a training set: labels in the order of time, joined with their features a slice at a time.

Labels are sorted on disk (:mod:`ml_lifecycle.adapters.sorting`) and looked up from there, so that memory does
not grow with their number: neither here, nor in the driver of a join on Spark.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.local_files import no_room_said
from ml_lifecycle.adapters.sorting import sorted_batches
from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Interval
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.feature_tables import INSTANT, MOMENT, FeatureTables, local_tables

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features
    from ml_lifecycle.spark.session import SparkSession


@dataclass(frozen=True)
class Spans:
    """Which event times are trained on, and which are held out."""

    train: Interval
    holdout: Interval
    column: str
    event_time: str
    known_at: str

    @classmethod
    def of(cls, spec: ModelSpec, as_of: datetime) -> Spans:
        """The spans of a training as of ``as_of``.

        :raises FeatureError: the data do not reach far enough back. Retry: no.
        """
        labels, data = spec.labels, spec.training.data
        holdout = Interval(as_of - labels.delay - data.holdout, as_of - labels.delay)
        train_end = holdout.start - labels.delay
        start = data.start if data.window is None else max(data.start, train_end - data.window)
        if start >= train_end:
            raise FeatureError(
                f"nothing to train on: rows count from {start.isoformat()}, but with a holdout of "
                f"{format_duration(data.holdout)} and labels that take {format_duration(labels.delay)} "
                f"they end at {train_end.isoformat()}; train later, or hold out less"
            )
        return cls(Interval(start, train_end), holdout, labels.column, labels.event_time, labels.known_at)

    def split(self, labels: pl.LazyFrame) -> tuple[pl.LazyFrame, pl.LazyFrame]:
        """Training and holdout rows, those without a label too.

        :raises FeatureError: one of them is empty. Retry: no.
        """
        event, known = pl.col(self.event_time), pl.col(self.known_at)
        in_training = (event >= self.train.start) & (event < self.train.end) & (known < self.holdout.start)
        in_holdout = (event >= self.holdout.start) & (event < self.holdout.end)
        counted = labels.filter(pl.col(self.column).is_not_null()).select(
            in_training.sum().alias("training"),
            in_holdout.sum().alias("holdout"),
            event.min().alias("first"),
            event.max().alias("last"),
        )
        found = counted.collect(engine="streaming").row(0, named=True)
        for name, span in (("training", self.train), ("holdout", self.holdout)):
            if not found[name]:
                raise FeatureError(
                    f"no labelled row in the {name} span {span.start.isoformat()} to {span.end.isoformat()}; "
                    f"the labels known by then are for {found['first']!s} to {found['last']!s}"
                )
        return labels.filter(in_training), labels.filter(in_holdout)


@dataclass(frozen=True)
class LabelledRows:
    """Label, moment and keys of all rows, those of the training first, each part ordered by time and keys.

    Of several labels for one moment and keys there is the one known last: before the holdout begins, or, in
    the holdout, before the moment of the training. As the monitor counts them. None where that is null: a
    label that was withdrawn is unknown again.

    :param asked: of Parquet files with what the features are looked up by
    """

    rows: pl.LazyFrame
    asked: Path
    training: int
    holdout: int

    def asked_batches(self) -> Iterator[pl.DataFrame]:
        """What the features are looked up by, some rows at a time."""
        return (pl.read_parquet(path) for path in sorted(self.asked.iterdir()))


@contextmanager
def labelled_rows(
    lake: Lake, tables: FeatureTables, labels: Labels, spans: Spans, as_of: datetime
) -> Iterator[LabelledRows]:
    """The rows of a training as of a moment; they lie on the local disk within the block.

    :raises FeatureError: the table of labels lacks a column, or a span has no row. Retry: no.
    :raises NoSpaceError: the local disk is full. Retry: yes, when there is room.
    """
    with (
        local_tables(lake, tables, [labels.table]) as path,
        tempfile.TemporaryDirectory(prefix="labelled-rows-") as folder,
    ):
        kept, asked = Path(folder, "kept"), Path(folder, "asked")
        kept.mkdir()
        asked.mkdir()
        heights, files = [], 0
        known = _known_labels(path / f"{labels.table}.parquet", labels, as_of)
        for name, part in zip(("training", "holdout"), spans.split(known), strict=True):
            heights.append(0)
            by = [labels.event_time, *labels.keys]
            for batch in sorted_batches(part, by):  # what is alike in all of these is in one batch
                rows = _known_last(batch, by, labels).select(
                    labels.column, pl.col(labels.event_time).alias(MOMENT), *map(pl.col, labels.keys)
                )
                file = f"{files:06d}.parquet"
                with no_room_said(name):
                    rows.write_parquet(kept / file, compression="lz4")
                    rows.select(*labels.keys, pl.col(MOMENT) - INSTANT).write_parquet(
                        asked / file, compression="lz4"
                    )
                heights[-1] += rows.height
                files += 1
            if not heights[-1]:
                raise FeatureError(
                    f"every label in the {name} span was withdrawn: null is what is known last"
                )
        yield LabelledRows(pl.scan_parquet(kept / "*.parquet"), asked, *heights)


def _known_last(rows: pl.DataFrame, by: Sequence[str], labels: Labels) -> pl.DataFrame:
    """Of rows that are alike in the columns by which they are sorted, the one known last, if it has a label.

    A missing key is nobody's, so such rows are not alike. Of what was known at once a label counts, not null.
    """
    given = pl.col(labels.column).is_not_null()
    end = pl.int_range(pl.len()) == pl.len() - 1
    last = pl.any_horizontal(pl.col(by).ne_missing(pl.col(by).shift(-1)), pl.col(by).is_null(), end)
    return rows.sort(*by, labels.known_at, given, maintain_order=True).filter(last).filter(given)


def _known_labels(path: Path, labels: Labels, as_of: datetime) -> pl.LazyFrame:
    """The labels known before ``as_of``; null in rows that withdraw one, or never had it."""
    table = pl.scan_parquet(path)
    present = table.collect_schema().names()
    needed = [labels.event_time, labels.known_at, labels.column, *labels.keys]
    if missing := [column for column in needed if column not in present]:
        raise FeatureError(
            f"table {labels.table!r} of features.py lacks the columns {missing} "
            "that labels: in model.yaml names"
        )
    return (
        table.select(needed)
        .with_columns(pl.col(labels.event_time, labels.known_at).cast(TIMESTAMP))
        .filter(pl.col(labels.known_at) < as_of)
    )


@contextmanager
def joined_rows(
    session: SparkSession | None,
    lake: Lake,
    tables: FeatureTables,
    features: Features,
    labels: Labels,
    labelled: LabelledRows,
) -> Iterator[tuple[Iterator[pl.DataFrame], bytes]]:
    """The labelled rows behind their features, some at a time, and the registry they were found by.

    :raises FeatureError: a key or a feature is named in a way that it cannot be. Retry: no.
    """
    columns = features.columns()
    if missing := [key for key in features.join_keys() if key not in labels.keys]:
        raise FeatureError(
            f"the feature service {features.service.name!r} looks features up by {missing} too: "
            "list them in labels.keys in model.yaml"
        )
    if clash := sorted(columns.keys() & {*labels.keys, labels.column, MOMENT}):
        raise FeatureError(f"features {clash} are named like the label or an entity key: rename them")
    find = (
        _on_polars(lake, tables, features, labelled)
        if session is None
        else _on_spark(session, lake, tables, features, labelled)
    )
    with find as (found, registry):
        # The join keeps rows and order, so the label need not go through Feast.
        yield _behind((frame.select(*columns) for frame in found), labelled.rows), registry


def _behind(found: Iterable[pl.DataFrame], rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    first = 0
    for frame in found:
        yield frame.hstack(rows.slice(first, frame.height).collect())
        first += frame.height


@contextmanager
def _on_polars(
    lake: Lake, tables: FeatureTables, features: Features, labelled: LabelledRows
) -> Iterator[tuple[Iterator[pl.DataFrame], bytes]]:
    from ml_lifecycle.adapters.feast_repo import historical_slices, open_store, registry_bytes

    with local_tables(lake, tables, features.source_tables()) as path:
        store = open_store(features, path)
        found = historical_slices(store, features.service, str(labelled.asked / "*.parquet"))
        yield found, registry_bytes(store)


@contextmanager
def _on_spark(
    session: SparkSession, lake: Lake, tables: FeatureTables, features: Features, labelled: LabelledRows
) -> Iterator[tuple[Iterator[pl.DataFrame], bytes]]:
    from ml_lifecycle.adapters.feast_repo import open_store, registry_bytes
    from ml_lifecycle.spark.features import historical_slices

    with tempfile.TemporaryDirectory(prefix="features-") as name:  # to register views, no table is read
        registry = registry_bytes(open_store(features, Path(name)))
    with historical_slices(session, lake, tables.tables, features, labelled.asked_batches()) as found:
        yield found, registry
