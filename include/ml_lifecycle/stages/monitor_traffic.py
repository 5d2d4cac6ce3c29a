"""The part of the monitor that counts: who answered, how much, how quickly, and with how many errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.profiles.sketches import Quantiles
from ml_lifecycle.records import Finding
from ml_lifecycle.stages.monitor_kept import Found, KeptFindings

RETURNED = pl.col("returned") & (pl.col("status") == 200)
"""Rows that a client got as an answer."""

_COLUMNS = (
    "row",
    "received_at",
    "event_time",
    "model_version",
    "model_digest",
    "variant",
    "returned",
    "latency_ms",
    "status",
    "features_from",
)


@dataclass(frozen=True)
class ServedVersion:
    """A version and how many of the window's returned rows it answered."""

    version: str
    model_digest: str
    rows: int


@dataclass
class Traffic:
    """The endpoint's volume, errors and latency, as clients saw them.

    Shadows answer nobody, and what a canary alone refused (4xx) the champion answered: neither is ``asked``.

    :param by_keys: answers whose features the online store was asked for
    :param unknown: of these, those of which it knew nothing
    :param latency: milliseconds; the rows of one request share one
    """

    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: int = 0
    failed: int = 0
    by_keys: int = 0
    unknown: int = 0
    latency: Quantiles | None = None
    stretches: list[tuple[Stretch, frozenset[str]]] = field(default_factory=list)

    def add(self, rows: pl.DataFrame) -> None:
        """Count a batch of the log."""
        seen = pl.col("returned") | (pl.col("status") >= 500)
        asked = rows.filter(seen & (pl.col("variant") != "shadow"))
        returned = rows.filter(RETURNED)
        self.asked += asked.height
        self.failed += asked.filter(pl.col("status") != 200).height
        by_keys = returned.filter(pl.col("features_from") != "request")
        self.by_keys += by_keys.height
        self.unknown += by_keys.filter(pl.col("features_from") == "missing").height
        for version, digest, n in returned.group_by("model_version", "model_digest").len().iter_rows():
            self.answered[version, digest] += n
        latency = returned.filter(pl.col("row") == 0)["latency_ms"].drop_nulls().sort()
        if len(latency):
            self._see(Quantiles.of_sorted(latency.to_numpy()))

    def add_told(self, told: Mapping[str, Any]) -> None:
        """Count what :meth:`told` says of other rows."""
        self.asked += told["asked"]
        self.failed += told["failed"]
        self.by_keys += told["by_keys"]
        self.unknown += told["unknown"]
        self.answered.update({(version, digest): n for version, digest, n in told["answered"]})
        if told["latency"] is not None:
            self._see(Quantiles.decode(told["latency"]))

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "asked": self.asked,
            "failed": self.failed,
            "by_keys": self.by_keys,
            "unknown": self.unknown,
            "answered": [[*key, n] for key, n in sorted(self.answered.items())],
            "latency": None if self.latency is None else self.latency.encode(),
        }

    def _see(self, latency: Quantiles) -> None:
        self.latency = latency if self.latency is None else self.latency + latency

    @property
    def versions(self) -> list[ServedVersion]:
        """Of the returned rows, the one with most rows first."""
        ordered = sorted(self.answered.items(), key=lambda item: (-item[1], item[0]))
        return [ServedVersion(version, digest, n) for (version, digest), n in ordered]

    def of(self, digest: str) -> list[Stretch]:
        """The stretches with answers of a model."""
        return [stretch for stretch, digests in self.stretches if digest in digests]

    def findings(self) -> Iterator[Finding]:
        """What is told of it."""
        rows = self.answered.total()
        yield Finding("volume", None, float(rows), rows)
        if not self.asked:
            return
        yield Finding("error_share", None, self.failed / self.asked, self.asked)
        if self.by_keys:
            yield Finding("unknown_keys_share", None, self.unknown / self.by_keys, self.by_keys)
        if self.latency is not None:
            for percent in (50, 95, 99):
                value = self.latency.quantile(percent / 100)
                yield Finding(f"latency_p{percent}_ms", None, value, int(self.latency.count))


def measure(log: PredictionWindow, kept: KeptFindings) -> Traffic:
    """Count the window."""
    total = Traffic()
    for stretch in log.stretches:
        found = kept.find(stretch, "traffic", lambda beyond, stretch=stretch: _count(log, stretch, beyond))  # type: ignore[misc]
        if found is not None:
            total.add_told(found.told)
            total.stretches.append((stretch, frozenset(one[1] for one in found.told["answered"])))
    return total


def _count(log: PredictionWindow, stretch: Stretch, beyond: bool) -> Found:
    traffic, moments = Traffic(), []
    for rows in log.batches(_COLUMNS, stretch=stretch, beyond=beyond):
        traffic.add(rows)
        moments += span(rows.select(pl.coalesce("event_time", "received_at")).to_series())
    return Found(*first_and_last(moments), traffic.told(), pl.DataFrame())


def span(moments: pl.Series) -> list[datetime]:
    """The first and the last of some moments, if there are any."""
    return [moments.min(), moments.max()] if len(moments) else []  # type: ignore[list-item]


def first_and_last(moments: list[datetime]) -> tuple[datetime | None, datetime | None]:
    """Of batches' spans."""
    return min(moments, default=None), max(moments, default=None)
