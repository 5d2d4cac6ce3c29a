from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import NOW, Candidate, begin_staging, confirm_staging, make_candidate, make_spec

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.errors import (
    ApprovalError,
    ChampionChangedError,
    GateError,
    IntegrityError,
    NotConfirmedError,
    UnsafeNameError,
)
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey, open_requests
from ml_lifecycle.records import Evidence, GateResult, Release, from_json
from ml_lifecycle.stages.approve import (
    approval_page,
    assigned_approvers,
    check_environments,
    evidence_digest,
    make_evidence,
    record_decision,
    request_approval,
)

KEY = RequestKey("delays__promote", "candidate__3", "approve")
ASSIGNED = ("ben", "cem")


def champion(digest: str = "c" * 64) -> Release:
    return Release("delays", "production", "delays", 4, "confirmed", "2", digest, None, "blue_green", NOW)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    database = Database(database_url)
    database.migrate()
    return Ledger(database)


@pytest.fixture
def candidate(lake: Lake) -> Candidate:
    return make_candidate(lake, 3, b"the model")


def decide(ledger: Ledger, evidence: Evidence, decision: Any, user: str | None, **changes: Any) -> Any:
    arguments = {"champion": None, "reason": "", **changes}
    return record_decision(ledger, evidence, KEY, decision, user, NOW, **arguments)


class TestEvidence:
    def test_is_written_under_its_digest(self, lake: Lake, candidate: Candidate) -> None:
        evidence = candidate.evidence(lake, champion())
        assert evidence.digest == evidence_digest(evidence)
        assert evidence.path == f"evidence/delays/{evidence.digest}.json"
        assert from_json(Evidence, lake.read_json(evidence.path)) == evidence
        assert (evidence.champion_version, evidence.champion_digest) == ("2", "c" * 64)
        assert evidence.requested_by == "ann"

    def test_the_same_things_have_the_same_digest(self, lake: Lake, candidate: Candidate) -> None:
        later = replace(candidate.evaluation, run=replace(candidate.evaluation.run, run_id="retry"))
        again = make_evidence(lake, candidate.version, later, candidate.training, None)
        assert again == candidate.evidence(lake)

    @pytest.mark.parametrize(
        "changed",
        [{"metrics": {"rmse": 1.0}}, {"holdout_rows": 999}, {"gates": ()}, {"golden_path": "other"}],
    )
    def test_whatever_was_measured_is_in_the_digest(
        self, lake: Lake, candidate: Candidate, changed: dict[str, Any]
    ) -> None:
        other = replace(candidate.evaluation, **changed)
        evidence = make_evidence(lake, candidate.version, other, candidate.training, None)
        assert evidence.digest != candidate.evidence(lake).digest

    def test_the_champion_is_in_the_digest(self, lake: Lake, candidate: Candidate) -> None:
        digests = {candidate.evidence(lake, one).digest for one in (None, champion(), champion("d" * 64))}
        assert len(digests) == 3

    def test_only_candidates_are_promoted(self, lake: Lake, candidate: Candidate) -> None:
        for_the_record = replace(candidate.version, role="record")
        failed = replace(candidate.evaluation, passed=False)
        for version, evaluation in (
            (for_the_record, candidate.evaluation),
            (candidate.version, failed),
        ):
            with pytest.raises(GateError, match="version 3 of delays is no candidate"):
                make_evidence(lake, version, evaluation, candidate.training, None)

    def test_the_records_are_of_one_model(self, lake: Lake, candidate: Candidate) -> None:
        other = replace(candidate.training, model_digest="f" * 64)
        with pytest.raises(IntegrityError, match="of different models"):
            make_evidence(lake, candidate.version, candidate.evaluation, other, None)

    def test_the_comparison_is_with_the_champion_of_now(self, lake: Lake, candidate: Candidate) -> None:
        with pytest.raises(ChampionChangedError, match="compared with no version, but version 2 is champion"):
            make_evidence(lake, candidate.version, candidate.evaluation, candidate.training, champion())


class TestAssigned:
    def test_who_started_training_or_promotion_is_left_out(self, candidate: Candidate) -> None:
        assert assigned_approvers(make_spec(), candidate.version, None) == ("ben", "cem")
        assert assigned_approvers(make_spec(), candidate.version, "cem") == ("ben",)
        scheduled = replace(candidate.version, requested_by=None)
        assert assigned_approvers(make_spec(), scheduled, None) == ("ann", "ben", "cem")

    def test_nobody_left_is_an_error(self, candidate: Candidate) -> None:
        spec = make_spec(approvers={"users": ["ann", "ben"]})
        with pytest.raises(ApprovalError, match="nobody may approve delays 3: approvers are ann, ben"):
            assigned_approvers(spec, candidate.version, "ben")

    def test_no_request_goes_out_to_nobody(self, ledger: Ledger, lake: Lake, candidate: Candidate) -> None:
        with pytest.raises(ApprovalError, match="nobody is assigned"):
            request_approval(ledger, candidate.evidence(lake), KEY, (), NOW)


class TestDecision:
    @pytest.fixture
    def evidence(self, ledger: Ledger, lake: Lake, candidate: Candidate) -> Evidence:
        evidence = candidate.evidence(lake)
        request_approval(ledger, evidence, KEY, ASSIGNED, NOW)
        return evidence

    def test_an_approval_is_written_to_the_ledger(self, ledger: Ledger, evidence: Evidence) -> None:
        approval = decide(ledger, evidence, "approve", "ben", reason="better")
        assert approval == ledger.approval_for(evidence.digest)
        assert (approval.approved_by, approval.version, approval.reason) == ("ben", "3", "better")
        (entry,) = ledger.entries("delays")
        assert entry.seq == approval.ledger_seq
        assert from_json(Evidence, entry.payload["evidence"]) == evidence
        assert entry.payload["assigned"] == ["ben", "cem"]
        assert open_requests(ledger.database) == []

    def test_whatever_is_written_as_its_reason_is_kept_legibly(
        self, ledger: Ledger, evidence: Evidence
    ) -> None:
        approval = decide(ledger, evidence, "approve", "ben", reason="better\x00\ud800")
        assert approval.reason == "better\ufffd\ufffd"
        ledger.verify()

    def test_answering_again_changes_nothing(self, ledger: Ledger, evidence: Evidence) -> None:
        approval = decide(ledger, evidence, "approve", "ben")
        assert decide(ledger, evidence, "approve", "ben") == approval
        assert decide(ledger, evidence, "reject", "cem", champion=champion()) == approval
        assert len(ledger.entries()) == 1

    def test_a_rejection_is_written_and_stands(self, ledger: Ledger, evidence: Evidence) -> None:
        for decision in ("reject", "approve"):
            with pytest.raises(ApprovalError, match="delays 3 was rejected by ben: too slow"):
                decide(ledger, evidence, decision, "ben", reason="too slow")
        assert ledger.approval_for(evidence.digest) is None
        assert [entry.payload["decision"] for entry in ledger.entries()] == ["reject"]

    def test_a_new_request_is_decided_anew(self, ledger: Ledger, evidence: Evidence) -> None:
        with pytest.raises(ApprovalError):
            decide(ledger, evidence, "reject", "ben")
        again = replace(KEY, attempt=2)
        request_approval(ledger, evidence, again, ASSIGNED, NOW)
        record_decision(ledger, evidence, again, "approve", "cem", NOW, champion=None)
        assert ledger.approval_for(evidence.digest) is not None

    def test_the_deadline_rejects_in_nobodys_name(self, ledger: Ledger, evidence: Evidence) -> None:
        with pytest.raises(ApprovalError, match="rejected by nobody, its deadline passed"):
            decide(ledger, evidence, "reject", None)
        assert ledger.entries()[0].payload["user"] is None

    @pytest.mark.parametrize(("decision", "user"), [("approve", "ann"), ("reject", "ann"), ("approve", None)])
    def test_only_the_assigned_may_answer(
        self, ledger: Ledger, evidence: Evidence, decision: str, user: str | None
    ) -> None:
        with pytest.raises(ApprovalError, match=f"{user} may not answer for delays 3: assigned are ben, cem"):
            decide(ledger, evidence, decision, user)
        assert ledger.entries() == []
        assert len(open_requests(ledger.database)) == 1

    def test_nobody_answers_what_was_not_asked(self, ledger: Ledger, evidence: Evidence) -> None:
        with pytest.raises(ApprovalError, match="open the request first"):
            record_decision(
                ledger, evidence, replace(KEY, run_id="forged"), "approve", "ben", NOW, champion=None
            )

    def test_forged_evidence_is_refused(self, ledger: Ledger, evidence: Evidence) -> None:
        with pytest.raises(IntegrityError, match="its content has"):
            decide(ledger, replace(evidence, model_digest="f" * 64), "approve", "ben")

    def test_an_answer_is_about_the_evidence_asked_about(
        self, ledger: Ledger, lake: Lake, evidence: Evidence
    ) -> None:
        other = make_candidate(lake, 4, b"other").evidence(lake)
        with pytest.raises(ApprovalError, match=f"is about evidence {evidence.digest}"):
            decide(ledger, other, "approve", "ben")

    def test_another_champion_makes_it_stale(self, ledger: Ledger, evidence: Evidence) -> None:
        with pytest.raises(ChampionChangedError, match="but version 2 is champion: evaluate it again"):
            decide(ledger, evidence, "approve", "ben", champion=champion())
        assert ledger.entries() == []
        assert open_requests(ledger.database) == []
        with pytest.raises(ApprovalError, match=r"is closed \(stale\)"):
            decide(ledger, evidence, "approve", "ben")

    def test_a_newer_candidate_supersedes(self, ledger: Ledger, lake: Lake, evidence: Evidence) -> None:
        newer = make_candidate(lake, 10, b"newer").evidence(lake)
        request_approval(ledger, newer, replace(KEY, run_id="candidate__10"), ASSIGNED, NOW)
        with pytest.raises(ApprovalError, match=f"superseded by evidence {newer.digest}"):
            decide(ledger, evidence, "approve", "ben")
        (open_one,) = open_requests(ledger.database, "delays")
        assert (open_one.version, open_one.assigned) == ("10", ASSIGNED)
        with pytest.raises(ApprovalError, match=r"version 3 of delays is superseded.*for version 10"):
            request_approval(ledger, evidence, replace(KEY, attempt=2), ASSIGNED, NOW)

    def test_asking_again_is_the_same_request(
        self, ledger: Ledger, lake: Lake, evidence: Evidence, candidate: Candidate
    ) -> None:
        again = request_approval(ledger, evidence, KEY, ("someone",), NOW + timedelta(hours=1))
        assert (again.assigned, again.opened_at) == (ASSIGNED, NOW)
        other = candidate.evidence(lake, champion())
        with pytest.raises(ApprovalError, match="open for evidence"):
            request_approval(ledger, other, KEY, ASSIGNED, NOW)

    @pytest.mark.parametrize(("minutes", "counts"), [(59, True), (60, False), (61, False)])
    @pytest.mark.parametrize("decision", ["approve", "reject"])
    def test_an_answer_counts_until_the_deadline(
        self, ledger: Ledger, lake: Lake, candidate: Candidate, decision: Any, minutes: int, counts: bool
    ) -> None:
        evidence, deadline = candidate.evidence(lake), NOW + timedelta(hours=1)
        request_approval(ledger, evidence, KEY, ASSIGNED, NOW, deadline)
        given = NOW + timedelta(minutes=minutes)
        answers = (ledger, evidence, KEY, decision, "ben", given)
        if counts and decision == "approve":
            assert record_decision(*answers, champion=None).approved_by == "ben"
        else:
            by = "ben" if counts else "nobody, its deadline passed: ben answered at"
            with pytest.raises(ApprovalError, match=f"was rejected by {by}"):
                record_decision(*answers, champion=None)
        (entry,) = ledger.entries()
        assert entry.payload["user"] == ("ben" if counts else None)
        assert open_requests(ledger.database) == []

    def test_a_request_of_before_there_were_deadlines_has_none(
        self, ledger: Ledger, evidence: Evidence
    ) -> None:
        (request,) = open_requests(ledger.database)
        assert request.deadline is None
        late = NOW + timedelta(days=1000)
        approval = record_decision(ledger, evidence, KEY, "approve", "ben", late, champion=None)
        assert approval.approved_at == late

    def test_a_task_asks_about_one_evidence_however_often_it_is_cleared(
        self, ledger: Ledger, lake: Lake, evidence: Evidence, candidate: Candidate
    ) -> None:
        other, again = candidate.evidence(lake, champion()), replace(KEY, attempt=2)
        with pytest.raises(ApprovalError, match=f"asked about evidence {evidence.digest} before"):
            request_approval(ledger, other, again, ASSIGNED, NOW)
        assert request_approval(ledger, evidence, again, ASSIGNED, NOW).key == again
        request_approval(ledger, other, replace(KEY, run_id="another"), ASSIGNED, NOW)

    def test_other_models_are_left_alone(self, ledger: Ledger, lake: Lake, evidence: Evidence) -> None:
        changed = replace(make_candidate(lake, 10, b"newer").evidence(lake), model="other")
        other = replace(changed, digest=evidence_digest(changed))
        request_approval(ledger, other, replace(KEY, run_id="other"), ASSIGNED, NOW)
        assert [one.model for one in open_requests(ledger.database)] == ["delays", "other"]
        assert decide(ledger, evidence, "approve", "cem").approved_by == "cem"


class TestEnvironments:
    def test_each_one_before_production_confirms_exactly_this_evidence(
        self, ledger: Ledger, lake: Lake, candidate: Candidate
    ) -> None:
        spec, releases = make_spec(), Releases(ledger.database)
        evidence = candidate.evidence(lake)
        with pytest.raises(NotConfirmedError, match=f"staging has not confirmed .* {evidence.digest}"):
            check_environments(spec, releases, evidence)
        confirm_staging(ledger.database, make_candidate(lake, 4, b"other").evidence(lake))
        with pytest.raises(NotConfirmedError):
            check_environments(spec, releases, evidence)
        confirm_staging(ledger.database, evidence)
        check_environments(spec, releases, evidence)
        newer = make_candidate(lake, 5, b"newer").evidence(lake)
        confirm_staging(ledger.database, newer)
        check_environments(spec, releases, evidence)

    def test_what_was_rolled_back_there_is_not_confirmed(
        self, ledger: Ledger, lake: Lake, candidate: Candidate
    ) -> None:
        releases = Releases(ledger.database)
        confirm_staging(ledger.database, make_candidate(lake, 2, b"older").evidence(lake))
        evidence = candidate.evidence(lake)
        release = confirm_staging(ledger.database, evidence)
        back = releases.begin_restore(release, NOW, reason="bad", request="r")
        releases.confirmed(back, NOW)
        with pytest.raises(NotConfirmedError):
            check_environments(make_spec(), releases, evidence)

    def test_one_that_has_begun_or_failed_has_not_confirmed(
        self, ledger: Ledger, lake: Lake, candidate: Candidate
    ) -> None:
        evidence, releases = candidate.evidence(lake), Releases(ledger.database)
        begun = begin_staging(ledger.database, evidence)
        with pytest.raises(NotConfirmedError):
            check_environments(make_spec(), releases, evidence)
        withdrawn = releases.begin_restore(begun, NOW, reason="checks failed")
        assert releases.confirmed(withdrawn, NOW).evidence_digest == evidence.digest
        with pytest.raises(NotConfirmedError):
            check_environments(make_spec(), releases, evidence)

    def test_all_that_are_listed_before_it_and_none_after(
        self, ledger: Ledger, lake: Lake, candidate: Candidate
    ) -> None:
        one = {"server": "server", "lake": "lake", "online_store": "store"}
        names = ("staging", "canary", "production", "mirror")
        spec, evidence = make_spec(environments=dict.fromkeys(names, one)), candidate.evidence(lake)
        assert spec.before("production") == ("staging", "canary")
        confirm_staging(ledger.database, evidence)
        with pytest.raises(NotConfirmedError, match="canary has not confirmed version 3"):
            check_environments(spec, Releases(ledger.database), evidence)


class TestPage:
    def test_shows_what_is_judged(self, lake: Lake, candidate: Candidate) -> None:
        evidence = candidate.evidence(lake, champion())
        page = approval_page(
            evidence,
            candidate.evaluation,
            candidate.training,
            {"Report": "/reports/3", "Run": "https://x/y?a=b"},
        )
        assert "| rmse | passed | at most 10 | 7.25 | 8.5 |" in page
        assert evidence.digest in page
        assert evidence.model_digest in page
        assert "| Compared with | version 2 |" in page
        assert "| Holdout | 1,000 rows |" in page
        assert "[Report](/reports/3) · [Run](https://x/y?a=b)" in page

    def test_a_first_model_has_no_champion(self, lake: Lake, candidate: Candidate) -> None:
        page = approval_page(candidate.evidence(lake), candidate.evaluation, candidate.training, {})
        assert "| Compared with | no champion yet |" in page

    def test_text_stays_text(self, lake: Lake, candidate: Candidate) -> None:
        gate = GateResult("<img src=x>|[a](javascript:b)\n# head", False, "`x`", None, None, "**no**")
        page = approval_page(
            candidate.evidence(lake), replace(candidate.evaluation, gates=(gate,)), candidate.training, {}
        )
        (row,) = [line for line in page.splitlines() if "img" in line]
        assert row == (
            r"| &lt;img src=x&gt;\|\[a\]\(javascript\:b\) \# head | **failed** \*\*no\*\* | \`x\` | – | – |"
        )

    @pytest.mark.parametrize(
        "address",
        ["javascript:alert(1)", "//evil.example", "http://a/) [b](c", "data:text/html,x", "", "a b"],
    )
    def test_strange_links_are_refused(self, lake: Lake, candidate: Candidate, address: str) -> None:
        with pytest.raises(UnsafeNameError, match="cannot be linked"):
            approval_page(candidate.evidence(lake), candidate.evaluation, candidate.training, {"x": address})
