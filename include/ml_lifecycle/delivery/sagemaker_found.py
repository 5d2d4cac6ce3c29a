"""An endpoint on Amazon SageMaker, as who has neither Airflow nor a model folder finds it.

A release leaves a note in the environment's lake that its endpoint is there. What it runs, the account itself
says: a role or an image from a lake would be one that whoever writes there may choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.sagemaker import SageMakerAbsentError, SageMakerApi, SageMakerRefusedError
from ml_lifecycle.records import Record, from_json, to_json
from ml_lifecycle.serving.pinned import Pinned
from ml_lifecycle.spec.sagemaker import SageMaker


@dataclass(frozen=True)
class Note(Record):
    """That an endpoint is on SageMaker.

    :param name: what it is called there
    """

    schema: ClassVar[str] = "sagemaker_note/1"
    endpoint: str
    name: str
    region: str


def keep_note(lake: Lake, note: Note) -> None:
    """Say in the lake that releases of the endpoint go to SageMaker."""
    lake.write_json(_path(note.endpoint), to_json(note))


def read_note(lake: Lake, endpoint: str) -> Note | None:
    """Where the endpoint is on SageMaker; None if none of its releases ever went there."""
    try:
        return from_json(Note, lake.read_json(_path(endpoint)))
    except LakeFileMissingError:
        return None


def as_it_runs(note: Note, lake: Lake, api: SageMakerApi) -> SageMaker:
    """What an endpoint runs at the moment, as a spec would say it.

    :raises ServerUnavailableError: SageMaker does not answer. Retry: yes.
    :raises SageMakerRefusedError: there is no such endpoint that the credentials show, no release made it, or
        it reads another lake. Retry: no.
    :raises PinnedVariablesError: its container was not told what to serve. Retry: no.
    """
    state = api.endpoint(note.name)
    if state is None:
        raise SageMakerAbsentError(f"these credentials show no endpoint {note.name} in {note.region}")
    variants = api.variants(state.config)
    if "champion" not in variants:
        raise SageMakerRefusedError(f"no release made the configuration {state.config} of {note.name}")
    champion = variants.pop("champion")
    container = api.container(champion.model)
    serves = Pinned.from_variables(container.variables)
    if serves.lake != lake.url:
        raise SageMakerRefusedError(f"the containers of {note.name} read {serves.lake}, not {lake.url}")
    return SageMaker(
        role=container.role,
        image=container.image,
        instance_type=champion.instance_type,
        instances=champion.instances,
        challenger_instances=max((one.instances for one in variants.values()), default=1),
    )


def _path(endpoint: str) -> str:
    return f"sagemaker/{endpoint}.json"
