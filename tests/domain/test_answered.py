from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from faults import Death, FaultKit
from step_log_kit import BEGUN, LATER, RELEASE, row, write

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.answered import answered
from ml_lifecycle.delivery.step_log import StepLog


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def about(version: str, request: int, **changes: Any) -> dict[str, Any]:
    return row(version, request, event_time=BEGUN, **changes)


def look(lake: Lake, anew: bool = False) -> list[str]:
    """The requests that are found, sorted."""
    log = StepLog.at(lake, RELEASE, LATER)
    found = [batch["prediction_id"].to_list() for batch in answered(log, ["carrier"], (), anew=anew)]
    return sorted(one for batch in found for one in batch)


def names(*requests: int) -> list[str]:
    return sorted(f"request-{number}" for number in requests)


def kept(lake: Lake) -> list[str]:
    return [path for path in lake.list("watches") if path.endswith(".parquet")]


def test_what_labels_are_held_against_is_kept(lake: Lake) -> None:
    write(lake, 1, [about("1", 1), about("2", 2, features={"carrier": "UA", "distance": 1.0})])
    write(lake, 2, [about("2", 3, status=503), row("2", 4), about("2", 5, row=1)])
    write(lake, 3, [about("2", 6, route_revision=6), about("2", 7, prediction_id="release-check-x")])
    (rows,) = answered(StepLog.at(lake, RELEASE, LATER), ["carrier", "flight"], ())
    assert rows.sort("prediction_id").to_dicts() == [
        {
            "prediction_id": f"request-{number}",
            "model_version": str(number),
            "entity_keys": '{"flight":"f1"}',
            "event_time": BEGUN,
            "outputs": '{"label":"no"}',
            "score": 0.2,
            "segment:carrier": carrier,
            "segment:flight": "f1",
        }
        for number, carrier in ((1, "AA"), (2, "UA"))
    ]


def test_a_part_of_the_log_is_read_once(lake: Lake) -> None:
    write(lake, 1, [about("1", 1)])
    assert look(lake) == names(1)
    (part,) = lake.list("predictions")
    lake.write_bytes(part, b"PAR1 torn PAR1")
    write(lake, 2, [about("2", 2)])
    write(lake, 1, [about("2", 3)], server="s2")
    assert look(lake) == look(lake) == names(1, 2, 3)


def test_however_often_was_looked_there_are_few_files(lake: Lake) -> None:
    chance, requests = random.Random(7), 0
    for number in range(1, 41):
        size = chance.randint(1, 30)
        write(lake, number, [about("12"[one % 2], requests + one) for one in range(size)])
        requests += size
        assert look(lake) == names(*range(requests))
        assert len(kept(lake)) <= 8
    assert look(lake, anew=True) == names(*range(requests))


def test_of_two_looks_at_once_neither_loses_or_doubles_a_row(lake: Lake) -> None:
    write(lake, 1, [about("1", 1)])
    look(lake)
    (manifest,) = (path for path in lake.list("watches") if path.endswith("kept.json"))
    slow = lake.read_bytes(manifest)
    write(lake, 2, [about("2", 2), about("2", 3)])
    assert look(lake) == names(1, 2, 3)
    lake.write_bytes(manifest, slow)  # the slower one's, which names what the other one has merged
    with pytest.raises(LakeFileMissingError):
        look(lake)
    assert look(lake, anew=True) == look(lake) == names(1, 2, 3)


def test_a_part_that_cannot_be_read_is_left_out(lake: Lake) -> None:
    write(lake, 1, [about("1", 1)])
    write(lake, 2, [about("1", 2)])
    torn = list(lake.list("predictions"))[1]
    lake.write_bytes(torn, b"PAR1")
    log = StepLog.at(lake, RELEASE, LATER)
    assert pl.concat(answered(log, (), {torn}))["prediction_id"].to_list() == ["request-1"]


def prepared(folder: Path) -> Path:
    """A log of which a part is kept, and more has come since."""
    lake = Lake(str(folder))
    write(lake, 1, [about("1", 1), about("1", 2)])
    look(lake)
    write(lake, 2, [about("2", 3), about("2", 4)])
    return folder


def look_in(folder: Path) -> list[str]:
    return look(Lake(str(folder)))


def deaths(faults: FaultKit, folder: Path) -> Iterator[Death]:
    played = faults.run(folder, look_in, prepared(folder))
    assert played.value == names(1, 2, 3, 4)
    assert any("kept.json" in effect for effect in played.effects)
    assert played.effects[-1].startswith("remove"), "what was merged goes last"
    return (Death(gap) for gap in range(len(played.effects) + 1))


@pytest.mark.full
def test_a_look_that_is_killed_anywhere_loses_and_doubles_nothing(tmp_path: Path, faults: FaultKit) -> None:
    for death in deaths(faults, tmp_path / "played"):
        folder = prepared(tmp_path / f"killed_{death.gap}")
        assert faults.run(folder, look_in, folder, death=death).died
        assert look_in(folder) == names(1, 2, 3, 4)
        write(Lake(str(folder)), 3, [about("2", 5)])
        assert look_in(folder) == names(1, 2, 3, 4, 5)
