"""Links from tasks to what they made. Each is computed where the task ran and kept as an XCom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

PAGE = "/ml-lifecycle"


class ModelPageLink(BaseOperatorLink):
    """The model's place on the lifecycle page."""

    name = "Model"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL within Airflow."""
        from ml_lifecycle_airflow.operators.base import Resources

        return f"{PAGE}/#{Resources(operator.folder).spec.name}"  # type: ignore[attr-defined]


class ReportLink(BaseOperatorLink):
    """The stage's report, served sandboxed by the UI plugin."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL within Airflow; empty before the stage made a report."""
        record = _returned(ti_key)
        path = record.get("html_path") or record.get("report_path")
        return f"{PAGE}/reports/{record['run']['model']}/{path}" if path else ""


class MlflowRunLink(BaseOperatorLink):
    """The training's run in MLflow."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL of MLflow's own page; empty before the run exists."""
        from ml_lifecycle_airflow.operators.base import Resources

        run_id = _returned(ti_key).get("mlflow_run_id")
        if not run_id:
            return ""
        return f"{Resources(operator.folder).mlflow()}/#/runs/{run_id}"  # type: ignore[attr-defined]


def _returned(ti_key: Any) -> dict[str, Any]:
    # While the task finishes, Airflow hands over the running task instance itself.
    return ti_key.xcom_pull(task_ids=ti_key.task_id, map_indexes=ti_key.map_index) or {}
