"""Watch: compare challenger and champion while both have traffic; give more of it, hold, or take it back.

A look may be made every minute or once a day, by a process that was killed in between or by another: it says
the same, as all it needs is in the lake and in the lifecycle database.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ml_lifecycle.adapters.lake import LakeFileMissingError
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.endpoint import Endpoint, raise_if_taken_back, taken_back
from ml_lifecycle.delivery.exposure import (
    Baseline,
    Exposure,
    champion_before,
    count,
    latency_limit,
)
from ml_lifecycle.delivery.judgements import watch_folder, write_judgement
from ml_lifecycle.delivery.judging import Judgement, judge
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.release_rows import APPROVAL_ENDED
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.step_log import StepLog
from ml_lifecycle.delivery.strategies import Step, watch_at
from ml_lifecycle.delivery.targets import Target
from ml_lifecycle.errors import NotApprovedError, NotConfirmedError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import Evidence, Record, Release, digest_of, from_json, to_json
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.watch import Watch
from ml_lifecycle.stages.approve import approvers_but
from ml_lifecycle.stages.watch_labels import Tables, WatchedStep, observe_labels, uncountable

_NO_BASELINE = Baseline(latency_ms=0.0, edges=(), rows=0)


@dataclass(frozen=True)
class Watching(Record):
    """What a look has led to.

    :param release: as it is now: confirmed, or ``applied`` at a step that is watched
    :param step: in words
    :param judgement: None where nothing was left to judge
    """

    schema: ClassVar[str] = "watching/1"
    release: Release
    step: str
    judgement: Judgement | None = None

    @property
    def is_over(self) -> bool:
        """Whether the release has all traffic."""
        return self.release.state == "confirmed"


def watch(
    spec: ModelSpec,
    target: Target,
    database: Database,
    evidence: Evidence,
    tables: Tables | None,
    clock: Clock,
    *,
    decided_by: str | None = None,
) -> Watching:
    """Look at a release once, and do what follows.

    :param tables: for labels and business metrics; None leaves them uncounted
    :param decided_by: who wants it to have all traffic, whatever the judgement: an approver who started
        neither its training nor its promotion
    :raises NotApprovedError: ``decided_by`` may not decide that. Retry: no.
    :raises ReleaseChecksError: it was worse than the champion, or was not served as it should be, or its
        approval was withdrawn, and it was taken back: what was live has all traffic. Retry: no.
    :raises NotConfirmedError: no release of this evidence is under way or live. Retry: no.
    :raises ReleaseConflictError: somebody rolled it back meanwhile. Retry: no.
    """
    endpoint = Endpoint(spec, target, Releases(database), clock)
    release = _release_of(endpoint, evidence)
    if release.state == "confirmed":
        return Watching(release, str(endpoint.step(release)))
    if target.environment == PRODUCTION and Ledger(database).approval_for(evidence.digest) is None:
        raise endpoint.take_back(release, APPROVAL_ENDED)
    if release.state == "intent" or not endpoint.step(release).is_watched:
        release = endpoint.carry_on(release)
        return Watching(release, str(endpoint.step(release)))
    if decided_by is not None:
        _require_decider(spec, evidence, release, decided_by)
        release = endpoint.carry_on(endpoint.complete(release, f"given all traffic by {decided_by}"))
        return Watching(release, str(endpoint.step(release)))
    judgement = _judge(spec, endpoint, release, tables)
    write_judgement(target.lake, release, judgement)
    if judgement.decision == "roll_back":
        # What traffic has shown is no chance that another try could mend.
        raise endpoint.take_back(release, "; ".join(judgement.reasons), withdraw=True)
    if judgement.decision == "promote":
        release = endpoint.carry_on(endpoint.advance(release))
    return Watching(release, str(endpoint.step(release)), judgement)


def _require_decider(spec: ModelSpec, evidence: Evidence, release: Release, user: str) -> None:
    deciders = approvers_but(spec, evidence.requested_by, release.requested_by)
    if user not in deciders:
        may = ", ".join(deciders) or "none"
        raise NotApprovedError(
            f"{user} may not decide that version {release.version} of {spec.name} is watched no longer; only "
            f"approvers who started neither its training nor its promotion may: {may}"
        )


def needs_tables(spec: ModelSpec) -> bool:
    """Whether labels or business metrics are watched."""
    return spec.delivery.watch.labels is not None or bool(spec.delivery.watch.business)


def _release_of(endpoint: Endpoint, evidence: Evidence) -> Release:
    raise_if_taken_back(endpoint, endpoint.finish_left_behind(), evidence)
    busy, live = endpoint.releases.under_way(*endpoint.where), endpoint.releases.live(*endpoint.where)
    for release in (busy, live):
        if release is not None and release.evidence_digest == evidence.digest:
            return release
    for release in endpoint.releases.history(*endpoint.where):
        if release.kind == "deploy" and release.evidence_digest == evidence.digest:
            if release.state == "rolled_back":
                raise taken_back(release, release.reason)
            break
    where = endpoint.target.environment
    raise NotConfirmedError(
        f"version {evidence.version} of {evidence.model} is neither on its way to {where} nor live there: "
        "clear its deployment, so that it runs"
    )


def _judge(spec: ModelSpec, endpoint: Endpoint, release: Release, tables: Tables | None) -> Judgement:
    lake, now = endpoint.target.lake, endpoint.clock.now()
    step = endpoint.step(release)
    watched = watch_at(spec.delivery.watch, step)
    route = endpoint.releases.route(release)
    challenger = route.variant(release.version)
    log = StepLog.at(lake, release, now)
    baseline = _baseline(log, route.champion.version)
    # Without a baseline what needs none is counted: a release that fails must not wait for one.
    counting = watched if baseline is not None else _without_baseline(watched)
    counted = _count(log, step, counting, baseline or _NO_BASELINE)
    observed = counted.observed
    lacking = {} if tables is None else uncountable(spec, watched, tables)
    if tables is not None:
        stood = WatchedStep(spec, watched, log, counted.unreadable, challenger, route.champion)
        observed = (*observed, *observe_labels(stood, tables, now, lacking))
    # One at least: the spec may have been edited to a strategy without any.
    steps = max(1, sum(one.is_watched for one in endpoint.steps(release)))
    judgement = judge(watched, observed, min(release.created_at, now), now, steps, lacking)
    return replace(judgement, latency_limit_ms=latency_limit(counting, baseline or _NO_BASELINE))


def _count(log: StepLog, step: Step, watched: Watch, baseline: Baseline) -> Exposure:
    # By another watch, as when the spec is edited meanwhile, all is counted anew.
    kind = digest_of([watched.model_dump(mode="json"), to_json(baseline)])[:12]
    path = f"{watch_folder(log.release)}/exposure-{kind}.json"
    try:
        before = from_json(Exposure, log.lake.read_json(path))
    except LakeFileMissingError:
        before = Exposure(log.release.revision)
    counted = count(log, step.role == "shadow", watched, baseline, before)
    if counted != before:
        log.lake.write_json(path, to_json(counted))
    return counted


def _without_baseline(watched: Watch) -> Watch:
    latency = watched.latency if watched.latency is not None and watched.latency.limit_ms else None
    return watched.model_copy(update={"latency": latency, "score_distribution": None})


def _baseline(log: StepLog, champion: str) -> Baseline | None:
    """Made once for all steps of a release: a limit that moved with the traffic would measure nothing."""
    release = log.release
    path = f"watches/{release.endpoint}/baselines/{release.previous_revision}-{release.evidence_digest}.json"
    try:
        return from_json(Baseline, log.lake.read_json(path))
    except LakeFileMissingError:
        made = champion_before(log, champion)
    if made is not None:
        log.lake.write_json(path, to_json(made))
    return made
