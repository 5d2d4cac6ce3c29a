"""Approve: a human judges the evidence, and the ledger keeps the answer.

Whoever started the training or the promotion may not answer. An answer counts for exactly one evidence
digest, only while its request is open and before its deadline, and only while the champion is the one the
evidence compares with.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.release_history import PRODUCTION, ReleaseHistory
from ml_lifecycle.errors import (
    ApprovalError,
    ChampionChangedError,
    GateError,
    IntegrityError,
    NotConfirmedError,
    UnsafeNameError,
)
from ml_lifecycle.ledger.ledger import DECISION, Entry, Ledger, append_entry, as_approval, legible
from ml_lifecycle.ledger.requests import (
    ApprovalRequest,
    RequestKey,
    close_request,
    get_request,
    open_request,
)
from ml_lifecycle.records import (
    Approval,
    Evaluation,
    Evidence,
    GateResult,
    ModelVersion,
    Release,
    Training,
    digest_of,
    to_json,
)
from ml_lifecycle.spec.model import ModelSpec

Decision = Literal["approve", "reject"]


def make_evidence(
    lake: Lake, version: ModelVersion, evaluation: Evaluation, training: Training, champion: Release | None
) -> Evidence:
    """Bind everything an approver judges into one digest, and write it to the lake.

    :param champion: what is live in production now
    :raises GateError: the version is no candidate. Retry: no.
    :raises IntegrityError: the records are not of one and the same model. Retry: no.
    :raises ChampionChangedError: it was not compared with this champion. Retry: no.
    """
    if version.role != "candidate" or not evaluation.passed:
        raise GateError(
            f"version {version.version} of {version.name} is no candidate: it may not be promoted"
        )
    digests = {version.model_digest, evaluation.model_digest, training.model_digest}
    if len(digests) != 1:
        raise IntegrityError(
            f"version, evaluation and training of {version.name} {version.version} are of different models: "
            f"{', '.join(sorted(digests))}"
        )
    draft = Evidence(
        model=version.name,
        version=version.version,
        digest="",
        path="",
        model_digest=version.model_digest,
        evaluation_digest=evaluation_digest(evaluation),
        snapshot_digest=training.snapshot_digest,
        code_digest=training.code_digest,
        train_end=training.train_end,
        champion_version=evaluation.champion_version,
        champion_digest=evaluation.champion_digest,
        evaluation_path=evaluation.path,
        training_path=training.path,
        requested_by=version.requested_by,
    )
    check_champion(draft, champion)
    digest = evidence_digest(draft)
    evidence = replace(draft, digest=digest, path=f"evidence/{version.name}/{digest}.json")
    if not lake.exists(evidence.path):
        lake.write_json(evidence.path, to_json(evidence))
    return evidence


def evaluation_digest(evaluation: Evaluation) -> str:
    """Digest over what was measured; ``Evaluation.digest`` names the inputs only.

    Which run asked is left out: a retried run gets the same evaluation back.
    """
    return digest_of({key: value for key, value in to_json(evaluation).items() if key != "run"})


def evidence_digest(evidence: Evidence) -> str:
    """Digest over every field but ``digest`` itself and ``path``, which is made of it."""
    return digest_of(to_json(replace(evidence, digest="", path="")))


def check_evidence(evidence: Evidence) -> None:
    """Evidence travels through hands that may change it; its digest tells.

    :raises IntegrityError: the digest is not that of the content. Retry: no.
    """
    if (actual := evidence_digest(evidence)) != evidence.digest:
        raise IntegrityError(
            f"evidence for {evidence.model} {evidence.version} says digest {evidence.digest}, "
            f"its content has {actual}"
        )


def check_champion(evidence: Evidence, champion: Release | None) -> None:
    """The evidence compares with what is live in production.

    :raises ChampionChangedError: it does not. Retry: no, evaluate again.
    """
    live = None if champion is None else champion.model_digest
    if live != evidence.champion_digest:
        now = "no version" if champion is None else f"version {champion.version}"
        then = "no version" if evidence.champion_digest is None else f"version {evidence.champion_version}"
        raise ChampionChangedError(
            f"{evidence.model} {evidence.version} was compared with {then}, but {now} is champion: "
            "evaluate it again"
        )


def check_environments(spec: ModelSpec, releases: ReleaseHistory, evidence: Evidence) -> None:
    """Every environment listed before production serves, or has served, exactly this evidence.

    :raises NotConfirmedError: one has not confirmed it; a task marked as success confirms nothing. Retry: no.
    """
    for environment in spec.before(PRODUCTION):
        if not releases.has_confirmed(environment, evidence.digest):
            raise NotConfirmedError(
                f"{environment} has not confirmed version {evidence.version} of {evidence.model} with "
                f"evidence {evidence.digest}: clear its deployment there, so that it runs"
            )


def approvers_but(spec: ModelSpec, *starters: str | None) -> tuple[str, ...]:
    """The spec's approvers less whoever started something: nobody lets his own work pass."""
    return tuple(user for user in dict.fromkeys(spec.approvers.users) if user not in starters)


def assigned_approvers(
    spec: ModelSpec, version: ModelVersion, promotion_started_by: str | None
) -> tuple[str, ...]:
    """Who may approve: the spec's approvers less whoever started the training or the promotion.

    :raises ApprovalError: nobody is left; to Airflow that would mean anyone. Retry: no, edit the spec.
    """
    assigned = approvers_but(spec, version.requested_by, promotion_started_by)
    if not assigned:
        raise ApprovalError(
            f"nobody may approve {spec.name} {version.version}: approvers are "
            f"{', '.join(spec.approvers.users)}, and they started its training or promotion; "
            "add another user under approvers: in model.yaml"
        )
    return assigned


def request_approval(
    ledger: Ledger,
    evidence: Evidence,
    request: RequestKey,
    assigned: Sequence[str],
    now: datetime,
    deadline: datetime | None = None,
) -> ApprovalRequest:
    """Open a request; the model's older open ones are superseded. Asking again changes nothing.

    :param deadline: answers from then on do not count
    :raises ApprovalError: nobody is assigned, a newer candidate asked already, or the same task asked about
        other evidence. Retry: no.
    :raises IntegrityError: the evidence's digest is not that of its content. Retry: no.
    """
    check_evidence(evidence)
    if not assigned:
        raise ApprovalError(f"nobody is assigned to approve {evidence.model} {evidence.version}")
    return open_request(ledger.database, evidence, request, assigned, now, deadline)


def record_decision(
    ledger: Ledger,
    evidence: Evidence,
    request: RequestKey,
    decision: Decision,
    user: str | None,
    now: datetime,
    *,
    champion: Release | None,
    reason: str = "",
) -> Approval:
    """Write the answer to the ledger, once a request: answering again returns what stands there.

    An answer at the deadline or later is none; what is written is the rejection that the deadline was.

    :param user: who answered; None only for the rejection at the deadline
    :param now: when the answer was given
    :param champion: what is live in production now
    :raises ApprovalError: it was rejected, or the answer does not count: the user is not assigned, the
        request is unknown, superseded or about other evidence. Retry: no.
    :raises ChampionChangedError: the champion is another than the evidence's. Retry: no.
    :raises IntegrityError: the evidence's digest is not that of its content. Retry: no.
    """
    check_evidence(evidence)
    entry = ledger.find(DECISION, evidence.digest, str(request))
    if entry is None:
        try:
            check_champion(evidence, champion)
        except ChampionChangedError:
            with ledger.database.write() as connection:
                close_request(connection, request, "stale", now)
            raise
        entry = _write_decision(ledger, evidence, request, decision, user, now, reason)
    if (approval := as_approval(entry)) is None:
        by = entry.payload["user"] or "nobody, its deadline passed"
        raise ApprovalError(
            f"{evidence.model} {evidence.version} was rejected by {by}: "
            f"{entry.payload['reason'] or 'no reason given'}"
        )
    return approval


def standing_approval(
    ledger: Ledger, evidence: Evidence, request: RequestKey, champion: Release | None
) -> Approval | None:
    """The yes to an earlier attempt of the same task, if it still stands: nobody answers twice.

    Airflow gives up an attempt that is answered before its scheduler has put it away, after its answer is
    written, and begins the next one.

    :raises ChampionChangedError: the champion is another than the evidence's. Retry: no.
    """
    approval = ledger.approval_for(evidence.digest)
    earlier = (replace(request, attempt=attempt) for attempt in range(1, request.attempt))
    entries = (ledger.find(DECISION, evidence.digest, str(key)) for key in earlier)
    if approval is None or approval.ledger_seq not in {entry.seq for entry in entries if entry is not None}:
        return None
    check_champion(evidence, champion)
    return approval


def approval_page(
    evidence: Evidence, evaluation: Evaluation, training: Training, links: Mapping[str, str]
) -> str:
    """What an approver judges, as Markdown.

    :param links: text → address (``http``, ``https`` or a path of this site) of runs and reports
    :raises UnsafeNameError: an address is of another kind. Retry: no.
    """
    champion = evidence.champion_version
    facts = {
        "Compared with": "no champion yet" if champion is None else f"version {champion}",
        "Trained on data until": f"{training.train_end:%Y-%m-%d %H:%M} UTC",
        "Training started by": evidence.requested_by or "a schedule or trigger",
        "Holdout": f"{evaluation.holdout_rows:,} rows",
        "Data version": evidence.snapshot_digest,
        "Model digest": evidence.model_digest,
        "Evidence digest": evidence.digest,
    }
    lines = [
        f"### {_text(evidence.model)}: release version {_text(evidence.version)}?",
        "",
        "| Gate | Verdict | Threshold | Measured | Champion |",
        "|---|---|---|---:|---:|",
        *(_gate_row(gate) for gate in evaluation.gates),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_text(value)} |" for name, value in facts.items()),
        "",
        " · ".join(f"[{_text(text)}]({_address(address)})" for text, address in links.items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _write_decision(
    ledger: Ledger,
    evidence: Evidence,
    request: RequestKey,
    decision: Decision,
    user: str | None,
    now: datetime,
    reason: str,
) -> Entry:
    with ledger.database.write() as connection:
        asked = get_request(connection, request)
        if asked is None:
            raise ApprovalError(f"nobody was asked by {request}: open the request first")
        _check_answer(asked, evidence, decision, user)
        if user is not None and asked.deadline is not None and now >= asked.deadline:
            reason = f"{user} answered at {now.isoformat()}, its deadline was {asked.deadline.isoformat()}"
            decision, user = "reject", None
        payload = {
            "evidence": to_json(evidence),
            "decision": decision,
            "user": user,
            "assigned": list(asked.assigned),
            "reason": legible(reason),
        }
        close_request(connection, request, decision, now)
        return append_entry(
            connection, DECISION, evidence.model, payload, now, subject=evidence.digest, key=str(request)
        )


def _check_answer(asked: ApprovalRequest, evidence: Evidence, decision: Decision, user: str | None) -> None:
    what = f"{evidence.model} {evidence.version}"
    if asked.evidence_digest != evidence.digest:
        raise ApprovalError(f"{what}: the answer to {asked.key} is about evidence {asked.evidence_digest}")
    if asked.outcome == "superseded":
        raise ApprovalError(f"{what} is superseded by evidence {asked.superseded_by}: answer that request")
    if asked.outcome is not None:
        raise ApprovalError(f"{what}: the request {asked.key} is closed ({asked.outcome})")
    if user is None and decision == "reject":
        return
    if user not in asked.assigned:
        raise ApprovalError(f"{user} may not answer for {what}: assigned are {', '.join(asked.assigned)}")


def _gate_row(gate: GateResult) -> str:
    verdict = "passed" if gate.passed else f"**failed** {_text(gate.reason or '')}".rstrip()
    return (
        f"| {_text(gate.gate)} | {verdict} | {_text(gate.threshold)} "
        f"| {_number(gate.measured)} | {_number(gate.champion)} |"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _text(value: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    line = " ".join(value.split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~:-])", r"\\\1", html.escape(line, quote=False))


def _address(address: str) -> str:
    if not re.fullmatch(r"(https?://[^\s/]|/(?!/))[^\s<>()\[\]\\\x00-\x1f]*", address):
        raise UnsafeNameError(
            f"{address!r} cannot be linked: use http://, https:// or a path that starts with one '/', "
            "without blanks or brackets"
        )
    return address
