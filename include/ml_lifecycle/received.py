"""Records that another task hands over are references: what they say is read again where they point to.

Between two tasks a record lies where users may edit it. Its manifest lies in the lake, which only the stages
write. So a task takes the record's word for where the manifest is, and for nothing else; and it takes the run
it works for from its own context, so that nobody acts in another's name.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.lineage import read_version
from ml_lifecycle.errors import RecordMismatchError, UnsafeNameError
from ml_lifecycle.records import Evidence, ModelVersion, Record, Run, Snapshot, from_json

R = TypeVar("R", bound=Record)

# The run differs when an earlier run made the same result; a pod knows nothing of MLflow.
_NOT_IN_THE_MANIFEST = frozenset({"run", "mlflow_run_id"})


def reread(lake: Lake, cls: type[R], data: Any, model: str, run: Run | None = None) -> R:
    """The record whose copy was received, as the lake has it.

    :param data: the copy, :func:`~ml_lifecycle.records.to_json`'s dict
    :param model: whose record it must be
    :param run: the run that received it, which the record then stands for; None leaves the manifest's
    :raises RecordError: it is no record of this class. Retry: no.
    :raises RecordMismatchError: the lake has no such record, another one, or one of another model. Retry: no.
    """
    received = from_json(cls, data)
    try:
        filed = _filed(lake, received)
    except (LakeFileMissingError, UnsafeNameError) as error:
        raise RecordMismatchError(f"the lake has no such {cls.schema} as was received: {error}") from error
    differing = [
        field.name
        for field in fields(cls)
        if field.name not in _NOT_IN_THE_MANIFEST
        and getattr(received, field.name) != getattr(filed, field.name)
    ]
    if differing:
        raise RecordMismatchError(
            f"the {cls.schema} that was received differs from its manifest in {lake.url} in "
            f"{', '.join(differing)}: clear the task that returned it"
        )
    if (owner := _model(filed)) != model:
        raise RecordMismatchError(f"the {cls.schema} that was received is of model {owner}, not of {model}")
    return filed if run is None else cast("R", replace(cast("Any", filed), run=run))


def _filed(lake: Lake, received: R) -> R:
    record: Any = received
    if isinstance(record, ModelVersion):
        return cast("R", read_version(lake, record.name, record.version))
    path = record.path if isinstance(record, Snapshot | Evidence) else f"{record.path}/manifest.json"
    return from_json(type(received), lake.read_json(path))


def _model(record: Any) -> str:
    if isinstance(record, ModelVersion):
        return record.name
    return str(record.model if isinstance(record, Evidence) else record.run.model)
