"""Releases to Amazon SageMaker: a route becomes an endpoint with a variant a version.

Everything that is made there bears the route's revision and its own content's digest in its name. Killed
anywhere and called again, :meth:`SageMakerEndpoint.follow` finds what is there by its name and goes on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.sagemaker import (
    ContainerRefusedError,
    EndpointState,
    SageMakerApi,
    SageMakerRefusedError,
)
from ml_lifecycle.delivery.checks import Clock, Golden, run_checks
from ml_lifecycle.delivery.route import Pointer, Route, Variant, read_pointer, read_revision
from ml_lifecycle.delivery.sagemaker_found import Note, keep_note
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import digest_of
from ml_lifecycle.serving.pinned import METADATA, Pinned
from ml_lifecycle.spec.sagemaker import SageMaker

_log = logging.getLogger(__name__)

# A change takes minutes; AWS allows a few calls a second to all of an account.
_POLL_SECONDS = 5.0
_NAME = 32  # so that with revision, role and digest it has no more than SageMaker's 63 characters


def endpoint_name(environment: str, endpoint: str) -> str:
    """What SageMaker calls it: ``production-flight-delay``, with a digest if too long or another's."""
    name = f"{environment}-{endpoint}".replace("_", "-")
    if len(name) <= _NAME and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) and "_" not in environment:
        return name
    begin = re.sub("-+", "-", name)[: _NAME - 9].strip("-")
    return f"{begin}-{digest_of([environment, endpoint])[:8]}"


@dataclass(frozen=True)
class _Change:
    """What SageMaker is to be told of a published route.

    :param config: name of the endpoint configuration
    :param models: name → role of its variant, and variables of its container
    """

    route: Route
    config: str
    models: Mapping[str, tuple[Variant, Mapping[str, str]]]


@dataclass(frozen=True)
class SageMakerEndpoint:
    """An environment's endpoints on Amazon SageMaker.

    :param api: leads to the account
    :param settings: what it runs
    """

    environment: str
    lake: Lake
    api: SageMakerApi
    settings: SageMaker

    def ready(self) -> None:
        """Ask SageMaker.

        :raises ServerUnavailableError: it does not answer. Retry: yes.
        :raises SageMakerRefusedError: the connection has no right to. Retry: no.
        """
        self.api.check()

    def follow(self, route: Route, seconds: float, clock: Clock) -> list[str]:
        """Change the endpoint until it serves what is published: the route, or a later one.

        :param seconds: how long it may take; SageMaker's own time, if that is longer
        """
        name = endpoint_name(self.environment, route.endpoint)
        keep_note(self.lake, Note(route.endpoint, name, self.api.region))
        seconds = max(seconds, self.settings.timeout.total_seconds())
        way, deadline = _Way(self, route.endpoint, name, route.revision), clock.monotonic() + seconds
        told = None
        try:
            while (waits_for := way.step()) is not None:
                if clock.monotonic() >= deadline:
                    return [
                        f"endpoint {name} did not come to revision {route.revision} within {seconds:g} s: "
                        f"{waits_for}"
                    ]
                if waits_for != told:
                    _log.info("waiting up to %g s for endpoint %s: %s", seconds, name, waits_for)
                    told = waits_for
                clock.sleep(_POLL_SECONDS)
        except LifecycleError as error:
            return [f"endpoint {name}: {error}"]
        return []

    def check(
        self, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
    ) -> list[str]:
        """Ask the variant.

        A shadow cannot be asked: SageMaker gives nobody its answers. That the endpoint is in service says
        that its container has loaded the model, found the right digest and scored a row.
        """
        if variant.role == "shadow":
            return []
        name = endpoint_name(self.environment, route.endpoint)
        client = VariantClient(self.api, name, {each.version: each.role for each in route.variants})
        return [f"{one} ({name})" for one in run_checks(client, route, variant, golden, max_latency_ms)]

    def change(self, name: str, route: Route, pointer: Pointer) -> _Change:
        """What is to be made for a route."""
        models: dict[str, tuple[Variant, Mapping[str, str]]] = {}
        for variant in route.variants:
            pinned = Pinned.of(self.lake.url, self.environment, route, variant.version, pointer)
            variables = pinned.variables()
            digest = digest_of([self.settings.role, self.settings.image, variables])[:8]
            models[f"{name}-r{route.revision:08d}-{variant.role}-{digest}"] = variant, variables
        variants = [self._variant(model, variant, route) for model, (variant, _) in models.items()]
        return _Change(route, f"{name}-r{route.revision:08d}-{digest_of(variants)[:8]}", models)

    def make(self, change: _Change) -> None:
        """Make the models and the configuration of a change, where they are not there yet."""
        for model, (_, variables) in change.models.items():
            self.api.create_model(model, self.settings.role, self.settings.image, variables)
        described = [
            (variant.role, self._variant(model, variant, change.route))
            for model, (variant, _) in change.models.items()
        ]
        self.api.create_config(
            change.config,
            [one for role, one in described if role != "shadow"],
            [one for role, one in described if role == "shadow"],
        )

    def _variant(self, model: str, variant: Variant, route: Route) -> dict[str, Any]:
        """The variant in SageMaker's words. Its name is its role: clients may name it, and it stays."""
        champion = variant.role == "champion"
        canaries = sum(each.weight for each in route.variants if each.role == "canary")
        # A standby answers who names it; a shadow of the champion's weight is sent a copy of every request.
        weight = {"canary": variant.weight, "standby": 0.0}.get(variant.role, 1.0 - canaries)
        return {
            "VariantName": variant.role,
            "ModelName": model,
            "InstanceType": self.settings.instance_type,
            "InitialInstanceCount": (
                self.settings.instances if champion else self.settings.challenger_instances
            ),
            "InitialVariantWeight": round(weight, 6),
        }


@dataclass
class _Way:
    """An endpoint on its way to what is published.

    :ivar tried: configurations that SageMaker was given
    """

    target: SageMakerEndpoint
    endpoint: str
    name: str
    revision: int
    tried: set[str] = field(default_factory=set)

    def step(self) -> str | None:
        """Do the next thing that can be done, and say what is waited for; None if nothing is left to do.

        :raises LifecycleError: there is no use in going on.
        """
        try:
            return self._step()
        except LifecycleError as error:
            if not error.retryable:
                raise
            return str(error)

    def _step(self) -> str | None:
        change, state = self._published(), self.target.api.endpoint(self.name)
        live = None if state is None else self._revision_of(state.config)
        if live is not None and live > change.route.revision:
            raise SageMakerRefusedError(
                f"it serves revision {live}, but {change.route.revision} is published: revisions only rise"
            )
        if state is not None and state.changing:
            return f"it is {state.status}"
        if not change.route.variants:
            return self._withdraw(change, state)
        if state is not None and (state.config, state.status) == (change.config, "InService"):
            self._clean(change)
            return None
        if state is not None and change.config in self.tried:
            raise SageMakerRefusedError(f"it is {state.status} with {state.config}: {state.reason}")
        return self._give(change, state)

    def _withdraw(self, change: _Change, state: EndpointState | None) -> str | None:
        if state is None:
            self._clean(change)
            return None
        self.target.api.delete_endpoint(self.name)
        return "it is being deleted"

    def _give(self, change: _Change, state: EndpointState | None) -> str:
        self.target.make(change)
        if state is None:
            self.target.api.create_endpoint(self.name, change.config)
        else:
            try:
                self.target.api.update_endpoint(self.name, change.config)
            except SageMakerRefusedError:
                if state.status != "Failed":
                    raise
                # What never came up cannot be changed, only deleted.
                self.target.api.delete_endpoint(self.name)
                return "it is being deleted"
        self.tried.add(change.config)
        return f"it is being given {change.config}"

    def _published(self) -> _Change:
        """What is published now, which may be more than was asked for."""
        pointer = read_pointer(self.target.lake, self.endpoint)
        if pointer is None or pointer.revision < self.revision:
            raise SageMakerRefusedError(
                f"revision {self.revision} is not published in {self.target.lake.url}"
            )
        route = read_revision(self.target.lake, pointer.path, pointer.digest)
        return self.target.change(self.name, route, pointer)

    def _revision_of(self, config: str) -> int:
        """The revision that a configuration of ours is of.

        :raises SageMakerRefusedError: it is not of ours, and neither is the endpoint. Retry: no.
        """
        found = re.fullmatch(rf"{re.escape(self.name)}-r(\d+)-[0-9a-f]{{8}}", config)
        if found is None:
            raise SageMakerRefusedError(
                f"there is an endpoint of this name, with the configuration {config}, that no release made: "
                "delete it, or give the model another delivery.endpoint"
            )
        return int(found[1])

    def _clean(self, change: _Change) -> None:
        """Delete what no route needs any more: what is of this revision or before, and not of this change."""
        api = self.target.api
        for config in api.configs(self.name):
            if self._is_left(config, "", change.route.revision) and config != change.config:
                api.delete_config(config)
        for model in api.models(self.name):
            if self._is_left(model, "[a-z]+-", change.route.revision) and model not in change.models:
                api.delete_model(model)

    def _is_left(self, name: str, role: str, revision: int) -> bool:
        found = re.fullmatch(rf"{re.escape(self.name)}-r(?P<revision>\d+)-{role}[0-9a-f]{{8}}", name)
        return found is not None and int(found["revision"]) <= revision


@dataclass(frozen=True)
class VariantClient:
    """What the checks ask, of variants behind SageMaker.

    :param endpoint: SageMaker's name of it
    :param variants: version → name of its variant
    """

    api: SageMakerApi
    endpoint: str
    variants: Mapping[str, str]

    def ready(self, endpoint: str | None = None) -> bool:
        """Whether the endpoint is in service."""
        state = self.api.endpoint(self.endpoint)
        return state is not None and state.status == "InService"

    def metadata(self, endpoint: str, version: str | None = None) -> dict[str, Any]:
        """The V2 metadata, which its container gives."""
        return self._asked(b"{}", version, METADATA)

    def post(self, endpoint: str, request: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """A V2 response to a V2 request."""
        return self._asked(json.dumps(request).encode(), version)

    def _asked(self, body: bytes, version: str | None, attributes: str | None = None) -> dict[str, Any]:
        from ml_lifecycle.serving.client import RequestRefusedError

        variant = None if version is None else self.variants[version]
        try:
            answer: dict[str, Any] = json.loads(self.api.invoke(self.endpoint, body, variant, attributes))
        except ContainerRefusedError as error:
            raise RequestRefusedError(str(error), error.status) from error
        return answer
