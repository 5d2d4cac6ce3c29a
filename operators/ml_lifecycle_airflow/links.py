"""Links from tasks to what they made.

Airflow asks for each when the task ends, in the process that ran it and with the operator as it ran, and
keeps the answer as an XCom. So what a link needs, the operator has noted while it ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

PAGE = "ml-lifecycle"
"""Where below Airflow's root the UI plugin serves its page, and the page's name in the navigation."""


def model_url(model: str) -> str:
    """The model's place on the models' page, within Airflow's navigation."""
    root = _root()
    # Airflow's view takes the framed page's own path behind the view's.
    return f"{root}plugin/{PAGE}{urlsplit(root).path}{PAGE}/#{quote(model)}"


def report_url(path: str) -> str:
    """A report by its path in the lake, served sandboxed by the UI plugin."""
    return f"{_root()}{PAGE}/reports/{quote(path)}"


def run_url(dag_id: str, run_id: str) -> str:
    """A DAG run's page."""
    return f"{_root()}dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def _root() -> str:
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/") + "/"


class ModelPageLink(BaseOperatorLink):
    """The model's place on the models' page."""

    name = "Model"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Its URL."""
        from ml_lifecycle.spec.folder import load_folder

        return model_url(load_folder(operator.folder).spec.name)  # type: ignore[attr-defined]


class ReportLink(BaseOperatorLink):
    """The stage's report."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Its URL; empty if the stage did not come to write one."""
        return _noted(operator, "report_path", report_url)


class MlflowRunLink(BaseOperatorLink):
    """The training's run in MLflow."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Its URL in MLflow's UI; empty if the training did not come that far."""
        return _noted(operator, "mlflow_run_url", str)


class TriggeredRunLink(BaseOperatorLink):
    """The run that a task started, or found started already.

    Airflow's own link of that name leads to a run called "None" when the task was skipped.
    """

    name = "Triggered DAG"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Its URL; empty if there was nothing to start."""
        dag_id: str = operator.trigger_dag_id  # type: ignore[attr-defined]
        return _noted(operator, "trigger_run_id", lambda run_id: run_url(dag_id, run_id))


def _noted(operator: BaseOperator, name: str, to_url: Any) -> str:
    noted = getattr(operator, name)
    return str(to_url(noted)) if noted else ""
