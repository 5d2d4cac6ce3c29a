"""The moment and the interval a run stands for, however it was started.

| started by | interval | as_of |
|---|---|---|
| conf with ``interval`` | that | the conf's, else its end |
| a schedule | its data interval, and before it whatever no run has done yet | its end |
| a backfill, or REST with a date | its data interval | the conf's, else its end |
| anything else | from where the last run ended to ``as_of`` | the conf's, else the run's time |

The run's time is the date it was given, else Airflow's ``run_after``; both stay the same over retries and
clears. A data interval of no length, as a DAG without a schedule has, and one that ends after a conf's
``as_of`` do not count. The wall clock decides nothing; only an ``as_of`` in the future is refused by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.records import Interval, Run

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import DagRunProtocol

    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.spec.model import ModelSpec


class RunConfError(LifecycleError):
    """The run's conf cannot be read. Retry: no, trigger again with a right one."""


# A browser that starts a run sends its own clock's time as the run's date.
_CLOCK_SKEW = timedelta(minutes=5)

# Airflow's OpenLineage provider adds its own key to the conf of triggered runs.
_KEYS = frozenset({"as_of", "interval", "openlineage"})


def resolve_run(context: Context, spec: ModelSpec, database: Database) -> Run:
    """Which run this is and the time it stands for.

    :raises RunConfError: conf has unknown keys, bad times or a reversed interval, or the run stands for a
        time that has not come. Retry: no.
    """
    dag_run = context["dag_run"]
    as_of, interval = read_conf(dag_run.conf or {})
    dated = _data_interval(dag_run)
    if as_of is None:
        known = interval or dated
        as_of = _utc(dag_run.run_after) if known is None else known.end
    _refuse_the_future(as_of, context["ti"].start_date)
    if dated is not None and (not dated.length or as_of < dated.end):
        dated = None
    scheduled = dated is not None and is_scheduled(dag_run)
    if interval is None and not scheduled:
        interval = dated
    if interval is None:
        interval = claim_interval(
            database,
            dag_run.dag_id,
            dag_run.run_id,
            dated or Interval(min(spec.training.data.start, as_of), as_of),
            whole=scheduled,
            succeeded=partial(_succeeded, context),
        )
    return Run(
        model=spec.name,
        run_id=f"{dag_run.dag_id}/{dag_run.run_id}",
        as_of=as_of,
        interval=interval,
        requested_by=dag_run.triggering_user_name,
    )


def awaited(context: Context, run: Run) -> Run:
    """The run with only the part of its interval that data have to arrive for.

    A scheduled run may stand for missed ones as well; it waits for the data of its own schedule.
    """
    own = _data_interval(context["dag_run"])
    if own is None or not is_scheduled(context["dag_run"]):
        return run
    return replace(run, interval=Interval(max(own.start, run.interval.start), run.interval.end))


def is_scheduled(dag_run: DagRunProtocol) -> bool:
    """Whether a schedule made the run."""
    return dag_run.run_type == "scheduled"


def _succeeded(context: Context, run_id: str) -> bool:
    """Whether another run of the DAG did its work; one that somebody deleted is not made up for."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        return bool(context["ti"].get_dagrun_state(context["dag_run"].dag_id, run_id) == "success")
    except AirflowRuntimeError as error:
        if (error.error.detail or {}).get("status_code") == 404:
            return True
        raise


def _data_interval(dag_run: DagRunProtocol) -> Interval | None:
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    return None if start is None or end is None else Interval(_utc(start), _utc(end))


def _refuse_the_future(as_of: datetime, now: datetime) -> None:
    if as_of > now + _CLOCK_SKEW:
        raise RunConfError(
            f"the run stands for {as_of.isoformat()}, but it is {_utc(now).isoformat(timespec='seconds')}: "
            "what will be known by then is not known yet; give an earlier as_of, or none for now"
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
