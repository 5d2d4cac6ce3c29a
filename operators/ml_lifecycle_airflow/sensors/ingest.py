"""Wait for data."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout

from ml_lifecycle_airflow.links import ModelPageLink
from ml_lifecycle_airflow.operators.base import Resources, final_errors_fail_at_once, required_folder
from ml_lifecycle_airflow.run_time import awaited

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Run


class DataArrivalSensor(BaseSensorOperator):
    """Wait until every source has data for the run's interval; a scheduled run, for its schedule's.

    While it waits in the triggerer, which never sees the model folder, it looks for what ``model.yaml`` said
    when it began; clear it to look by a changed one. What has arrived is looked for once more with the folder
    as it is then, since the tasks that follow read by that.

    :param folder: the model folder
    :param deferrable: wait in the triggerer (default) or in the worker
    """

    operator_extra_links = (ModelPageLink(),)
    ui_color = "#e8f1f8"

    def __init__(self, *, folder: str | None = None, deferrable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = required_folder(folder, self.task_id)
        self.deferrable = deferrable

    def poke(self, context: Context) -> bool:
        """Whether every source has arrived."""
        return not self._missing(context)[1]

    def _missing(self, context: Context) -> tuple[Run, tuple[str, ...]]:
        from ml_lifecycle.stages.ingest import not_arrived
        from ml_lifecycle_airflow.hooks.lake import source_options

        resources = Resources(self.folder)
        with final_errors_fail_at_once():
            spec = resources.spec
            run = awaited(context, resources.run(context))
            missing = not_arrived(spec, resources.lake(), run, storage_options=source_options(spec))
        if missing:
            start = run.interval.start.isoformat()
            self.log.info("waiting for an event at or after %s in %s", start, ", ".join(missing))
        return run, missing

    def execute(self, context: Context) -> None:
        """Return when the data are there; defer at once if they are not and this sensor is deferrable."""
        if not self.deferrable:
            super().execute(context)
            return
        run, missing = self._missing(context)
        if not missing:
            return
        from ml_lifecycle.records import to_json
        from ml_lifecycle_airflow.triggers.ingest import DataArrivalTrigger

        self.defer(
            trigger=DataArrivalTrigger(
                spec=Resources(self.folder).spec.model_dump(mode="json"),
                run=to_json(run),
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the trigger; once the time is up, look for a last time and say what has not arrived.

        :raises AirflowSensorTimeout: some source still has nothing. Retry: no, clear it when it has.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout as error:
            run, missing = self._missing(context)
            if missing:
                raise AirflowSensorTimeout(
                    f"no event at or after {run.interval.start.isoformat()} in {', '.join(missing)} "
                    f"within {timedelta(seconds=self.timeout)}"
                ) from error

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Finish with what the trigger saw, or wait on if the model folder asks for something else by now.

        :raises AirflowFailException: a source can never be read as declared. Retry: no.
        """
        if event["status"] != "arrived":
            raise AirflowFailException(event["message"])
        self.execute(context)
