"""What the page shows, from a lifecycle database filled by the ledger's and the releases' own calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lifecycle_world import World, alert
from sqlalchemy import event

from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.ledger.ledger import DECISION, Ledger
from ml_lifecycle_ui.views import gather, history, models_of


def dags(*models: str) -> set[str]:
    return {f"{model}__{kind}" for model in models for kind in ("train", "promote", "monitor")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_model_is_one_with_a_readable_train_dag() -> None:
    readable = {"a__train", "a__rollback", "a__monitor", "b__monitor", "c__d__train", "__train", "other"}
    assert models_of(readable) == {"a": ["train", "monitor", "rollback"], "c__d": ["train"]}


def test_a_model_without_a_life_yet(world: World) -> None:
    (view,) = gather(world.database, dags("flights"))
    assert view["champion"] is None
    assert view["under_way"] is None
    assert view["last_window"] is None
    assert view["windows"] == view["approvals"] == []
    assert view["dags"][1] == {"kind": "promote", "link": "../dags/flights__promote"}


def test_the_champion_with_its_approval_and_traffic(world: World) -> None:
    world.release("flights", 1)
    world.release("flights", 2, approved_by="bob", canary=0.1)
    confirmed = world.now
    (view,) = gather(world.database, dags("flights"))
    champion = view["champion"]
    assert (champion["version"], champion["revision"], champion["kind"]) == ("2", 2, "deploy")
    assert (champion["approved_by"], champion["since"]) == ("bob", confirmed.isoformat())
    shares = [(each["role"], each["version"], each["weight"]) for each in champion["traffic"]]
    assert shares == [("champion", "2", 0.9), ("canary", "3", 0.1), ("shadow", "4", 1.0)]


def test_a_rollback_brings_back_the_earlier_champion_and_says_why(world: World) -> None:
    world.release("flights", 1, approved_by="alice")
    world.release("flights", 2, approved_by="bob")
    world.roll_back("flights", "too many delays foretold")
    (view,) = gather(world.database, dags("flights"))
    assert (view["champion"]["version"], view["champion"]["approved_by"]) == ("1", "alice")
    assert (view["champion"]["kind"], view["champion"]["reason"]) == ("restore", "too many delays foretold")
    assert view["champion"]["replaced"] == {"version": "2", "was_live": True}
    newest, rolled_back, first = history(world.database, "flights")["releases"]
    assert (newest["kind"], newest["requested_by"], newest["approved_by"]) == ("restore", "bob", "alice")
    assert newest["taken_back_by"] is None
    assert (rolled_back["state"], rolled_back["approved_by"]) == ("rolled_back", "bob")
    assert rolled_back["approval_ended"]["reason"] == "too many delays foretold"
    assert (first["state"], first["reason"], first["approval_ended"]) == ("confirmed", "", None)


def test_who_approved_each_release_stays_though_the_same_evidence_is_approved_again(world: World) -> None:
    world.release("flights", 1)
    first = world.begin("flights", 2, approved_by="bob")
    world.confirm(world.releases.begin_restore(first, world.tick(), reason="no", request="r"))
    digest = first.evidence_digest or ""
    yes = {"decision": "approve", "user": "alice", "reason": "", "evidence": {"version": "2"}}
    Ledger(world.database).append(DECISION, "flights", yes, world.tick(), subject=digest)
    assert world.begin("flights", 2, approved_by="bob").evidence_digest == digest
    newest, _, before, _ = history(world.database, "flights")["releases"]
    assert (before["approved_by"], before["approval_ended"]["reason"]) == ("bob", "no")
    assert (newest["approved_by"], newest["approval_ended"]) == ("alice", None)
    (view,) = gather(world.database, dags("flights"))
    assert view["under_way"] == newest


def test_whoever_asked_for_a_rollback_is_named_at_each_of_its_steps(world: World) -> None:
    world.release("flights", 1)
    live = world.release("flights", 2)
    begun = world.releases.begin_restore(live, world.tick(), reason="no", requested_by="bob", request="r")
    world.confirm(world.advance(world.applied(begun), Step("champion")))
    newest, before, *_ = history(world.database, "flights")["releases"]
    assert (newest["state"], before["state"]) == ("confirmed", "superseded")
    for row in (newest, before):
        assert (row["requested_by"], row["taken_back_by"]) == ("bob", None)


def test_one_that_failed_its_checks_was_taken_back_by_them(world: World) -> None:
    world.release("flights", 1)
    failed = world.begin("flights", 2)
    world.confirm(world.releases.begin_restore(failed, world.tick(), reason="no answer"))
    newest, rolled_back, _ = history(world.database, "flights")["releases"]
    assert (newest["requested_by"], newest["taken_back_by"]) == (None, "checks")
    assert rolled_back["approval_ended"] is None


def test_a_release_under_way_is_no_champion(world: World) -> None:
    world.begin("flights", 1)
    (view,) = gather(world.database, dags("flights"))
    assert view["champion"] is None
    assert (view["under_way"]["version"], view["under_way"]["state"]) == ("1", "intent")


def test_the_traffic_is_what_is_published_though_the_release_is_still_on_its_way(world: World) -> None:
    world.release("flights", 1)
    begun = world.begin("flights", 2, canary=0.25)
    (before,) = gather(world.database, dags("flights"))
    assert [each["version"] for each in before["champion"]["traffic"]] == ["1"]
    world.releases.apply(begun, world.production, world.tick())
    (view,) = gather(world.database, dags("flights"))
    assert view["champion"]["version"] == "1"
    shares = [(each["role"], each["version"], each["weight"]) for each in view["champion"]["traffic"]]
    assert shares == [("champion", "2", 0.75), ("canary", "3", 0.25), ("shadow", "4", 1.0)]
    assert (view["champion"]["revision"], view["champion"]["traffic_revision"]) == (1, 2)


def test_open_requests_lead_to_the_decision(world: World) -> None:
    world.ask("flights", 1)
    world.ask("flights", 2, ("bob",))
    (view,) = gather(world.database, dags("flights"))
    (request,) = view["approvals"]  # the newer one superseded the older
    assert (request["version"], request["assigned"]) == ("2", ["bob"])
    run = "../dags/flights__promote/runs/candidate__v2%2B00%3A00"
    assert request["link"] == f"{run}/tasks/approve/required_actions"


def test_windows_come_newest_first_with_their_worst_alert(world: World) -> None:
    for number in range(14):
        world.window("flights", number)
    mild = alert("psi", 0.4, "above 0.25", "informational", column="humidity")
    grave = alert("skill", -0.1, "below 0", "critical", action="retrain")
    found = world.window("flights", 14, [mild, grave], labelled=0)
    (view,) = gather(world.database, dags("flights"))
    assert len(view["windows"]) == 12
    assert [mark["severity"] for mark in view["windows"][:2]] == ["critical", None]
    assert view["windows"][0]["retrain"]
    last = view["last_window"]
    assert last["end"] == found.window.end.isoformat()
    assert [each["severity"] for each in last["alerts"]] == ["critical", "informational"]
    assert last["run"].startswith("../dags/flights__monitor/runs/window__2013-11-27T08%3A00")
    # Without labels there is nothing to report on their quality.
    assert last["reports"] == [{"name": "drift", "link": f"reports/{found.html_path}"}]


def test_a_window_without_page_links_its_numbers(world: World) -> None:
    found = world.window("flights", 0, html_path=None)
    (view,) = gather(world.database, dags("flights"))
    links = {each["name"]: each["link"] for each in view["last_window"]["reports"]}
    assert links == {
        "drift": f"reports/{found.report_path}",
        "quality": f"reports/{found.path}/quality.html",
    }


def test_what_needs_somebody_comes_first(world: World) -> None:
    world.window("calm", 0)
    world.window("mild", 0, [alert("psi", 0.4, "above 0.25", "informational")])
    world.window("grave", 0, [alert("skill", -0.1, "below 0", "critical")])
    world.window("mended", 0, [alert("skill", -0.1, "below 0", "critical")])
    world.window("mended", 1)
    world.ask("waiting", 1)
    found = gather(world.database, dags("calm", "mild", "grave", "mended", "waiting"))
    assert [view["name"] for view in found] == ["waiting", "grave", "mild", "calm", "mended"]


def test_of_other_models_nothing_is_shown(world: World) -> None:
    world.release("secret", 1)
    world.window("secret", 0)
    world.ask("secret", 2)
    assert "secret" not in json.dumps(gather(world.database, dags("flights")))


def test_everything_is_plain_json(world: World) -> None:
    world.release("flights", 1)
    world.begin("flights", 2)
    world.window("flights", 0, [alert("skill", None, "below 0", "warning", error="ValueError: no")])
    found = [gather(world.database, dags("flights")), history(world.database, "flights")]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_hundred_models_cost_no_more_queries_than_one(world: World) -> None:
    def queries(models: set[str]) -> int:
        seen: list[str] = []

        def note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
            seen.append(statement)

        event.listen(world.database._engine, "before_cursor_execute", note)
        try:
            assert len(gather(world.database, models)) == len(models) // 3
        finally:
            event.remove(world.database._engine, "before_cursor_execute", note)
        return sum("SELECT" in statement for statement in seen)

    names = [f"model_{number:03d}" for number in range(100)]
    for name in names[:10]:
        world.release(name, 1)
        world.window(name, 0)
        world.ask(name, 2)
    assert queries(dags(*names)) == queries(dags("model_000")) == 5
