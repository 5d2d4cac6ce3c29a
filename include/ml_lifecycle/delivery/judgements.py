"""Where the watch keeps what it found of a release, and how others read its last judgement.

Apart from the watch itself, so that who only shows a judgement need not load what makes one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.judging import Judgement
from ml_lifecycle.records import Release, from_json, to_json

# A watch that is this much late is none: an Airflow that was away looks again before that.
_LOOKS, _AT_LEAST = 5, timedelta(minutes=10)


def is_left_alone(looked: datetime, every: timedelta, now: datetime) -> bool:
    """Whether the last look is so long ago that nobody will look again.

    :param looked: when the step was looked at last; before that, when it began
    :param every: how often it is to be looked at
    """
    return now - looked > max(_LOOKS * every, _AT_LEAST)


def watch_folder(release: Release) -> str:
    """The folder of one step, a revision of its own, in the environment's lake."""
    return f"watches/{release.endpoint}/{release.revision:08d}"


def write_judgement(lake: Lake, release: Release, judgement: Judgement) -> None:
    """Keep a look's judgement in the place of the one before."""
    lake.write_json(_path(release), to_json(judgement))


def read_judgement(lake: Lake, release: Release) -> Judgement:
    """The judgement of the last look at a step.

    :raises LakeFileMissingError: nobody has looked at it yet. Retry: yes, after the next look.
    :raises IntegrityError: the file is not JSON. Retry: no; the next look writes it anew.
    :raises RecordError: it is no judgement, or another version's. Retry: no.
    """
    return from_json(Judgement, lake.read_json(_path(release)))


def _path(release: Release) -> str:
    return f"{watch_folder(release)}/judgement.json"
