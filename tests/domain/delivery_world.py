"""One endpoint of a running server, and everything that leads to its releases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delivery_kit import NOW, TOKEN, Candidate, approve, make_candidate, make_golden, make_model, make_spec

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.endpoint import Endpoint
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import current, published_heads
from ml_lifecycle.delivery.targets import ModelServers
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import Evidence, Release
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.stages.deploy import deploy, rollback
from ml_lifecycle.stages.watch import watch

CLOCK = Clock(now=lambda: NOW)


class World:
    """The endpoint's database, which :meth:`begin` makes, and source lake lie in ``folder``, under its name.

    :param lake: the lake that the server follows
    :param slope: version n predicts ``(n + slope) * distance + hour``
    """

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        client: ModelClient,
        lake: Lake,
        *,
        environment: str = "production",
        timeout: str = "10s",
        slope: float = 0.0,
        delivery: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.database_url = f"sqlite:///{folder}/{endpoint}.db"
        self.database = Database(self.database_url)
        self.source = Lake(str(folder / endpoint))
        self.spec = make_spec(delivery={"endpoint": endpoint, "check_timeout": timeout, **(delivery or {})})
        self.clock = CLOCK
        self.target = ModelServers(environment, lake, (client,))
        self.releases = Releases(self.database)
        self._slope = slope

    def begin(self) -> World:
        """Nothing was released yet."""
        self.database.migrate()
        return self

    def slope(self, number: int) -> float:
        return number + self._slope

    def candidate(self, number: int, expected: float | None = None) -> Candidate:
        """Version ``number``; its golden rows expect its own slope or, to fail, another."""
        slope = self.slope(number)
        golden = make_golden(slope if expected is None else expected)
        return make_candidate(self.source, number, make_model(slope), golden)

    def evidence(self, candidate: Candidate) -> Evidence:
        """What speaks for the candidate, beside what is live now."""
        return candidate.evidence(self.source, self.releases.champion(self.endpoint))

    def approved(self, candidate: Candidate) -> Evidence:
        evidence = self.evidence(candidate)
        approve(self.database, evidence, self.releases.champion(self.endpoint))
        return evidence

    def deploy(self, candidate: Candidate, evidence: Evidence) -> Release:
        return deploy(
            self.spec,
            self.target,
            self.source,
            self.database,
            evidence,
            candidate.version,
            self.clock,
            requested_by="cem",
        )

    def release(self, number: int) -> Release:
        candidate = self.candidate(number)
        return self.deploy(candidate, self.approved(candidate))

    def carry(self, candidate: Candidate, evidence: Evidence) -> Release:
        """Release the candidate through all of its steps, as if traffic spoke for it at each."""
        endpoint = Endpoint(self.spec, self.target, self.releases, self.clock)
        release = self.deploy(candidate, evidence)
        while release.state != "confirmed":
            release = endpoint.carry_on(endpoint.advance(release))
        return release

    def decide(self, candidate: Candidate, evidence: Evidence) -> Release:
        """Give the candidate a part of the traffic; an approver then gives it all."""
        self.deploy(candidate, evidence)
        return watch(
            self.spec, self.target, self.database, evidence, None, self.clock, decided_by="ben"
        ).release

    def begin_and_roll_back(self, candidate: Candidate, evidence: Evidence) -> Release:
        """Give the candidate a part of the traffic, and take it back as people do.

        Called again, nothing begins anew: people who roll back take the approval too.
        """
        if self.releases.requested(self.target.environment, self.endpoint, "run 1") is None:
            self.deploy(candidate, evidence)
        return self.rollback("run 1")

    def rollback(self, request: str) -> Release:
        return rollback(
            self.spec,
            self.target,
            self.database,
            self.clock,
            request=request,
            requested_by="ben",
            reason="complaints",
        )

    def rollback_by_command(self, request: str) -> None:
        """As a person does who has the database and the lake only."""
        assert main([*self.rollback_command(), "--request", request, "--by", "ben"]) == 0

    def rollback_command(self) -> list[str]:
        """With the server to be asked."""
        token = Path(self.source.full_path("token"))
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(TOKEN)
        where, lake = self.target.environment, self.target.lake
        return [
            *("rollback", f"delays/{self.endpoint}", "--reason", "complaints", "--environment", where),
            *("--database", self.database_url, "--environment-lake", f"{where}={lake.url}"),
            *("--server", str(self.target.clients[0]), "--token-file", str(token)),
        ]

    def begin_and_take_back_by_command(self, candidate: Candidate, evidence: Evidence) -> None:
        """As :meth:`begin_and_roll_back`, from a terminal."""
        if self.releases.requested(self.target.environment, self.endpoint, "run 1") is None:
            self.deploy(candidate, evidence)
        self.rollback_by_command("run 1")

    def live(self) -> Release:
        live = self.releases.live(self.target.environment, self.endpoint)
        assert live is not None
        return live

    def served(self) -> tuple[str, int]:
        """Version and route revision that the server answers with."""
        parameters = self.target.clients[0].metadata(self.endpoint)["parameters"]
        return parameters["version"], parameters["route_revision"]

    def check_order(self) -> None:
        """What holds after any history: one live release, the one published, and an unbroken ledger."""
        live, route = self.live(), current(self.target.lake, self.endpoint)
        assert route is not None
        assert route == self.releases.route(live)
        assert self.served() == (live.version, live.revision)
        assert self.releases.under_way(self.target.environment, self.endpoint) is None
        Ledger(self.database).verify(published_heads(self.target.lake, self.endpoint))
