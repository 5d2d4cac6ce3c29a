"""The second example lives: trained, approved, served by entity keys, and watched, from its folder alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from stack_kit import approve, log_in, running_stack

from ml_lifecycle.demo import digits
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle.serving.client import ModelClient

REPOSITORY = Path(__file__).parents[2]
DAY = timedelta(days=1)
TRAINED_AT = digits.FIRST_SCAN + 9 * DAY


def finish(user: AirflowUser, kind: str, run_id: str, end: datetime, start: datetime | None = None) -> None:
    """Trigger a run of ``digits__<kind>`` that stands for ``[start, end)``, and wait for its success."""
    interval = {} if start is None else {"interval": {"start": start.isoformat(), "end": end.isoformat()}}
    user.trigger(f"digits__{kind}", run_id, {"as_of": end.isoformat(), **interval})
    user.wait(f"digits__{kind}", run_id, print)


@pytest.mark.full
def test_digits_are_read_as_well_as_the_monitor_says(tmp_path: Path) -> None:
    with running_stack(tmp_path / "stack", REPOSITORY / "dags") as stack:
        landing = stack.lake / "landing" / "digits"
        digits.land(landing, digits.FIRST_SCAN, TRAINED_AT)
        admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
        admin.wait_for_dags({f"digits__{kind}" for kind in ("train", "promote", "score", "monitor")})
        finish(admin, "train", "first", TRAINED_AT)
        approve(stack, alice, "digits__promote", "candidate__v1")

        until = TRAINED_AT + DAY
        digits.land(landing, TRAINED_AT, until)
        finish(admin, "score", "next-day", until, TRAINED_AT)
        day = digits.scans().filter(pl.col("scanned_at").is_between(TRAINED_AT, until, closed="left"))
        images = day["image_id"].to_list()
        server = stack.server_url("production"), stack.secrets["production"]
        with ModelClient(*server, timeout=120) as client:  # the first to ask by keys waits for imports
            asked_at = [moment + timedelta(minutes=1) for moment in day["scanned_at"]]
            answers: list[Any] = client.infer_entities(
                "digits", {"image_id": images}, event_time=asked_at
            ).outputs["label"]
        assert admin.result("digits__score", "next-day", "score")["rows"] == len(images)

        digits.land(landing, until, until + DAY)
        finish(admin, "monitor", "next-day", until + DAY, TRAINED_AT)
        found = admin.result("digits__monitor", "next-day", "monitor")
        truth = dict(digits.readings().select("image_id", "digit").iter_rows())
        right = [int(answer) == truth[image] for image, answer in zip(images, answers, strict=True)]
        assert (found["predictions"], found["labelled"]) == (len(images), len(images))
        assert found["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
        assert found["metrics"]["accuracy"] > 0.7, "hands that it has not seen, read far above chance"
