"""What the operators share: a model folder, its hooks, and errors that say whether a retry helps."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowFailException

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle_airflow.links import ModelPageLink
from ml_lifecycle_airflow.run_time import resolve_run

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.checks import Clock
    from ml_lifecycle.delivery.targets import Target
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.records import Record, Run
    from ml_lifecycle.spec.folder import ModelFolder

    R = TypeVar("R", bound=Record)


@contextmanager
def final_errors_fail_at_once() -> Iterator[None]:
    """Turn a domain error that no retry can mend into Airflow's "do not retry".

    :raises AirflowFailException: for a :class:`LifecycleError` whose ``retryable`` is False.
    """
    try:
        yield
    except LifecycleError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


class Resources:
    """A model folder with everything its connections lead to, each made when first asked for."""

    def __init__(self, folder: str) -> None:
        from ml_lifecycle.spec.folder import load_folder

        self.model: ModelFolder = load_folder(folder)
        self.spec = self.model.spec
        self._run: Run | None = None

    def lake(self) -> Lake:
        """The lake all stages share."""
        from ml_lifecycle_airflow.hooks.lake import LakeHook

        return LakeHook(self.spec.connections.lake).get_conn()

    def database(self) -> Database:
        """The lifecycle database."""
        from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook

        return LifecycleDatabaseHook(self.spec.connections.database).get_conn()

    def mlflow(self) -> str:
        """MLflow's tracking and registry URI."""
        from ml_lifecycle_airflow.hooks.mlflow import MlflowHook

        return MlflowHook(self.spec.connections.mlflow).get_conn()

    def mlflow_page(self) -> str | None:
        """Where a browser finds MLflow."""
        from ml_lifecycle_airflow.hooks.mlflow import MlflowHook

        return MlflowHook(self.spec.connections.mlflow).page()

    def run(self, context: Context) -> Run:
        """Which run the task is part of and the time it stands for; resolved once a task.

        :raises RunConfError: the run's conf cannot be read, or it stands for the future. Retry: no.
        """
        if self._run is None:
            self._run = resolve_run(context, self.spec, self.database())
        return self._run

    def received(self, cls: type[R], data: RecordArg, context: Context | None = None) -> R:
        """The record that another task handed over, as its manifest in the lake says it.

        :param context: given, the record stands for this task's own run, whoever made it first
        :raises RecordError: it is no record of this class. Retry: no.
        :raises RecordMismatchError: it is not the one in the lake. Retry: no.
        """
        from ml_lifecycle.received import reread

        return reread(self.lake(), cls, data, self.spec.name, None if context is None else self.run(context))

    def environment_lake(self, environment: str) -> Lake:
        """The lake of a serving environment."""
        from ml_lifecycle_airflow.hooks.lake import LakeHook

        return LakeHook(self.spec.environments[environment].lake).get_conn()

    def target(self, environment: str) -> Target:
        """Where an environment's models run, for releases.

        :raises ConnectionIncompleteError: a connection does not lead to what is needed. Retry: no.
        """
        given, lake = self.spec.environments[environment], self.environment_lake(environment)
        if given.sagemaker is not None:
            from ml_lifecycle.delivery.sagemaker import SageMakerEndpoint
            from ml_lifecycle_airflow.hooks.sagemaker import SageMakerApiHook, check_lake

            check_lake(lake, given.lake)
            return SageMakerEndpoint(
                environment, lake, SageMakerApiHook(given.server).get_conn(), given.sagemaker
            )
        from ml_lifecycle.delivery.targets import ModelServers
        from ml_lifecycle_airflow.hooks.model_server import ModelServerHook

        return ModelServers(environment, lake, ModelServerHook(given.server).clients())

    def clock(self) -> Clock:
        """The wall clock; stages never ask for it themselves."""
        from ml_lifecycle.delivery.checks import Clock

        return Clock(now=lambda: datetime.now(UTC))

    def online_store(self, environment: str) -> str:
        """URL of an environment's online store."""
        from ml_lifecycle_airflow.hooks.model_server import OnlineStoreHook

        return OnlineStoreHook(self.spec.environments[environment].online_store).get_conn()


# A record as another task returned it: the task's ``.output`` in the DAG file, the dict once it runs.
RecordArg = Any


def required_folder(folder: str | None, task_id: str) -> str:
    """The model folder an operator was given, by itself or by its DAG's ``default_args``.

    :raises ValueError: it was given none.
    """
    if not folder:
        raise ValueError(
            f"task {task_id!r} needs folder=, the model folder (dags/models/<model>): "
            "give it to the operator or in the DAG's default_args"
        )
    return folder


class StageOperator(BaseOperator):
    """One stage as a task: records in by template, one record out.

    :param folder: the model folder, ``dags/models/<model>``
    """

    operator_extra_links: Collection[BaseOperatorLink] = (ModelPageLink(),)
    ui_color = "#e8f1f8"

    def __init__(self, *, folder: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = required_folder(folder, self.task_id)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage.

        :raises AirflowFailException: no retry would help; the message is the stage's own.
        """
        from ml_lifecycle.records import to_json

        with final_errors_fail_at_once():
            return to_json(self.stage(Resources(self.folder), context))

    def stage(self, resources: Resources, context: Context) -> Record:
        """Call the stage's function."""
        raise NotImplementedError
