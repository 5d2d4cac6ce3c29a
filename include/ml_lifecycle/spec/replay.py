"""The part of ``monitoring:`` that says how much of the traffic is replayed."""

from __future__ import annotations

from pydantic import Field

from ml_lifecycle.spec.types import Strict


class Replay(Strict):
    """Logged requests taken once more through the path that training takes, and compared.

    :param rows: of each window; 0 replays none
    :param seed: of the choice, which is made evenly among route revisions, versions and ways to features
    """

    rows: int = Field(default=60, ge=0, le=10_000)
    seed: int = Field(default=0, ge=0)
