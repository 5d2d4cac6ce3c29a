"""How a release was judged, as the page gets it: from a real ledger, and from production's lake."""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow_server import AirflowServer
from lifecycle_world import HOSTILE, World, traffic

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.judgements import watch_folder
from ml_lifecycle.delivery.release_history import PRODUCTION, Served
from ml_lifecycle.delivery.release_rows import APPROVAL_ENDED
from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.records import Release
from ml_lifecycle.spec.watch import Watch
from ml_lifecycle_ui.views import gather, history
from ml_lifecycle_ui.watched import watched

DAGS = {"flights__train", "flights__promote"}
WATCHES = "/ml-lifecycle/api/models/arrivals/watches/arrivals"


@pytest.fixture
def mine(tmp_path: Path) -> World:
    """A champion, version 1."""
    made = World(tmp_path)
    made.release("flights", 1)
    return made


def canary(world: World, weight: float = 0.05) -> Release:
    return world.applied(world.begin("flights", 2, step=Step("canary", weight)))


def see(world: World, release: Release, lake: Lake | None = None) -> dict[str, Any]:
    found = watched(
        *(world.database, lambda: lake or world.production, "flights"),
        *(release.endpoint, release.revision, world.now),
    )
    assert found is not None
    return found


def pointer(world: World) -> dict[str, Any] | None:
    (view,) = gather(world.database, DAGS)
    return view["watch"]  # type: ignore[no-any-return]


def judgement_file(world: World, release: Release) -> str:
    return f"{watch_folder(release)}/judgement.json"


def test_a_canary_that_is_held_says_what_it_misses(mine: World) -> None:
    begun = canary(mine)
    assert pointer(mine) == {"endpoint": "flights", "revision": begun.revision}
    assert see(mine, begun)["judged"] is None
    rules = Watch(segments={"carrier": ("AA",)}, min_time=timedelta(hours=5))
    judgement = mine.look(begun, rules, traffic(800, 8))
    found = see(mine, begun)
    assert found["step"] == {"role": "canary", "weight": 0.05, "watched": True}
    assert (found["state"], found["problem"]) == ("applied", None)
    judged = found["judged"]
    assert (judged["revision"], judged["decision"], judged["for_people"]) == (begun.revision, "hold", False)
    assert judged["reasons"] == list(judgement.reasons)
    assert "errors: 800 rows of the challenger; at least 1,000 are asked for" in judged["reasons"]
    assert judged["judged_at"] == mine.now.isoformat().replace("+00:00", "Z")
    assert (judged["min_rows"], judged["min_time"], judged["deadline"]) == (1000, "5h", "3d")
    errors = judged["comparisons"][0]
    assert (errors["metric"], errors["segment"], errors["in_percent"]) == ("errors", None, True)
    assert (errors["challenger_rows"], errors["champion_rows"], errors["missing_rows"]) == (800, 3200, 200)
    assert (errors["challenger"], errors["champion"], errors["margin"]) == (0.01, 0.01, 0.005)
    assert errors["low"] < 0 < errors["high"]
    segment = judged["comparisons"][3]
    assert (segment["segment"], segment["required"], segment["missing_rows"]) == ("carrier=AA", False, None)


def test_after_a_promotion_the_step_before_tells_until_the_next_look(mine: World) -> None:
    first = canary(mine)
    assert mine.look(first, Watch(), traffic(40_000, 400)).decision == "promote"
    second = mine.advance(first, Step("canary", 0.25))
    found = see(mine, second)
    assert found["step"]["weight"] == 0.25
    assert (found["judged"]["revision"], found["judged"]["decision"]) == (first.revision, "promote")
    assert found["judged"]["step"]["weight"] == 0.05
    mine.look(second, Watch(), traffic(10))
    assert see(mine, second)["judged"]["decision"] == "hold"
    assert see(mine, first)["judged"]["decision"] == "promote"
    newest, before, _ = history(mine.database, "flights")["releases"]
    assert (newest["step"]["weight"], before["step"]["weight"]) == (0.25, 0.05)


def test_the_first_step_does_not_show_anothers_judgement(mine: World) -> None:
    begun = canary(mine)
    mine.look(begun, Watch(), traffic(800, 400))
    assert see(mine, canary(mine))["judged"] is None


def test_a_watch_that_looks_no_more_is_overdue(mine: World) -> None:
    begun = canary(mine)
    mine.now = begun.created_at + timedelta(minutes=10)
    assert (see(mine, begun)["overdue"], see(mine, begun)["problem"]) == (False, None)
    mine.now += timedelta(seconds=1)
    found = see(mine, begun)
    asked = "is the DAG there, does the model folder load?"
    assert found["overdue"]
    assert found["problem"] == f"Nobody has looked since {begun.created_at:%Y-%m-%d %H:%M} UTC: {asked}"
    # From the first look on it is known how often there should be one.
    seldom = Watch(every=timedelta(hours=2))
    assert mine.look(begun, seldom, traffic(40_000, 400)).decision == "promote"
    looked = mine.now
    mine.now += timedelta(hours=10)
    assert not see(mine, begun)["overdue"]
    mine.now += timedelta(seconds=1)
    assert see(mine, begun)["problem"].startswith(f"Nobody has looked since {looked:%Y-%m-%d %H:%M} UTC")
    # By the look at the step before, too.
    second = mine.advance(begun, Step("canary", 0.25))
    mine.now = second.created_at + timedelta(hours=10)
    assert not see(mine, second)["overdue"]
    mine.now += timedelta(seconds=1)
    assert see(mine, second)["judged"]["revision"] == begun.revision
    assert see(mine, second)["problem"].startswith(
        f"Nobody has looked since {second.created_at:%Y-%m-%d %H:%M}"
    )
    assert not see(mine, begun)["overdue"], "it is over"


def test_after_the_deadline_it_is_for_people(mine: World) -> None:
    begun = canary(mine)
    mine.look(begun, Watch(min_time=timedelta(minutes=1), deadline=timedelta(hours=1)), traffic(10))
    judged = see(mine, begun)["judged"]
    assert (judged["decision"], judged["for_people"]) == ("hold", True)
    assert judged["reasons"][0] == "the deadline, 1h, has passed: people decide"


def test_one_that_the_watch_rolled_back_shows_what_led_to_it(mine: World) -> None:
    begun = canary(mine)
    judgement = mine.look(begun, Watch(), traffic(800, 400))
    assert pointer(mine) == {"endpoint": "flights", "revision": begun.revision}
    found = see(mine, begun)
    assert (found["state"], found["reason"]) == ("rolled_back", "; ".join(judgement.reasons))
    assert found["judged"]["decision"] == "roll_back"
    assert found["judged"]["comparisons"][0]["verdict"] == "worse"
    back, rolled_back, _ = history(mine.database, "flights")["releases"]
    assert (rolled_back["revision"], rolled_back["step"]["watched"]) == (begun.revision, True)
    assert (back["requested_by"], back["taken_back_by"]) == (None, "watch")
    assert [(one["version"], one["weight"]) for one in rolled_back["traffic"]] == [("1", 0.95), ("2", 0.05)]
    (view,) = gather(mine.database, DAGS)
    assert view["champion"]["replaced"] == {"version": "2", "was_live": False}


def test_a_step_that_failed_its_checks_is_not_said_to_be_the_watchs(mine: World) -> None:
    """It was to have traffic; that it answers wrongly was seen before anybody watched."""
    begun = canary(mine)
    mine.confirm(mine.releases.begin_restore(begun, mine.tick(), reason="no answer within 60 s"))
    back, rolled_back, _ = history(mine.database, "flights")["releases"]
    assert (back["requested_by"], back["taken_back_by"]) == (None, "checks")
    assert rolled_back["step"]["watched"]
    assert rolled_back["approval_ended"] is None


def test_one_whose_approval_ended_was_taken_back_by_the_watch(mine: World) -> None:
    begun = canary(mine)
    mine.confirm(mine.releases.begin_restore(begun, mine.tick(), reason=APPROVAL_ENDED))
    assert history(mine.database, "flights")["releases"][0]["taken_back_by"] == "watch"


def test_what_people_took_back_and_what_goes_at_once_has_no_watch(mine: World) -> None:
    assert pointer(mine) is None
    begun = mine.begin("flights", 2)
    assert pointer(mine) is None
    mine.confirm(mine.releases.begin_restore(begun, mine.tick(), reason="no", request="r"))
    assert pointer(mine) is None


def test_a_standby_is_not_watched(mine: World) -> None:
    begun = mine.applied(mine.begin("flights", 2, step=Step("standby")))
    assert pointer(mine) is None
    found = see(mine, begun)
    assert (found["step"]["watched"], found["judged"], found["problem"]) == (False, None, None)


def test_an_endpoint_that_serves_nothing_any_more_has_no_step(tmp_path: Path) -> None:
    world = World(tmp_path)
    begun = world.begin("flights", 1)
    withdrawn = world.confirm(world.releases.begin_restore(begun, world.tick(), reason="it failed"))
    assert (withdrawn.kind, see(world, withdrawn)["step"]) == ("withdraw", None)
    assert pointer(world) is None


@pytest.mark.parametrize(
    "torn", [b"", b'{"schema": "judgement/1", "decis', b"[]", b'{"schema": "judgement/9"}', b"\xff\xfe"]
)
def test_a_torn_judgement_is_said_so(mine: World, torn: bytes) -> None:
    begun = canary(mine)
    mine.production.write_bytes(judgement_file(mine, begun), torn)
    found = see(mine, begun)
    assert found["judged"] is None
    assert found["problem"].startswith("Its file is torn, or of another version")


def test_numbers_that_json_has_no_words_for_are_torn(mine: World) -> None:
    begun = canary(mine)
    mine.look(begun, Watch(), traffic(800))
    path = judgement_file(mine, begun)
    text = mine.production.read_bytes(path).decode()
    mine.production.write_bytes(path, text.replace('"margin": 0.005', '"margin": NaN').encode())
    assert see(mine, begun)["problem"].startswith("Its file is torn")


def test_a_judgement_of_before_its_rules_were_kept_is_shown(mine: World) -> None:
    begun = canary(mine)
    mine.look(begun, Watch(), traffic(800))
    path = judgement_file(mine, begun)
    kept = mine.production.read_json(path)
    for name in ("min_rows", "min_time", "deadline", "latency_limit_ms", "every"):
        del kept[name]
    for comparison in kept["comparisons"]:
        del comparison["in_percent"]
    mine.production.write_json(path, kept)
    judged = see(mine, begun)["judged"]
    assert (judged["min_rows"], judged["comparisons"][0]["missing_rows"]) == (None, None)
    assert judged["comparisons"][0]["in_percent"] is False


def test_a_lake_out_of_reach_is_said_so_and_no_more(mine: World, caplog: pytest.LogCaptureFixture) -> None:
    # Nothing listens there; botocore's own error is no OSError.
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with caplog.at_level(logging.ERROR):
        found = see(mine, canary(mine), Lake("s3://bucket/production", options))
    assert found["problem"] == "The lake of production cannot be read; the API server's log says why."
    assert "127.0.0.1:1" in caplog.text
    assert found["step"]["role"] == "canary"


def test_a_model_that_is_served_from_another_lake_says_so(mine: World, tmp_path: Path) -> None:
    begun = canary(mine)
    mine.look(begun, Watch(), traffic(800))
    problem = see(mine, begun, Lake(str(tmp_path / "other")))["problem"]
    assert problem == "flights is not served from the lake that the page knows for production."


def test_a_connection_that_is_missing_is_named(mine: World) -> None:
    def none() -> Lake:
        raise AirflowNotFoundException("The conn_id `production_lake` isn't defined")

    begun = canary(mine)
    found = watched(mine.database, none, "flights", begun.endpoint, begun.revision, mine.now)
    assert found is not None
    assert "production_lake" in found["problem"]


# Through Airflow's own API server


@pytest.fixture(scope="module")
def held(world: World) -> Release:
    (held,) = [each.release for each in world.releases.all_under_way(PRODUCTION) if _is_watched(each)]
    return held


def _is_watched(served: Served) -> bool:
    return served.release.model == "arrivals"


def test_who_may_read_the_model_sees_how_its_release_is_judged(airflow: AirflowServer, held: Release) -> None:
    with airflow.client("vera") as vera:
        models = {view["name"]: view for view in vera.get("/ml-lifecycle/api/models").json()["models"]}
        assert models["arrivals"]["watch"] == {"endpoint": "arrivals", "revision": held.revision}
        answer = vera.get(f"{WATCHES}/{held.revision}")
    assert answer.headers["Cache-Control"] == "no-store"
    judged = answer.json()["judged"]
    assert (answer.json()["version"], judged["decision"]) == ("2", "hold")
    assert judged["reasons"][0].startswith("errors: 800 rows of the challenger")
    assert {row["segment"] for row in judged["comparisons"]} == {None, "carrier=AA", f"carrier={HOSTILE}"}


def test_who_may_not_read_the_model_is_told_nothing(airflow: AirflowServer, held: Release) -> None:
    address = f"{WATCHES}/{held.revision}"
    with airflow.client(None) as nobody:
        assert nobody.get(address).status_code == 401
    with airflow.client("nick") as nick:
        hidden = nick.get(address)
        assert (hidden.status_code, hidden.json()) == (404, {"detail": "no such release"})
        # Nor by the name of a model that he may read.
        assert nick.get(address.replace("models/arrivals", "models/secret")).status_code == 404


@pytest.mark.parametrize("revision", ["99", "0", "-1", "1e3", str(2**63), "..%2f1", "x"])
def test_other_revisions_are_not_to_be_had(airflow: AirflowServer, revision: str) -> None:
    with airflow.client("ada") as ada:
        assert ada.get(f"{WATCHES}/{revision}").status_code in (404, 422)


@pytest.mark.parametrize("endpoint", ["flights", "..%2fflights", "never_heard_of", "%00"])
def test_other_endpoints_are_not_to_be_had(airflow: AirflowServer, held: Release, endpoint: str) -> None:
    with airflow.client("ada") as ada:
        address = f"/ml-lifecycle/api/models/arrivals/watches/{endpoint}/{held.revision}"
        assert ada.get(address).status_code == 404


def test_a_file_that_cannot_be_read_breaks_neither_answer(
    airflow: AirflowServer, world: World, held: Release
) -> None:
    file = Path(world.production.full_path(judgement_file(world, held)))
    whole = file.read_bytes()
    with airflow.client("ada") as ada:

        def problem() -> str:
            answer = ada.get(f"{WATCHES}/{held.revision}")
            assert answer.status_code == 200
            assert ada.get("/ml-lifecycle/api/models").status_code == 200
            return str(answer.json()["problem"])

        try:
            file.write_bytes(whole[:-100])
            assert problem().startswith("Its file is torn")
            file.unlink()
            assert problem().startswith("Nobody has looked since 2013-")
            os.symlink(file, file)  # a disk that does not answer is an OSError too
            assert problem().startswith("The lake of production cannot be read")
        finally:
            file.unlink(missing_ok=True)
            file.write_bytes(whole)
    text = airflow.log.read_text()
    assert f"the judgement of revision {held.revision} of arrivals" in text


def test_the_answer_is_plain_json(airflow: AirflowServer, held: Release) -> None:
    with airflow.client("ada") as ada:
        answer: httpx.Response = ada.get(f"{WATCHES}/{held.revision}")
    json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))
