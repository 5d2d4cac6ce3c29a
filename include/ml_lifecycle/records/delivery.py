"""Records of approve and deploy: evidence, approvals, releases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import AwareDatetime

from ml_lifecycle.records.record import Record


@dataclass(frozen=True)
class Evidence(Record):
    """Everything an approver judges. ``digest`` is over all other fields but ``path``.

    :param train_end: where the training rows end
    """

    schema: ClassVar[str] = "evidence/1"
    model: str
    version: str
    digest: str
    path: str
    model_digest: str
    evaluation_digest: str
    snapshot_digest: str
    code_digest: str
    train_end: AwareDatetime
    champion_version: str | None
    champion_digest: str | None
    evaluation_path: str
    training_path: str
    requested_by: str | None

    @property
    def report_path(self) -> str:
        """The evaluation's report."""
        return f"{self.evaluation_path}/report.html"


@dataclass(frozen=True)
class Approval(Record):
    """A human's yes, as it stands in the ledger."""

    schema: ClassVar[str] = "approval/1"
    model: str
    version: str
    evidence_digest: str
    approved_by: str
    approved_at: AwareDatetime
    ledger_seq: int
    reason: str = ""


@dataclass(frozen=True)
class Release(Record):
    """One change of what an endpoint serves.

    :param environment: the environment's name in the spec, e.g. ``production``
    :param kind: ``deploy`` of a new version, ``restore`` of an earlier release's, or ``withdraw``: nothing is
        served, because the first release ever failed
    :param state: ``superseded`` once the release has gone on to its next step, which is a revision of its own
    :param previous_revision: what was live when it began
    :param restores: the ``deploy`` release whose version a ``restore`` serves again
    :param replaces: the release that a ``restore`` or ``withdraw`` takes out of service
    :param requested_by: who asked for it; None for schedules and triggers
    :param request: which wish of people to go back it fulfils; None for deployments and automatic rollbacks
    """

    schema: ClassVar[str] = "release/1"
    model: str
    environment: str
    endpoint: str
    revision: int
    state: Literal["intent", "applied", "confirmed", "rolled_back", "superseded"]
    version: str
    model_digest: str
    evidence_digest: str | None
    strategy: str
    created_at: AwareDatetime
    previous_revision: int | None = None
    reason: str = ""
    kind: Literal["deploy", "restore", "withdraw"] = "deploy"
    restores: int | None = None
    replaces: int | None = None
    requested_by: str | None = None
    request: str | None = None
