"""What Airflow gives a task, without an Airflow that runs."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_context(task_id: str = "task", **fields: Any) -> Any:
    """A run of ``delays__train`` at :data:`NOW`, with the fields given."""
    from airflow.sdk import DAG  # here: Airflow reads where its home is when it is first imported

    run = {
        "dag_id": "delays__train",
        "run_id": "manual__1",
        "run_type": "manual",
        "run_after": NOW,
        "conf": {},
        "data_interval_start": NOW - timedelta(days=1),
        "data_interval_end": NOW,
        "triggering_user_name": None,
        **fields,
    }
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(
        id=uuid.uuid4(),
        dag_id=run["dag_id"],
        run_id=run["run_id"],
        task_id=task_id,
        map_index=-1,
        try_number=1,
        max_tries=2,
        start_date=NOW,
        pushed=pushed,
        xcom_push=lambda key, value, **_: pushed.update({key: value}),
    )
    return {
        "dag_run": SimpleNamespace(**run),
        "run_id": run["run_id"],
        "ti": instance,
        "task_instance": instance,
        "dag": DAG(str(run["dag_id"]), schedule=None),
        "task_state_store": None,
    }
