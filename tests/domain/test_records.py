"""Records travel as plain JSON and come back the same, or not at all."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from ml_lifecycle.records import (
    Finding,
    Interval,
    Monitoring,
    RecordError,
    RuleResult,
    Run,
    Snapshot,
    SnapshotFile,
    SnapshotTable,
    Validation,
    canonical_json,
    digest_of,
    from_json,
    to_json,
)

MIDNIGHT = datetime(2025, 3, 1, tzinfo=UTC)
RUN = Run("churn", "manual__1", MIDNIGHT, Interval(MIDNIGHT - timedelta(days=7), MIDNIGHT), "alice")
SNAPSHOT = Snapshot(
    run=RUN,
    digest="d" * 64,
    path="snapshots/churn/dd/manifest.json",
    tables={
        "visits": SnapshotTable(
            files=(SnapshotFile("2025-02", "objects/ab/abc.parquet", "a" * 64, 3, MIDNIGHT, MIDNIGHT),),
            columns={"visit_id": "string"},
        )
    },
)
RULE = RuleResult("visits", "range", "pages", False, True, "0 to 10", 11.0, 1)
VALIDATION = Validation(RUN, "d" * 64, "p", "s" * 64, "sp", 9, (RULE,), "report.json")
MONITORING = Monitoring(
    run=RUN,
    digest="d" * 64,
    path="p",
    endpoint="churn",
    window=RUN.interval,
    predictions=1000,
    labelled=0,
    versions=("1", "2"),
    alerts=(Finding("psi", "pages", 0.3, 1000, "above 0.25", "warning", "notify"),),
    metrics={"psi": 0.3},
    report_path="r",
    html_path=None,
    retrain=False,
)


@pytest.mark.parametrize("record", [RUN, SNAPSHOT, VALIDATION, MONITORING], ids=lambda record: record.schema)
def test_a_record_survives_json(record: Any) -> None:
    data = json.loads(json.dumps(to_json(record)))
    assert data["schema"] == record.schema
    assert from_json(type(record), data) == record
    assert to_json(from_json(type(record), data)) == data


def broken(change: Callable[[dict[str, Any]], Any]) -> Any:
    data = to_json(SNAPSHOT)
    changed = change(data)
    return data if changed is None else changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(schema="snapshot/2"),
            "expected a record of schema 'snapshot/1', got 'snapshot/2'",
        ),
        (lambda d: d.pop("schema") and None, "expected a record of schema 'snapshot/1', got None"),
        (lambda d: "text", "expected a record of schema 'snapshot/1', got 'text'"),
        (lambda d: [d], "expected a record of schema 'snapshot/1', got"),
        (lambda d: d.update(extra=1), "snapshot/1: extra: Unexpected keyword argument"),
        (
            lambda d: d["tables"]["visits"]["files"][0].update(extra=1),
            "tables.visits.files.0.extra: Unexpected",
        ),
        (lambda d: d["run"].pop("as_of") and None, "snapshot/1: run.as_of: Field required"),
        (
            lambda d: d["run"].update(as_of="2025-03-01T00:00:00"),
            "run.as_of: Input should have timezone info",
        ),
        (
            lambda d: d["run"]["interval"].update(end="2000-01-01T00:00:00Z"),
            "run.interval: Value error, interval starts (2025-02-22T00:00:00+00:00) after it ends",
        ),
        (lambda d: d.update(digest=5), "digest: Input should be a valid string"),
    ],
)
def test_what_is_not_the_record_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_json(Snapshot, broken(change))
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RUN.model = "other"  # type: ignore[misc]
    assert replace(RUN, model="other").model == "other"


def test_equal_moments_make_equal_digests() -> None:
    berlin = timezone(timedelta(hours=1))
    there = Run("churn", "manual__1", MIDNIGHT.astimezone(berlin), RUN.interval, "alice")
    assert digest_of(to_json(there)) == digest_of(to_json(RUN))
    assert there.as_of.tzinfo is UTC


@pytest.mark.parametrize(
    "make",
    [
        lambda: Run("churn", "r", datetime(2025, 3, 1), RUN.interval),  # noqa: DTZ001
        lambda: Interval(datetime(2025, 3, 1), MIDNIGHT),  # noqa: DTZ001
    ],
)
def test_a_moment_without_a_time_zone_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        make()


def test_an_interval_is_half_open() -> None:
    interval = Interval(MIDNIGHT, MIDNIGHT + timedelta(hours=1))
    assert MIDNIGHT in interval
    assert interval.end not in interval
    assert interval.end - timedelta(microseconds=1) in interval
    assert interval.length == timedelta(hours=1)
    assert MIDNIGHT not in Interval(MIDNIGHT, MIDNIGHT)
    with pytest.raises(ValueError, match=r"interval starts .* after it ends"):
        Interval(interval.end, interval.start)


def test_canonical_json_depends_on_the_value_alone() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'.encode()
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    # The digest names stored results: it may never change.
    assert digest_of({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_canonical_json_has_no_nan(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)
