"""Whose turn it is at an endpoint: one release is under way at a time, and a watched one is for days."""

from __future__ import annotations

from datetime import datetime

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.endpoint import Endpoint
from ml_lifecycle.delivery.judgements import is_left_alone, read_judgement
from ml_lifecycle.delivery.release_rows import name_of
from ml_lifecycle.delivery.releases import conflict
from ml_lifecycle.errors import IntegrityError, ReleaseUnderWayError, ReleaseWatchedError
from ml_lifecycle.records import RecordError, Release


def in_the_way(endpoint: Endpoint, busy: Release) -> ReleaseUnderWayError:
    """The error of who comes while ``busy`` is under way; a release that is watched is worth waiting for."""
    if busy.kind != "deploy" or busy.state != "applied" or not (step := endpoint.step(busy)).is_watched:
        return conflict(busy)
    looked = last_look(endpoint.target.lake, busy)
    what = f"{name_of(busy)} (version {busy.version}, {step}) is under way and watched"
    if not is_left_alone(looked, endpoint.spec.delivery.watch.every, endpoint.clock.now()):
        return ReleaseWatchedError(f"{what}, last looked at {looked:%Y-%m-%d %H:%M:%S} UTC")
    return ReleaseWatchedError(
        f"{what}, but nobody has looked at it since {looked:%Y-%m-%d %H:%M:%S} UTC: clear the task that "
        f"watches it, or take it back by {endpoint.spec.name}__rollback; it will not end by itself",
        left_alone=True,
    )


def last_look(lake: Lake, release: Release) -> datetime:
    """When a release was judged last at the step where it stands; before that, when the step began."""
    try:
        return read_judgement(lake, release).judged_at
    except (LakeFileMissingError, IntegrityError, RecordError):  # what it says is its own watch's business
        return release.created_at
