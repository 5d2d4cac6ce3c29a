"""The server's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


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
        self._requests = Counter(
            "ml_lifecycle_requests",
            "Requests answered",
            ["endpoint", "operation", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "ml_lifecycle_request_seconds",
            "From a request's first byte to its answer",
            ["endpoint", "operation"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._rows = Counter(
            "ml_lifecycle_prediction_rows",
            "Rows scored",
            ["endpoint", "version", "variant"],
            registry=registry,
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
        self._requests.labels(endpoint, operation, status).inc()
        self._seconds.labels(endpoint, operation).observe(seconds)

    def scored(self, endpoint: str, version: str, variant: str, rows: int) -> None:
        """Count scored rows."""
        self._rows.labels(endpoint, version, variant).inc(rows)

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
