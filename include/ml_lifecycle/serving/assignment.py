"""Who is answered by which version: by a stable hash, so that a user stays on his side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any


def share_of(salt: str, key: str) -> float:
    """Where a key falls in [0, 1): the same on every server, after every restart.

    Whoever is below a canary's weight stays there while the weight grows. Another salt shuffles all keys, so
    that it is not always the same users who meet a new version first.
    """
    digest = blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def key_of(parameters: Mapping[str, Any], entities: Mapping[str, Sequence[Any]], request_id: str) -> str:
    """What a request is assigned by, if no header says it.

    Its parameter ``assignment_key``; else its first row's entity keys; else its id, which for a request
    without one is made up: then each request is assigned anew.
    """
    given = parameters.get("assignment_key")
    if given is not None:
        return str(given)
    if entities:
        return "\0".join(str(values[0]) for _, values in sorted(entities.items()) if values)
    return request_id
