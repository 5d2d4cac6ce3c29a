"""The moment and the interval a run stands for, however it was started.

From the run's conf if given (``as_of``, ``interval``), else from an explicit data interval, else from
where the model's last run of the same DAG ended to this run's time. The run's time is Airflow's
``run_after``, which stays the same over retries and clears; the wall clock is never asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.records import Interval, Run

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.spec.model import ModelSpec


class RunConfError(LifecycleError):
    """The run's conf cannot be read. Retry: no, trigger again with a right one."""


# Airflow's OpenLineage provider adds its own key to the conf of triggered runs.
_KEYS = frozenset({"as_of", "interval", "openlineage"})


def resolve_run(context: Context, spec: ModelSpec, database: Database) -> Run:
    """Which run this is and the time it stands for.

    :raises RunConfError: conf has unknown keys, bad times or a reversed interval. Retry: no.
    """
    dag_run = context["dag_run"]
    as_of, interval = read_conf(dag_run.conf or {})
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    if interval is None and as_of is None and start is not None and end is not None and start < end:
        interval = Interval(_utc(start), _utc(end))
    if as_of is None:
        as_of = interval.end if interval is not None else _utc(dag_run.run_after)
    interval = claim_interval(
        database,
        dag_run.dag_id,
        dag_run.run_id,
        as_of,
        given=interval,
        first_start=spec.training.data.start,
    )
    return Run(
        model=spec.name,
        run_id=f"{dag_run.dag_id}/{dag_run.run_id}",
        as_of=as_of,
        interval=interval,
        requested_by=dag_run.triggering_user_name,
    )


def read_conf(conf: Mapping[str, Any]) -> tuple[datetime | None, Interval | None]:
    """``as_of`` and ``interval`` of a conf, either of which may be missing.

    :raises RunConfError: an unknown key, no time or one without offset, a reversed interval. Retry: no.
    """
    if unknown := sorted(set(conf) - _KEYS):
        raise RunConfError(f"conf: unknown keys {_shown(unknown)}; a run takes as_of and interval")
    as_of = _moment(conf["as_of"], "as_of") if conf.get("as_of") else None
    given = conf.get("interval")
    if not given:
        return as_of, None
    if not (isinstance(given, Mapping) and set(given) == {"start", "end"}):
        raise RunConfError('conf: interval must be {"start": "2013-01-01T00:00:00Z", "end": "…"}')
    start, end = _moment(given["start"], "interval.start"), _moment(given["end"], "interval.end")
    if start >= end:
        raise RunConfError(
            f"conf: interval.start ({start.isoformat()}) must be before its end ({end.isoformat()})"
        )
    if as_of is not None and as_of < end:
        raise RunConfError(
            f"conf: as_of ({as_of.isoformat()}) is before the interval's end ({end.isoformat()})"
        )
    return as_of, Interval(start, end)


def _moment(value: Any, key: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # OverflowError: before the first year, after the last
        raise RunConfError(
            f"conf: {key} is {_shown(value)}; write a time such as 2013-09-22T08:00:00Z"
        ) from error
    raise RunConfError(f"conf: {key} is {_shown(value)}, which has no offset; end it with Z for UTC")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _utc(moment: datetime) -> datetime:
    return datetime.fromtimestamp(moment.timestamp(), UTC)
