"""Deploy: change what an endpoint serves, step by step, and take it back by itself if the checks fail.

Killed anywhere and called again, :func:`deploy` and :func:`rollback` go on from what the lifecycle database
says. Until a release is confirmed, what was live before it is live: every server loads the new version beside
the old one and is checked, and only then it gets traffic: all of it, or what its strategy says.

An endpoint whose first release ever fails has nothing to go back to: a route without variants is published,
and it serves nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.endpoint import Delivered, Endpoint, raise_if_taken_back
from ml_lifecycle.delivery.lineage import RegistryFile, read_evaluation, read_training
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.releases import Deployment, Releases, is_of
from ml_lifecycle.delivery.route import Variant, published_heads
from ml_lifecycle.delivery.strategies import steps_of
from ml_lifecycle.delivery.targets import Target
from ml_lifecycle.delivery.turns import in_the_way
from ml_lifecycle.errors import (
    IntegrityError,
    NotApprovedError,
    NothingToRollBackToError,
    ReleaseConflictError,
    RollbackTargetError,
    ServerUnavailableError,
    SpecError,
)
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import (
    Evidence,
    ModelVersion,
    Release,
    Training,
    TrainingSet,
    from_json,
)
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.approve import (
    check_champion,
    check_environments,
    check_evidence,
    evaluation_digest,
)


@dataclass(frozen=True)
class _Candidate:
    """What is read from the source lake about the version to be released."""

    evidence: Evidence
    training: Training
    entity_keys: tuple[str, ...]
    golden_path: str


def deploy(
    spec: ModelSpec,
    target: Target,
    source: Lake,
    database: Database,
    evidence: Evidence,
    version: ModelVersion,
    clock: Clock,
    *,
    registry: RegistryFile | None = None,
    requested_by: str | None = None,
) -> Release:
    """Release a version in one environment.

    Returns the confirmed release, or one that is ``applied``: its strategy gives it a part of the traffic,
    and :mod:`ml_lifecycle.stages.watch` goes on from there.

    :param source: the lake the stages wrote to
    :raises SpecError: the spec has no such environment. Retry: no.
    :raises NotApprovedError: production, and the ledger has no approval of exactly this evidence. Retry: no.
    :raises NotConfirmedError: production, and an environment before it has not confirmed it. Retry: no.
    :raises ChampionChangedError: production, and the champion is not the one compared with. Retry: no.
    :raises ReleaseChecksError: the servers did not serve it as they should; what was live is live. Retry: no.
    :raises ReleaseWatchedError: another release of the endpoint is watched; nothing was changed. Retry: yes,
        once it has ended. If it becomes the champion, ``ChampionChangedError`` says so then.
    :raises ReleaseUnderWayError: another release of the endpoint is under way. Retry: yes, once it has ended.
    :raises ReleaseConflictError: another release of the endpoint won. Retry: no.
    :raises IntegrityError: evidence, records or bytes do not fit each other. Retry: no.
    :raises LedgerError: the ledger was rewritten. Retry: no.
    :raises ServerUnavailableError: a server did not answer before anything was changed. Retry: yes.
    """
    if target.environment not in spec.environments:
        known = ", ".join(spec.environments)
        raise SpecError(f"model {spec.name} has no environment {target.environment!r}, only {known}")
    candidate = _read_candidate(spec, source, evidence, version)
    releases = Releases(database)
    endpoint = Endpoint(spec, target, releases, clock)
    raise_if_taken_back(endpoint, endpoint.finish_left_behind(), evidence)
    # Asked first: what is confirmed from here on, is found live.
    busy = releases.under_way(*endpoint.where)
    live = releases.live(*endpoint.where)
    if live is not None and live.evidence_digest == evidence.digest:
        return releases.apply(live, target.lake, clock.now())
    if target.environment == PRODUCTION:
        _require_approval(spec, endpoint.releases, database, evidence, live)
    if busy is not None and not is_of(busy, evidence.digest):
        raise in_the_way(endpoint, busy)
    if target.environment == PRODUCTION:
        # Not asked by who waits, and looks again and again: it reads every entry and every published head.
        Ledger(database).verify(published_heads(target.lake, spec.endpoint))
    target.ready()
    challenger = _copy_variant(spec, source, target.lake, candidate, registry)
    champion = endpoint.beside(version.version, live)
    deployment = Deployment(
        model=spec.name,
        environment=target.environment,
        endpoint=spec.endpoint,
        version=version.version,
        model_digest=version.model_digest,
        evidence_digest=evidence.digest,
        strategy=endpoint.delivery.strategy,
        variants=steps_of(endpoint.delivery, champion)[0].variants(challenger, champion),
        expected=None if live is None else live.revision,
        requested_by=requested_by,
    )
    return endpoint.carry_on(releases.begin(deployment, clock.now()))


def rollback(
    spec: Delivered,
    target: Target,
    database: Database,
    clock: Clock,
    *,
    request: str,
    requested_by: str | None,
    reason: str,
) -> Release:
    """Serve the newest earlier release again that was confirmed and never rolled back.

    A release under way is taken back instead, and what is live is published anew. Either way the approval
    of what is taken out of service ends.

    :param request: a name for this rollback, such as the run's id; called again with it, none further is made
    :raises NothingToRollBackToError: there is no such release. Retry: no.
    :raises RollbackTargetError: there is one, and it fails its checks: what was live stays live. Retry: no.
    :raises ReleaseConflictError: another rollback was under way, or a release was confirmed at the same
        moment. Retry: no, look at what is live first.
    :raises ServerUnavailableError: it is published and live, but a server does not follow. Retry: yes.
    """
    releases = Releases(database)
    endpoint = Endpoint(spec, target, releases, clock)
    finished = endpoint.finish_left_behind()
    restore = releases.requested(*endpoint.where, request)
    if restore is not None and restore.state == "rolled_back":
        raise RollbackTargetError(f"version {restore.version} of {spec.name} stays out: {restore.reason}")
    if restore is None:
        if finished is not None and finished.request is not None:
            raise ReleaseConflictError(
                f"the rollback {finished.request} was under way: it is finished, version "
                f"{finished.version} is live"
            )
        replaced = releases.under_way(*endpoint.where) or releases.live(*endpoint.where)
        if replaced is None:
            raise NothingToRollBackToError(f"{target.environment}/{spec.endpoint} serves nothing")
        restore = releases.begin_restore(
            replaced, clock.now(), reason=reason, requested_by=requested_by, request=request
        )
    restore, silent = endpoint.finish(restore)
    if silent:
        raise ServerUnavailableError(f"revision {restore.revision} is published, but {'; '.join(silent)}")
    return restore


def _read_candidate(spec: ModelSpec, source: Lake, evidence: Evidence, version: ModelVersion) -> _Candidate:
    check_evidence(evidence)
    training = read_training(source, evidence.training_path)
    evaluation = read_evaluation(source, evidence.evaluation_path)
    training_set = from_json(TrainingSet, source.read_json(training.training_set_path))
    facts = {
        "model of the endpoint": (spec.name, evidence.model),
        "model": (version.name, evidence.model),
        "version": (version.version, evidence.version),
        "registered model digest": (version.model_digest, evidence.model_digest),
        "trained model digest": (training.model_digest, evidence.model_digest),
        "evaluated model digest": (evaluation.model_digest, evidence.model_digest),
        "evaluation": (evaluation_digest(evaluation), evidence.evaluation_digest),
    }
    for fact, (found, expected) in facts.items():
        if found != expected:
            raise IntegrityError(f"{fact} is {found}, the evidence says {expected}")
    return _Candidate(
        evidence=evidence,
        training=training,
        entity_keys=training_set.entity_keys,
        golden_path=evaluation.golden_path,
    )


def _require_approval(
    spec: ModelSpec, releases: Releases, database: Database, evidence: Evidence, champion: Release | None
) -> None:
    if Ledger(database).approval_for(evidence.digest) is None:
        raise NotApprovedError(
            f"the ledger has no approval of version {evidence.version} of {evidence.model} "
            f"with evidence {evidence.digest}: ask for one by its promotion"
        )
    check_environments(spec, releases, evidence)
    check_champion(evidence, champion)


def _copy_variant(
    spec: ModelSpec, source: Lake, lake: Lake, candidate: _Candidate, registry: RegistryFile | None
) -> Variant:
    """Have the environment's own lake hold all that it takes to serve the candidate, and to check it."""
    training = candidate.training
    model_path = f"models/{training.model_digest}.onnx"
    _copy(source, training.model_path, lake, model_path, training.model_digest)
    golden_digest = sha256(source.read_bytes(candidate.golden_path))
    golden_path = f"golden/{golden_digest}.json"
    _copy(source, candidate.golden_path, lake, golden_path, golden_digest)
    registry_path = None
    if registry is not None:
        registry_path = f"registries/{registry.digest}"
        _copy(source, registry.path, lake, registry_path, registry.digest)
    return Variant(
        role="champion",
        version=candidate.evidence.version,
        model_path=model_path,
        model_digest=training.model_digest,
        task=spec.task,
        columns=training.columns,
        classes=training.classes,
        threshold=spec.evaluation.threshold,
        registry_path=registry_path,
        registry_digest=None if registry is None else registry.digest,
        feature_service=None if registry is None else spec.features.service,
        entity_keys=() if registry is None else candidate.entity_keys,
        golden_path=golden_path,
        not_found=spec.features.not_found,
        broken_rules=spec.features.broken_rules,
    )


def _copy(source: Lake, path: str, lake: Lake, to: str, digest: str) -> None:
    """Named by its digest, it may be there already; torn or altered bytes are replaced."""
    if not (lake.exists(to) and sha256(lake.read_bytes(to)) == digest):
        lake.write_bytes(to, source.read_bytes(path, digest))
