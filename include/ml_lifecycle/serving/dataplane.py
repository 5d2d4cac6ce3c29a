"""What is served right now, and how a query is answered. Knows no protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from ml_lifecycle.delivery.route import Pointer, Route, Variant
from ml_lifecycle.serving.assignment import share_of
from ml_lifecycle.serving.columns import Features, Table, make_table
from ml_lifecycle.serving.errors import NotLoadedError, UnknownModelError
from ml_lifecycle.serving.input_rules import InputChecks
from ml_lifecycle.serving.model import OnnxModel, Outputs
from ml_lifecycle.serving.moments import moment_of
from ml_lifecycle.serving.resolver import Resolver
from ml_lifecycle.serving.shelf import Slot
from ml_lifecycle.serving.signature import Signature
from ml_lifecycle.serving.types import Broken, RequestedOutput


@dataclass(frozen=True, slots=True)
class Query:
    """Rows to score.

    :param features: the vectors; None if features are to be read by ``entities``
    :param entities: key → values: what to read by, or with vectors what to log
    :param event_times: one a row, None where the client gave none for it; None if it gave none at all
    :param received_us: when the request came, in microseconds since 1970
    :param id: of the request: the client's, else made here
    :param outputs: the outputs to answer with; empty for all
    :param binary: whether outputs go out as binary tensors unless one says otherwise
    :param size: bytes of the request, unpacked
    """

    rows: int
    features: Features | None
    entities: Mapping[str, Sequence[Any]]
    event_times: tuple[datetime | None, ...] | None
    id: str
    received_us: int
    outputs: tuple[RequestedOutput, ...] = ()
    binary: bool = False
    size: int = 0

    @property
    def moments(self) -> list[datetime]:
        """The moment each row is about: the client's, else when the request came."""
        received_at = moment_of(self.received_us)
        if self.event_times is None:
            return [received_at] * self.rows
        return [moment or received_at for moment in self.event_times]


@dataclass(frozen=True, slots=True)
class Scored:
    """Queries that one variant answered together: their rows follow each other in table and outputs.

    :param broken: what their values broke of the columns' rules
    """

    route: Route
    variant: Variant
    queries: Sequence[Query]
    table: Table
    outputs: Outputs
    broken: Broken = ()

    def each(self) -> Iterator[tuple[Query, Outputs]]:
        """Every query with its own rows of the outputs."""
        if len(self.queries) == 1:
            yield self.queries[0], self.outputs
            return
        start = 0
        for query in self.queries:
            end = start + query.rows
            yield query, {name: array[start:end] for name, array in self.outputs.items()}
            start = end


@dataclass(frozen=True, eq=False)
class LoadedVariant:
    """A variant with its model and its way to features.

    :param checks: the rules of its columns; None if nothing that is sent could break one
    """

    variant: Variant
    slot: Slot
    resolver: Resolver
    signature: Signature
    checks: InputChecks | None = None

    def score(self, route: Route, queries: Sequence[Query]) -> Scored:
        """Resolve and score.

        :raises BadRequestError: a value does not fit its column or breaks a rule of it, or entity keys are
            not taken. Retry: no.
        :raises FeaturesUnavailableError: the online store did not answer. Retry: yes.
        :raises ModelFailedError: the model could not be run. Retry: no.
        """
        table = make_table(self.variant.columns, self._features(queries))
        broken = () if self.checks is None else self.checks.check(table)
        return Scored(route, self.variant, queries, table, self.model().run(table), broken)

    def model(self) -> OnnxModel:
        """The model; loads it if it is not in memory.

        :raises NotLoadedError: it was put out of memory, and cannot be loaded now. Retry: yes.
        """
        try:
            return self.slot.get()
        except Exception as error:
            raise NotLoadedError(
                f"version {self.variant.version} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def _features(self, queries: Sequence[Query]) -> Sequence[Features]:
        """Vectors as they are; of those that name entity keys all in one read."""
        vectors = [query.features for query in queries if query.features is not None]
        if len(vectors) == len(queries):
            return vectors
        if len(queries) == 1 or vectors:
            return [query.features or self._resolve([query]) for query in queries]
        return [self._resolve(queries)]

    def _resolve(self, queries: Sequence[Query]) -> Features:
        keys = {
            key: [value for query in queries for value in query.entities[key]] for key in queries[0].entities
        }
        return self.resolver.resolve(keys, [moment for query in queries for moment in query.moments])


@dataclass(frozen=True, eq=False)
class ServedRoute:
    """A route with everything loaded. A request finishes on the one it began with.

    :param pointer: what was published when it was loaded
    """

    route: Route
    pointer: Pointer
    variants: tuple[LoadedVariant, ...]

    @cached_property
    def champion(self) -> LoadedVariant:
        """The variant in production.

        :raises UnknownModelError: the endpoint was withdrawn. Retry: no.
        """
        for loaded in self.variants:
            if loaded.variant.role == "champion":
                return loaded
        raise UnknownModelError(f"endpoint {self.route.endpoint!r} was withdrawn and serves nothing")

    @cached_property
    def canaries(self) -> tuple[LoadedVariant, ...]:
        """The variants that get a share of the traffic."""
        return tuple(loaded for loaded in self.variants if loaded.variant.role == "canary")

    @cached_property
    def shadows(self) -> tuple[LoadedVariant, ...]:
        """The variants that get a copy of the traffic."""
        return tuple(loaded for loaded in self.variants if loaded.variant.role == "shadow")

    @cached_property
    def is_returned(self) -> bool:
        """Whether answers go to who asked. A shadow that is here alone is sent copies by somebody else."""
        return any(loaded.variant.role != "shadow" for loaded in self.variants)

    @cached_property
    def key_sets(self) -> frozenset[frozenset[str]]:
        """The entity keys of each variant that is asked by them."""
        return frozenset(
            frozenset(loaded.variant.entity_keys) for loaded in self.variants if loaded.variant.entity_keys
        )

    def pick(self, version: str | None = None, key: str | None = None) -> LoadedVariant:
        """The variant that answers: the named version, else the one that ``key`` is assigned to.

        :param key: without one it is the champion. A shadow never answers unless it is named
        :raises UnknownModelError: the version is not served. Retry: no.
        """
        if version is not None and self.variants:
            for loaded in self.variants:
                if loaded.variant.version == version:
                    return loaded
            raise UnknownModelError(
                f"endpoint {self.route.endpoint!r} does not serve version {version!r:.100}, "
                f"only {list(self.versions)}"
            )
        champion = self.champion
        if key is None or not self.canaries:
            return champion
        share = share_of(self.route.salt, key)
        for loaded in self.canaries:
            if share < loaded.variant.weight:
                return loaded
            share -= loaded.variant.weight
        return champion

    @property
    def versions(self) -> tuple[str, ...]:
        """The served versions, champion first."""
        ordered = sorted(self.variants, key=lambda loaded: loaded.variant.role != "champion")
        return tuple(dict.fromkeys(loaded.variant.version for loaded in ordered))


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as the server has it.

    :param served: None while no route could be loaded
    :param error: why the newest published route is not the one served; None while it is
    """

    served: ServedRoute | None = None
    error: str | None = None


class DataPlane:
    """The endpoints of a server. Written by the route follower alone, one reference at a time."""

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}

    def __setitem__(self, name: str, endpoint: Endpoint) -> None:
        self._endpoints[name] = endpoint

    def pop(self, name: str) -> None:
        """Forget an endpoint."""
        self._endpoints.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._endpoints

    def __len__(self) -> int:
        return len(self._endpoints)

    def get(self, name: str) -> Endpoint:
        """The endpoint; an empty one if it is unknown."""
        return self._endpoints.get(name, Endpoint())

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """All of them, as they are at this moment."""
        return dict(self._endpoints)

    def served(self, name: str) -> ServedRoute:
        """What the endpoint serves.

        :raises UnknownModelError: nothing was ever published for it. Retry: no.
        :raises NotLoadedError: what was published could not be loaded. Retry: yes.
        """
        endpoint = self.get(name)
        if endpoint.served is not None:
            return endpoint.served
        if endpoint.error is not None:
            raise NotLoadedError(f"endpoint {name!r} has no loaded route: {endpoint.error}")
        raise UnknownModelError(f"no endpoint {name!r:.100}; this server has {sorted(self._endpoints)}")
