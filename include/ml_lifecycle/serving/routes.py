"""Follows published routes: loads beside what is live, swaps one reference, never goes back."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.route import Pointer, Route, Variant, read_pointer, read_revision
from ml_lifecycle.serving.dataplane import DataPlane, Endpoint, LoadedVariant, ServedRoute
from ml_lifecycle.serving.errors import NotLoadedError, RouteRefusedError, UnknownModelError
from ml_lifecycle.serving.input_rules import InputChecks
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.model import OnnxModel, same_model
from ml_lifecycle.serving.resolver import ReaderFactory, Resolver, feast_reader
from ml_lifecycle.serving.shelf import Shelf
from ml_lifecycle.serving.signature import Signature

log = logging.getLogger(__name__)


class RouteLoader:
    """Makes a route servable.

    :param online_store: URL of the online store; None for a server that takes vectors only
    :param threads: intra-op threads of ONNX Runtime
    :param shelf: where models are kept; one without limits if not given
    :param version: the only one to serve of each route; None for all that it has
    """

    def __init__(
        self,
        lake: Lake,
        metrics: Metrics,
        online_store: str | None = None,
        reader_factory: ReaderFactory = feast_reader,
        threads: int = 1,
        shelf: Shelf | None = None,
        version: str | None = None,
    ) -> None:
        self._lake = lake
        self._metrics = metrics
        self._shelf = shelf or Shelf(metrics)
        self._online_store = online_store
        self._reader_factory = reader_factory
        self._threads = threads
        self._version = version

    def load(self, route: Route, pointer: Pointer, previous: ServedRoute | None = None) -> ServedRoute:
        """Load every variant; a model that ``previous`` already runs is taken from there.

        A route without variants serves nothing: the endpoint was withdrawn. Of an endpoint that nobody has
        asked yet, a model is loaded at its first request if the shelf is full.

        :raises IntegrityError: a model's or a registry's bytes have another digest. Retry: no.
        :raises RouteRefusedError: a model is not what the route says. Retry: no.
        """
        if route.variants and sum(variant.role == "champion" for variant in route.variants) != 1:
            raise RouteRefusedError(f"revision {route.revision} must have exactly one champion")
        wanted = [one for one in route.variants if self._version in (None, one.version)]
        if route.variants and not wanted:
            raise RouteRefusedError(f"revision {route.revision} has no version {self._version!r}")
        loaded = previous.variants if previous else ()
        later = previous is None and self._shelf.full and not any(map(_has_traffic_soon, wanted))
        variants = tuple(self._load_variant(route.endpoint, variant, loaded, later) for variant in wanted)
        return ServedRoute(route, pointer, variants)

    def _load_variant(
        self, endpoint: str, variant: Variant, loaded: Sequence[LoadedVariant], later: bool
    ) -> LoadedVariant:
        slot = next((one.slot for one in loaded if same_model(one.variant, variant)), None)
        pinned = _has_traffic_soon(variant)
        if slot is not None:
            slot.pinned = pinned  # a canary may have become the champion
            if pinned:
                slot.get()  # a standby may have been put out
        if slot is None:
            slot = self._shelf.slot(partial(self._load_model, variant), pinned=pinned)
            if not later:
                slot.get()
        counted = partial(self._metrics.features_read, endpoint)
        resolver = Resolver(variant, self._lake, self._online_store, self._reader_factory, counted)
        for one in loaded:
            resolver.prepare(one.resolver)
        return LoadedVariant(variant, slot, resolver, Signature(variant), InputChecks(variant) or None)

    def _load_model(self, variant: Variant) -> tuple[OnnxModel, int]:
        data = self._lake.read_bytes(variant.model_path, variant.model_digest)
        return OnnxModel(data, variant, self._threads), len(data)


def _has_traffic_soon(variant: Variant) -> bool:
    """Whether it is to stay in memory though few ask for it: a champion is kept by being asked."""
    return variant.role in ("canary", "shadow")


class RouteFollower:
    """Polls the pointers in a thread of its own and keeps the data plane at the newest route that loads.

    :param endpoints: the endpoints to serve; None for all that the lake has
    :param poll_seconds: between two looks at the pointers
    :param retry_seconds: before a route that failed is tried again
    :param monotonic: measures the retry's delay
    :param pinned: what to serve for ever, whatever is published
    """

    def __init__(
        self,
        lake: Lake,
        plane: DataPlane,
        loader: RouteLoader,
        metrics: Metrics,
        endpoints: Sequence[str] | None = None,
        poll_seconds: float = 0.2,
        retry_seconds: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
        pinned: Pointer | None = None,
    ) -> None:
        self._lake = lake
        self._plane = plane
        self._loader = loader
        self._metrics = metrics
        self._endpoints = endpoints
        self._poll_seconds = poll_seconds
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._pinned = pinned
        self._failed: dict[str, tuple[Pointer | None, float]] = {}
        self._looked = False
        self._trouble: str | None = None
        self._held: set[str] = set()
        self._following = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; what is served stays served."""
        self._stop.set()
        self._thread.join()

    def unload(self, name: str) -> None:
        """Take an endpoint's models out of memory, until :meth:`load`.

        :raises UnknownModelError: there is no such endpoint. Retry: no.
        """
        with self._following:
            if name not in self._plane:
                raise UnknownModelError(f"no endpoint {name!r:.100}; this server has {self._known()}")
            self._held.add(name)
            before = self._plane.get(name).served
            self._plane[name] = Endpoint(None, "it was unloaded on request; load it to have it back")
        if before is not None:
            for variant in before.variants:
                variant.resolver.close()

    def load(self, name: str) -> None:
        """Serve what is published for an endpoint now, be it unloaded, new or newer than what is live.

        :raises UnknownModelError: nothing was ever published for it, or this server is not to serve it.
            Retry: no.
        :raises NotLoadedError: what is published cannot be loaded; what was live stays so. Retry: yes.
        """
        if self._endpoints is not None and name not in self._endpoints:
            raise UnknownModelError(f"this server serves {sorted(self._endpoints)} only, not {name!r:.100}")
        with self._following:
            if name not in self._plane and name not in self._lake.folders("routes"):
                raise UnknownModelError(f"nothing was ever published for {name!r:.100}")
            self._held.discard(name)
            self._failed.pop(name, None)
            before = self._plane.get(name)
            if before.served is None:
                self._plane[name] = Endpoint(None, "it is being loaded")
            self._follow(name)
            if (error := self._plane.get(name).error) is not None:
                raise NotLoadedError(f"endpoint {name!r} has no loaded route: {error}")

    def _known(self) -> list[str]:
        return sorted(self._plane.endpoints)

    @property
    def ready(self) -> bool:
        """Whether the lake was looked at, and every endpoint asked for by name is served."""
        wanted = set(self._endpoints or ()) - self._held
        return self._looked and all(self._plane.get(name).served for name in wanted)

    @property
    def trouble(self) -> str | None:
        """Why nothing is served, or nothing new can be: the lake is empty, or away. None if neither."""
        return self._trouble

    def poll(self) -> None:
        """Look at every endpoint's pointer once."""
        names = self._lake.folders("routes") if self._endpoints is None else self._endpoints
        for name in names:
            with self._following:
                if name not in self._held:
                    self._follow(name)
        self._looked = True
        self._note(None if len(self._plane) else self._emptiness())

    def _emptiness(self) -> str:
        root = self._lake.local_root
        if root is not None and not os.path.isdir(root):
            return f"the lake {self._lake.url} does not exist: there is no such folder"
        wanted = "" if self._endpoints is None else f" for {', '.join(self._endpoints)}"
        return f"the lake {self._lake.url} has nothing published{wanted}"

    def _note(self, trouble: str | None) -> None:
        """Say it once, however often it is found."""
        if trouble != self._trouble:
            if trouble is None:
                log.info("the lake %s is followed", self._lake.url)
            else:
                log.warning("%s; it is looked at again and again", trouble)
        self._trouble = trouble

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:  # noqa: BLE001 - the lake may be away; the thread must outlive that
                reason = f"{type(error).__name__}: {error}"
                self._note(
                    f"the lake {self._lake.url} cannot be looked at: {reason}; what is live stays live"
                )
            self._stop.wait(self._poll_seconds)

    def _follow(self, name: str) -> None:
        before = self._plane.get(name)
        pointer: Pointer | None = None
        try:
            pointer = self._pinned or read_pointer(self._lake, name)
            if self._settled(name, before, pointer):
                return
            served = self._next(name, before.served, pointer)
        # Whatever is wrong with a route, the one before must stay live.
        except Exception as error:  # noqa: BLE001
            self._fail(name, before, pointer, error)
            return
        self._failed.pop(name, None)
        self._plane[name] = Endpoint(served)
        for variant in served.variants:
            variant.resolver.warm()
        if before.served is not None and before.served is not served:
            for variant in before.served.variants:
                variant.resolver.close()
        self._metrics.route_followed(name, served.route.revision)
        if before.served is not served:
            log.info(
                "endpoint %s: revision %d is live, versions %s", name, served.route.revision, served.versions
            )

    def _settled(self, name: str, before: Endpoint, pointer: Pointer | None) -> bool:
        """Whether there is nothing to do: the pointer is the live one, or failed a moment ago."""
        if pointer is None:
            return before.served is None and before.error is None
        if name in self._failed:
            failed, retry_at = self._failed[name]
            return failed == pointer and self._monotonic() < retry_at
        return before.served is not None and before.served.pointer == pointer

    def _next(self, name: str, live: ServedRoute | None, pointer: Pointer | None) -> ServedRoute:
        if pointer is None:
            raise RouteRefusedError("the published route has vanished")
        if live is not None:
            if live.pointer == pointer:
                return live
            if pointer.revision <= live.pointer.revision:
                raise RouteRefusedError(
                    f"revision {pointer.revision} is published, but {live.pointer.revision} is live: "
                    "revisions only rise"
                )
        route = read_revision(self._lake, pointer.path, pointer.digest)
        if (route.endpoint, route.revision) != (name, pointer.revision):
            raise RouteRefusedError(
                f"the pointer of {name!r} revision {pointer.revision} leads to "
                f"{route.endpoint!r} revision {route.revision}"
            )
        return self._loader.load(route, pointer, live)

    def _fail(self, name: str, before: Endpoint, pointer: Pointer | None, error: Exception) -> None:
        self._failed[name] = pointer, self._monotonic() + self._retry_seconds
        message = f"{type(error).__name__}: {error}"
        if message != before.error:  # said and counted once, however often it is looked at
            self._metrics.route_failed(name)
            live = f"revision {before.served.route.revision} stays" if before.served else "nothing is"
            log.error("endpoint %s: %s; %s live", name, message, live)
        self._plane[name] = Endpoint(before.served, message)
