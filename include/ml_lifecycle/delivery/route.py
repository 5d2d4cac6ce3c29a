"""Routes: which versions an endpoint serves. Model servers follow them; they need the lake only.

A revision is an immutable file; ``current.json`` is a pointer swapped atomically. The order of revisions
is decided in the lifecycle database, the pointer is its copy; a server refuses a lower revision than the
one it serves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, sha256
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.records import ColumnSpec, Record, RecordError, TaskType, canonical_json, from_json, to_json


@dataclass(frozen=True)
class Variant:
    """One version behind an endpoint. Paths are relative to the server's own lake.

    :param role: a shadow scores a copy of the traffic, and its answers are never returned; a standby is only
        loaded. Both answer who asks for them by version
    :param weight: a canary's share of the traffic, 0 to 1; the champion has the rest
    :param classes: class labels in output order, empty for regression
    :param registry_path: the feature registry entity keys are resolved with; None takes vectors only
    :param feature_service: name of the feature service in that registry
    :param entity_keys: the feature service's entity join keys
    :param not_found: what becomes of a row whose keys the online store does not know: it is answered from
        missing values, or its request is refused
    :param golden_path: requests with the answers they must get; None where a release was made without
    :param broken_rules: what becomes of a request with a value that breaks a rule of its column: it is
        answered and the value counted, or it is refused
    """

    role: Literal["champion", "canary", "shadow", "standby"]
    version: str
    model_path: str
    model_digest: str
    task: TaskType
    columns: tuple[ColumnSpec, ...]
    classes: tuple[str, ...]
    weight: float = 1.0
    threshold: float = 0.5
    registry_path: str | None = None
    registry_digest: str | None = None
    feature_service: str | None = None
    entity_keys: tuple[str, ...] = ()
    golden_path: str | None = None
    not_found: Literal["answer", "refuse"] = "answer"
    broken_rules: Annotated[
        Literal["report", "refuse"], Field(exclude_if=lambda policy: policy == "report")
    ] = "report"


@dataclass(frozen=True)
class Route(Record):
    """What an endpoint serves as of a revision.

    :param variants: exactly one champion; none at all once the endpoint was withdrawn, and nothing is served
    :param ledger_head: digest of the ledger's newest row at the release, so that a rewritten row is found out
    :param salt: of the hash that assigns requests to canaries; another one for each challenger
    """

    schema: ClassVar[str] = "route/1"
    endpoint: str
    model: str
    revision: int
    variants: tuple[Variant, ...]
    ledger_head: str
    published_at: AwareDatetime
    salt: str = ""

    @property
    def champion(self) -> Variant:
        """The variant in production."""
        return next(variant for variant in self.variants if variant.role == "champion")

    def variant(self, version: str) -> Variant:
        """The variant of a version that it serves."""
        return next(variant for variant in self.variants if variant.version == version)


@dataclass(frozen=True)
class Pointer:
    """The content of ``current.json``: which revision is published, where it is and its digest."""

    revision: int
    path: str
    digest: str


def publish(lake: Lake, route: Route) -> None:
    """Write the revision, then point to it. Publishing the same route again changes nothing.

    :raises IntegrityError: the revision exists with other content. Retry: no.
    """
    path = f"routes/{route.endpoint}/{route.revision:08d}.json"
    data = canonical_json(to_json(route))
    if lake.exists(path):
        data = _published(lake, path, route)
    else:
        lake.write_bytes(path, data)
    digest = sha256(data)
    lake.write_json(
        f"routes/{route.endpoint}/current.json", {"revision": route.revision, "path": path, "digest": digest}
    )


def _published(lake: Lake, path: str, route: Route) -> bytes:
    """A revision's bytes: what an older version has written may lack what routes have come to say since."""
    data = lake.read_bytes(path)
    try:
        same = from_json(Route, json.loads(data)) == route
    except (ValueError, RecordError):
        same = False
    if not same:
        raise IntegrityError(f"{lake.uri(path)} is not revision {route.revision} as it was released")
    return data


def current(lake: Lake, endpoint: str) -> Route | None:
    """The published route; None if the endpoint never had one.

    :raises IntegrityError: the revision's bytes were altered. Retry: no.
    """
    pointer = read_pointer(lake, endpoint)
    return None if pointer is None else read_revision(lake, pointer.path, pointer.digest)


def read_pointer(lake: Lake, endpoint: str) -> Pointer | None:
    """Which revision is published; None if the endpoint never had one.

    :raises IntegrityError: it is no pointer. Retry: no.
    """
    path = f"routes/{endpoint}/current.json"
    try:
        return Pointer(**lake.read_json(path))
    except LakeFileMissingError:
        return None
    except TypeError as error:
        raise IntegrityError(f"{lake.uri(path)} is no pointer to a route: {error}") from error


def read_revision(lake: Lake, path: str, digest: str) -> Route:
    """One revision, checked against its digest."""
    route = from_json(Route, json.loads(lake.read_bytes(path, digest)))
    if f"{route.revision:08d}.json" != path.rsplit("/", 1)[-1]:
        raise IntegrityError(f"{lake.uri(path)} holds revision {route.revision}")
    return route


def published_heads(lake: Lake, endpoint: str) -> list[str]:
    """The ledger heads that the routes in an environment's lake recorded, oldest first."""
    paths = [path for path in lake.list(f"routes/{endpoint}") if not path.endswith("/current.json")]
    return [from_json(Route, lake.read_json(path)).ledger_head for path in paths]
