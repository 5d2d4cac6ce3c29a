"""Fills a lifecycle database as the stages do: through the ledger's, releases' and windows' own calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.judgements import write_judgement
from ml_lifecycle.delivery.judging import Judgement, Observed, judge
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.sides import Apart
from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.delivery.tallies import Scores, Share
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.ledger.windows import record_window
from ml_lifecycle.records import Evidence, Finding, Interval, Monitoring, Release, Run, digest_of, to_json
from ml_lifecycle.spec.watch import Watch
from ml_lifecycle.stages.approve import evidence_digest, record_decision, request_approval

START = datetime(2013, 5, 1, 8, tzinfo=UTC)
FORTNIGHT = timedelta(days=14)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


class World:
    """One lifecycle database, the stages' lake and production's; time moves on an hour with every event."""

    def __init__(self, root: Path) -> None:
        self.url = f"sqlite:///{root / 'lifecycle.db'}"
        self.database = Database(self.url)
        self.database.migrate()
        self.lake = Lake(str(root / "lake"))
        self.production = Lake(str(root / "production"))
        self.releases = Releases(self.database)
        self.now = START

    def tick(self) -> datetime:
        self.now += timedelta(hours=1)
        return self.now

    def ask(
        self, model: str, version: int, assigned: Sequence[str] = ("alice", "bob")
    ) -> tuple[Evidence, RequestKey]:
        """Open a request for approval of a version, compared with what is live."""
        champion = self.releases.champion(model)
        draft = Evidence(
            model=model,
            version=str(version),
            digest="",
            path="",
            model_digest=digest_of([model, version]),
            evaluation_digest=digest_of(version),
            snapshot_digest=digest_of(model),
            code_digest=digest_of(model),
            train_end=START,
            champion_version=champion and champion.version,
            champion_digest=champion and champion.model_digest,
            evaluation_path=f"evaluations/{model}/{digest_of(version)}",
            training_path=f"training/{model}/{digest_of(version)}",
            requested_by="carol",
        )
        evidence = replace(draft, digest=evidence_digest(draft))
        key = RequestKey(f"{model}__promote", f"candidate__v{version}+00:00", "approve")
        request_approval(Ledger(self.database), evidence, key, assigned, self.tick())
        return evidence, key

    def begin(
        self,
        model: str,
        version: int,
        approved_by: str = "alice",
        canary: float = 0.0,
        step: Step | None = None,
    ) -> Release:
        """Approve a version and begin to release it.

        :param step: where it stands beside what is live; none makes it champion
        """
        champion = self.releases.champion(model)
        evidence, key = self.ask(model, version, (approved_by,))
        record_decision(
            Ledger(self.database), evidence, key, "approve", approved_by, self.tick(), champion=champion
        )
        variants = _variants(version, evidence.model_digest, canary)
        if step is not None:
            assert champion is not None
            variants = step.variants(variants[0], self.releases.route(champion).champion)
        return self.releases.begin(
            Deployment(
                model=model,
                environment=PRODUCTION,
                endpoint=model,
                version=str(version),
                model_digest=evidence.model_digest,
                evidence_digest=evidence.digest,
                strategy="blue_green" if step is None else "canary",
                variants=variants,
                expected=champion.revision if champion else None,
                requested_by="carol",
            ),
            self.tick(),
        )

    def release(self, model: str, version: int, approved_by: str = "alice", canary: float = 0.0) -> Release:
        """Bring a version to production."""
        begun = self.begin(model, version, approved_by, canary)
        return self.confirm(begun)

    def confirm(self, begun: Release) -> Release:
        self.releases.apply(begun, self.production, self.tick())
        return self.releases.confirmed(begun, self.tick())

    def advance(self, release: Release, step: Step) -> Release:
        """Bring a release under way to its next step."""
        route = self.releases.route(release)
        variants = step.variants(route.variant(release.version), route.champion)
        return self.applied(self.releases.advance(release, variants, self.tick()))

    def applied(self, release: Release) -> Release:
        return self.releases.apply(release, self.production, self.tick())

    def look(self, release: Release, rules: Watch, observed: Sequence[Observed]) -> Judgement:
        """Judge a step as the watch does, and do what follows from a judgement that is against it."""
        judgement = judge(rules, observed, release.created_at, self.tick())
        judgement = replace(judgement, latency_limit_ms=48.0)
        write_judgement(self.production, release, judgement)
        if judgement.decision == "roll_back":
            why = "; ".join(judgement.reasons)
            self.confirm(self.releases.begin_restore(release, self.tick(), reason=why, withdraw=True))
        return judgement

    def roll_back(self, model: str, reason: str) -> Release:
        live = self.releases.champion(model)
        assert live is not None
        return self.confirm(
            self.releases.begin_restore(live, self.tick(), reason=reason, requested_by="bob", request="r")
        )

    def window(self, model: str, number: int, alerts: Sequence[Finding] = (), **changes: Any) -> Monitoring:
        """Record one fortnight's findings."""
        span = Interval(START + number * FORTNIGHT, START + (number + 1) * FORTNIGHT)
        digest = digest_of([model, number])
        path = f"monitoring/{model}/{digest}"
        found = Monitoring(
            run=Run(model, f"{model}__monitor/window__{span.end:%Y-%m-%d}T08:00:00+00:00", span.end, span),
            digest=digest,
            path=path,
            endpoint=model,
            window=span,
            predictions=13131,
            labelled=12793,
            versions=("1",),
            alerts=tuple(alerts),
            metrics={"skill": 0.0911, "calibration_error": 0.0312, "roc_auc": 0.717, "psi_max": 0.31},
            report_path=f"{path}/report.json",
            html_path=f"{path}/report.html",
            retrain=any(alert.action == "retrain" for alert in alerts),
        )
        found = replace(found, **changes)
        record_window(self.database, model, model, span, to_json(found), self.tick())
        return found


def traffic(rows: int, failed: int = 0, segment: str | None = None) -> list[Observed]:
    """What was observed of a canary of so many requests beside a champion of four times as many."""
    theirs = 4 * rows
    return [
        Observed("errors", Apart(Share(rows, failed), Share(theirs, theirs // 100)), segment),
        Observed("latency", Apart(Share(rows, rows // 90), Share(theirs, theirs // 100)), segment),
        Observed(
            "score_distribution",
            Apart(Scores((0, rows // 3, rows - rows // 3)), Scores((0, rows, theirs - rows))),
            segment,
        ),
    ]


def alert(metric: str, value: float | None, threshold: str, severity: Any, **changes: Any) -> Finding:
    """A finding that crossed its threshold."""
    made = Finding(metric, None, value, 13131, threshold, severity, "notify")
    return replace(made, **changes)


def _variants(version: int, digest: str, canary: float) -> tuple[Variant, ...]:
    champion = Variant(
        role="champion",
        version=str(version),
        model_path=f"models/{digest}.onnx",
        model_digest=digest,
        task="binary",
        columns=(),
        classes=("0", "1"),
        weight=1.0 - canary,
    )
    if not canary:
        return (champion,)
    return (
        champion,
        replace(champion, role="canary", version=str(version + 1), weight=canary),
        replace(champion, role="shadow", version=str(version + 2), weight=1.0),
    )
