"""What a model's five DAGs cost each time Airflow parses their file.

    python benchmarks/parse.py

Goes through Airflow's own parse path (``_parse_file``: stability check, DagBag, serialisation), in this
process, imports done before. Beside it the floor: a file with five DAGs of as many tasks, of the stock
operators ours derive from, with no folder to load, no records between the tasks and no links of ours.
What is ours is the call in the model's ``dag.py``, less what Airflow's constructors cost the stock file.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from common import MODEL, cpu_ms, table

RUNS = 41
LIMIT_ALL, LIMIT_OURS = 120.0, 15.0

# One line a DAG: the stock class behind each of its tasks, in order.
STOCK = {
    "train": "SBBBKBBT",
    "promote": "BBBHBBB",
    "monitor": "BBBT",
    "score": "BBBB",
    "rollback": "BB",
}
STOCK_FILE = """
from datetime import timedelta
from airflow.sdk import DAG, Asset, BaseOperator, BaseSensorOperator, CronDataIntervalTimetable, Param
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from kubernetes.client import V1ResourceRequirements


def task(kind, task_id):
    if kind == "S":
        return BaseSensorOperator(task_id=task_id, poke_interval=30, timeout=6 * 3600)
    if kind == "K":
        amounts = {"cpu": "1", "memory": "2Gi"}
        return KubernetesPodOperator(
            task_id=task_id, image="x", kubernetes_conn_id="pods", active_deadline_seconds=1800,
            container_resources=V1ResourceRequirements(requests=amounts, limits=amounts),
        )
    if kind == "H":
        return HITLOperator(task_id=task_id, subject="?", options=["Approve", "Reject"],
                            params={"reason": Param("", type=["null", "string"])})
    if kind == "T":
        return TriggerDagRunOperator(task_id=task_id, trigger_dag_id="other")
    return BaseOperator(task_id=task_id)


for name, kinds in %r.items():
    with DAG(
        f"stock__{name}", schedule=None, catchup=False, tags=["a", "b", "c"], description="d", doc_md="# d",
        default_args={"owner": "o", "retries": 2, "retry_delay": timedelta(seconds=15)},
    ) as dag:
        before = None
        for index, kind in enumerate(kinds):
            made = task(kind, f"task_{index}")
            if before is not None:
                before >> made
            before = made
    globals()[dag.dag_id] = dag
"""


def main() -> int:
    """Measure, print, and say by the exit code whether the limits hold."""
    home = tempfile.mkdtemp(prefix="parse-")
    os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    from ml_lifecycle_airflow.preload import preload

    preload(["airflow", "dag-processor"])
    import structlog
    from airflow.dag_processing.processor import DagFileParseRequest, _parse_file

    from ml_lifecycle.spec.folder import load_folder
    from ml_lifecycle_airflow.dag_builder import lifecycle_dags

    folder = Path(home, "dags")
    ours = Path(shutil.copytree(MODEL, folder / "flight_delay")) / "dag.py"
    stock = folder / "stock.py"
    stock.write_text(STOCK_FILE % STOCK)
    log = structlog.get_logger()

    def parse(file: Path) -> dict[str, int]:
        request = DagFileParseRequest(
            file=str(file), bundle_path=folder, bundle_name="dags", callback_requests=[]
        )
        result = _parse_file(request, log)
        assert result is not None
        assert not result.import_errors, result.import_errors
        return {dag.dag_id.split("__")[1]: len(dag.data["dag"]["tasks"]) for dag in result.serialized_dags}

    try:
        made, floor = parse(ours), parse(stock)
        assert made == floor == {name: len(kinds) for name, kinds in STOCK.items()}, (made, floor)
        whole, least = cpu_ms(lambda: parse(ours), RUNS), cpu_ms(lambda: parse(stock), RUNS)
        loading = cpu_ms(lambda: load_folder(ours.parent), RUNS)
        building = cpu_ms(lambda: lifecycle_dags(str(ours)), RUNS)
        code = compile(stock.read_text(), str(stock), "exec")
        constructors = cpu_ms(lambda: exec(code, {}), RUNS)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    table(
        (f"five DAGs, {sum(made.values())} tasks", f"CPU ms, median of {RUNS}", "limit"),
        (
            ("parse and serialise, ours", f"{whole:.1f}", f"{LIMIT_ALL:.0f}"),
            ("parse and serialise, stock operators", f"{least:.1f}", ""),
            ("lifecycle_dags, Airflow's constructors included", f"{building:.1f}", ""),
            ("Airflow's constructors alone, stock operators", f"{constructors:.1f}", ""),
            ("what is ours: the difference", f"{building - constructors:.1f}", f"{LIMIT_OURS:.0f}"),
            ("of it: load_folder", f"{loading:.1f}", ""),
        ),
    )
    return int(whole > LIMIT_ALL or building - constructors > LIMIT_OURS)


if __name__ == "__main__":
    sys.exit(main())
