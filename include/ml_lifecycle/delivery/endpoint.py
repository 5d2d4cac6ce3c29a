"""A model's endpoint in one environment: releases carried from step to step, and taken back.

Every function may be called again after its process was killed, and goes on from what the lifecycle database
says. Nothing is decided here about whether a release is good enough: only whether it is served as it should.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ml_lifecycle.delivery.checks import Clock, Golden
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.delivery.strategies import Step, next_step, step_at, steps_of
from ml_lifecycle.delivery.targets import Target
from ml_lifecycle.errors import ReleaseChecksError, RollbackTargetError, ServerUnavailableError
from ml_lifecycle.records import Evidence, Release
from ml_lifecycle.spec.delivery import Delivery

# So long people who go back wait for what they go back to; it takes a fraction of a second.
_WAY_BACK_SECONDS = 10.0


class Delivered(Protocol):
    """What releases need to know of a model; its spec, where there is one."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def endpoint(self) -> str:
        """The name clients call it by."""

    @property
    def delivery(self) -> Delivery:
        """How releases go, and how long servers are waited for."""


@dataclass(frozen=True)
class Endpoint:
    """The model's endpoint in the environment of ``target``."""

    spec: Delivered
    target: Target
    releases: Releases
    clock: Clock

    @property
    def where(self) -> tuple[str, str]:
        """Environment and endpoint, as releases are found by."""
        return self.target.environment, self.spec.endpoint

    @property
    def delivery(self) -> Delivery:
        """How releases go here: step by step where there is traffic to judge them by."""
        if self.target.environment == PRODUCTION:
            return self.spec.delivery
        return self.spec.delivery.model_copy(update={"strategy": "blue_green", "steps": None})

    def beside(self, version: str, live: Release | None) -> Variant | None:
        """What is live, if a version can be served beside it; None if nothing is, or the version itself."""
        return None if live is None or live.version == version else self.releases.route(live).champion

    def steps(self, release: Release) -> tuple[Step, ...]:
        """The steps of a release under way."""
        return steps_of(self.delivery, self.beside(release.version, self.releases.live(*self.where)))

    def step(self, release: Release) -> Step:
        """The step that a release stands at."""
        return step_at(self.releases.route(release).variants, release.version)

    def carry_on(self, release: Release) -> Release:
        """Bring a release to where traffic must tell how good it is, or to its end; returns it as it is then.

        :raises ReleaseChecksError: it is not served as it should be, and was taken back. Retry: no.
        :raises ReleaseConflictError: somebody rolled it back meanwhile. Retry: no.
        """
        while True:
            release = self.settle(release)
            step = self.step(release)
            if release.state != "superseded" and step.is_last:
                return self.releases.confirmed(release, self.clock.now(), reason=self._rehearse(release))
            if release.state != "superseded" and step.is_watched:
                return release
            release = self.advance(release)

    def settle(self, release: Release) -> Release:
        """Publish a step and check it in every server; a step that fails its checks is taken back.

        :raises ReleaseChecksError: it failed, and was taken back. Retry: no.
        """
        applied = self.releases.apply(release, self.target.lake, self.clock.now())
        if applied.state == "applied" and (failures := self._check(applied)):
            raise self.take_back(applied, "; ".join(failures))
        return applied

    def advance(self, release: Release) -> Release:
        """Begin the next step of a release."""
        return self._begin(release, next_step(self.steps(release), self.step(release)))

    def complete(self, release: Release, reason: str) -> Release:
        """Begin the last step of a release.

        :param reason: why none between is taken; kept in the ledger
        """
        return self._begin(release, Step("champion"), reason)

    def _begin(self, release: Release, step: Step, reason: str = "") -> Release:
        route = self.releases.route(release)
        # A restore goes back from what is live: that is not kept at hand.
        before = route.champion if release.kind == "deploy" else None
        variants = step.variants(route.variant(release.version), before)
        return self.releases.advance(release, variants, self.clock.now(), reason=reason)

    def take_back(self, release: Release, reason: str, *, withdraw: bool = False) -> ReleaseChecksError:
        """Go back to what was live before a release that is under way; returns the error to raise.

        Nobody has asked for it: the release's own requester least of all.

        :param withdraw: whether its approval ends: it needs another one to be released again
        """
        restore = self.releases.begin_restore(release, self.clock.now(), reason=reason, withdraw=withdraw)
        self.finish(restore)
        return taken_back(release, reason)

    def finish(self, restore: Release) -> tuple[Release, list[str]]:
        """Carry a restore to its end and see whether the servers follow; returns which do not.

        What it serves is checked before it gets the traffic, unless it is what has the traffic. While a
        server is down there is no time for that: the others go back now, and it does when it comes up.

        :raises RollbackTargetError: what should be served again fails its checks; what was live stays live.
            Retry: no.
        """
        while True:
            applied = self.releases.apply(restore, self.target.lake, self.clock.now())
            if applied.kind == "withdraw" or self.step(applied).is_last:
                confirmed = self.releases.confirmed(applied, self.clock.now())
                return confirmed, self._follow(self.releases.route(confirmed))
            if applied.state == "applied" and self._all_up() and (failures := self._check(applied)):
                raise self._refuse(applied, "; ".join(failures))
            restore = self._begin(applied, Step("champion"))

    def finish_left_behind(self) -> Release | None:
        """Finish a restore whose process was killed, and return it."""
        restore = self.releases.under_way(*self.where)
        if restore is None or restore.kind == "deploy":
            return None
        return self.finish(restore)[0]

    def _all_up(self) -> bool:
        try:
            self.target.ready()
        except ServerUnavailableError:
            return False
        return True

    def _refuse(self, restore: Release, reason: str) -> RollbackTargetError:
        again = self.releases.begin_restore(restore, self.clock.now(), reason=reason)
        self.finish(again)
        return RollbackTargetError(
            f"version {restore.version} of {restore.model}, which would be served again in "
            f"{restore.environment}, fails its checks, and version {again.version} stays live: {reason}"
        )

    def _check(self, release: Release) -> list[str]:
        """What is wrong with an applied step, as the running servers show it."""
        route = self.releases.route(release)
        if silent := self._follow(route, None if release.kind == "deploy" else _WAY_BACK_SECONDS):
            return silent
        latency = self.spec.delivery.max_latency_ms if release.kind == "deploy" else None
        return self._ask(route, route.variant(release.version), latency)

    def _rehearse(self, release: Release) -> str:
        """Ask what a rollback would serve; in words, what is wrong with it, empty if nothing is.

        It never stops a release: what was live and answers wrongly is no reason to keep it.
        """
        route = self.releases.route(release)
        return "; ".join(
            f"no way back to version {variant.version}: {failure}"
            for variant in route.variants
            if variant.role == "standby"
            for failure in self._ask(route, variant, None)
        )

    def _ask(self, route: Route, variant: Variant, max_latency_ms: float | None) -> list[str]:
        if variant.golden_path is None:
            return []  # released before golden rows went along
        golden = Golden.read(self.target.lake, variant.golden_path)
        return self.target.check(route, variant, golden, max_latency_ms)

    def _follow(self, route: Route, at_most: float | None = None) -> list[str]:
        seconds = self.spec.delivery.check_timeout.total_seconds()
        if at_most is not None:
            seconds = min(seconds, at_most)
        return self.target.follow(route, seconds, self.clock)


def taken_back(release: Release, reason: str) -> ReleaseChecksError:
    """The error of a release that failed its checks, or its watch."""
    return ReleaseChecksError(
        f"version {release.version} of {release.model} failed in {release.environment} as revision "
        f"{release.revision} and was rolled back: {reason}"
    )


def raise_if_taken_back(endpoint: Endpoint, restore: Release | None, evidence: Evidence) -> None:
    """If a killed process was taking this very evidence back, it has failed, here as there."""
    if restore is None or restore.replaces is None:
        return
    replaced = endpoint.releases.get(*endpoint.where, restore.replaces)
    if replaced.evidence_digest == evidence.digest:
        raise taken_back(replaced, restore.reason)
