"""The server's Prometheus metrics."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from ml_lifecycle.serving.types import Broken

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_AGES = (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 30 * _DAY)


class _Histogram:
    """Counts in plain numbers: a tenth of what the library's locks cost."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._described = name, text, labels
        self._bounds = bounds
        self._found: dict[tuple[str, ...], list[float]] = {}  # a count a bucket, then the sum

    def add(self, labels: tuple[str, ...], value: float) -> None:
        found = self._found.get(labels)
        if found is None:
            found = self._found[labels] = [0.0] * (len(self._bounds) + 2)
        found[bisect_left(self._bounds, value)] += 1
        found[-1] += value

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        name, text, labels = self._described
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, (*counts, total) in tuple(self._found.items()):
            buckets: list[tuple[str, float]] = []
            so_far = 0.0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric(values, buckets, total)
        yield family


class _Requests:
    """Counts and times requests.

    Written by the event loop alone; a scrape on another thread may see a request's count before its time.
    """

    def __init__(self) -> None:
        self._answered: dict[tuple[str, str, int], int] = {}
        self._seconds = _Histogram(
            "ml_lifecycle_request_seconds",
            "From a request's head to its answer",
            ("endpoint", "operation"),
            _BUCKETS,
        )

    def add(self, endpoint: str, operation: str, status: int, seconds: float) -> None:
        kind = endpoint, operation, status
        self._answered[kind] = self._answered.get(kind, 0) + 1
        self._seconds.add((endpoint, operation), seconds)

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        answered = CounterMetricFamily(
            "ml_lifecycle_requests", "Requests answered", labels=["endpoint", "operation", "status"]
        )
        for (endpoint, operation, status), number in tuple(self._answered.items()):
            answered.add_metric([endpoint, operation, str(status)], number)
        yield answered
        yield from self._seconds.collect()


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, environment: str) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._registry = registry
        Info("ml_lifecycle_server", "Which server this is", registry=registry).info(
            {"environment": environment}
        )
        self._requests = _Requests()
        registry.register(self._requests)
        self._rows = Counter(
            "ml_lifecycle_prediction_rows",
            "Rows scored",
            ["endpoint", "version", "variant"],
            registry=registry,
        )
        self.batches = Counter(
            "ml_lifecycle_batches", "Runs of a model, each for one request or several", registry=registry
        )
        self._shadowed = Counter(
            "ml_lifecycle_shadow_rows",
            "Copies for shadows: scored, skipped (columns are missing), failed, or dropped (no time)",
            ["endpoint", "version", "outcome"],
            registry=registry,
        )
        self._disagreed = Counter(
            "ml_lifecycle_shadow_disagreements",
            "Scored copies whose label is not the one that was answered",
            ["endpoint", "version"],
            registry=registry,
        )
        self._feature_rows = Counter(
            "ml_lifecycle_feature_rows",
            "Rows whose features were read by entity keys",
            ["endpoint"],
            registry=registry,
        )
        self._features_lacking = Counter(
            "ml_lifecycle_features_lacking",
            "Values that the online store did not have (missing), or that were too old (stale)",
            ["endpoint", "feature", "reason"],
            registry=registry,
        )
        self._feature_ages = _Histogram(
            "ml_lifecycle_feature_age_seconds",
            "Of each read of the online store the age of its oldest row, at the moment that was asked about",
            ("endpoint", "view"),
            _AGES,
        )
        registry.register(self._feature_ages)
        self._ages_written = threading.Lock()  # stores are read on several threads
        self._unknown_keys = Counter(
            "ml_lifecycle_unknown_keys",
            "Rows whose entity keys the online store does not know: answered from missing values, or refused",
            ["endpoint", "version", "outcome"],
            registry=registry,
        )
        self._broken_rules = Counter(
            "ml_lifecycle_input_rules_broken",
            "Values that break a rule of the contract for their feature: answered all the same, or refused",
            ["endpoint", "version", "feature", "rule", "origin", "outcome"],
            registry=registry,
        )
        self._reads_waiting = Gauge(
            "ml_lifecycle_feature_reads_waiting",
            "Requests that wait for the online store to be read for those before them",
            registry=registry,
        )
        self.model_evictions = Counter(
            "ml_lifecycle_model_evictions", "Models put out of memory to make room", registry=registry
        )
        self._models = Gauge(
            "ml_lifecycle_models_bytes", "What the models in memory are estimated to take", registry=registry
        )
        self.log_written = Counter(
            "ml_lifecycle_log_rows_written", "Prediction log rows safe in the lake", registry=registry
        )
        self.log_lost = Counter(
            "ml_lifecycle_log_rows_lost", "Prediction log rows given up on", registry=registry
        )
        self.log_failures = Counter(
            "ml_lifecycle_log_write_failures", "Failed attempts to write a part", registry=registry
        )
        self._pending = Gauge(
            "ml_lifecycle_log_rows_pending", "Prediction log rows not yet written", registry=registry
        )
        self._revision = Gauge(
            "ml_lifecycle_route_revision", "Revision that is live", ["endpoint"], registry=registry
        )
        self._failing = Gauge(
            "ml_lifecycle_route_failing",
            "1 while the published route is not the live one",
            ["endpoint"],
            registry=registry,
        )
        self._errors = Counter(
            "ml_lifecycle_route_errors", "Routes refused or not loadable", ["endpoint"], registry=registry
        )

    def request(self, endpoint: str, operation: str, status: int, seconds: float) -> None:
        """Count an answered request. ``endpoint`` is a served one or empty, lest clients invent series."""
        self._requests.add(endpoint, operation, status, seconds)

    def scored(self, endpoint: str, version: str, variant: str, rows: int) -> None:
        """Count scored rows."""
        self._rows.labels(endpoint, version, variant).inc(rows)
        self.batches.inc()

    def shadowed(self, endpoint: str, version: str, outcome: str, rows: int) -> None:
        """Count copies of rows for a shadow."""
        self._shadowed.labels(endpoint, version, outcome).inc(rows)

    def shadow_disagreed(self, endpoint: str, version: str, rows: int) -> None:
        """Count copies that a shadow decided otherwise."""
        self._disagreed.labels(endpoint, version).inc(rows)

    def features_read(
        self,
        endpoint: str,
        rows: int,
        missing: Mapping[str, int],
        stale: Mapping[str, int],
        ages: Mapping[str, float],
    ) -> None:
        """Count a read of the online store.

        :param missing: values by feature, as ``stale`` are
        :param ages: by view that of the oldest row, in seconds
        """
        self._feature_rows.labels(endpoint).inc(rows)
        with self._ages_written:
            for view, age in ages.items():
                self._feature_ages.add((endpoint, view), age)
        for reason, lacking in (("missing", missing), ("stale", stale)):
            for feature, count in lacking.items():
                self._features_lacking.labels(endpoint, feature, reason).inc(count)

    def unknown_keys(self, endpoint: str, version: str, outcome: str, rows: int) -> None:
        """Count rows whose entity keys are unknown. ``outcome`` is ``answered`` or ``refused``."""
        self._unknown_keys.labels(endpoint, version, outcome).inc(rows)

    def rules_broken(self, endpoint: str, version: str, origin: str, outcome: str, broken: Broken) -> None:
        """Count values that break rules. ``outcome`` is ``answered`` or ``refused``."""
        for feature, rule, values in broken:
            self._broken_rules.labels(endpoint, version, feature, rule, origin, outcome).inc(values)

    def reads_waiting(self, count: Callable[[], float]) -> None:
        """Where the number of requests that wait for the online store is read."""
        self._reads_waiting.set_function(count)

    def models_in_memory(self, size: Callable[[], float]) -> None:
        """Where the size of the loaded models is read."""
        self._models.set_function(size)

    def log_pending(self, count: Callable[[], float]) -> None:
        """Where the number of unwritten log rows is read."""
        self._pending.set_function(count)

    def route_followed(self, endpoint: str, revision: int) -> None:
        """The published route is live."""
        self._revision.labels(endpoint).set(revision)
        self._failing.labels(endpoint).set(0)

    def route_failed(self, endpoint: str) -> None:
        """The published route is not live."""
        self._errors.labels(endpoint).inc()
        self._failing.labels(endpoint).set(1)

    def expose(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
