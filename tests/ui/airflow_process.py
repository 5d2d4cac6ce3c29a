"""Run in a process of its own: an Airflow metadata database with DAGs and teams, and the API server on it."""

from __future__ import annotations

import sys

import uvicorn
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.utils.db import initdb
from airflow.utils.session import create_session

KINDS = ("train", "promote", "monitor", "score", "rollback")


def seed(models_by_team: list[str]) -> None:
    """``team=model,model`` for every team; what has no team is for everyone."""
    initdb()
    with create_session() as session:
        for argument in models_by_team:
            team, _, models = argument.partition("=")
            bundle = DagBundleModel(name=f"bundle-{team or 'shared'}")
            if team:
                bundle.teams.append(Team(name=team))
            session.add(bundle)
            session.flush()
            for model in models.split(","):
                for kind in KINDS:
                    dag = DagModel(dag_id=f"{model}__{kind}", bundle_name=bundle.name, is_stale=False)
                    dag.fileloc = f"/dags/{model}/dag.py"
                    session.add(dag)


if __name__ == "__main__":
    seed(sys.argv[2:])
    uvicorn.run("airflow.api_fastapi.main:app", fd=int(sys.argv[1]), log_level="info")
