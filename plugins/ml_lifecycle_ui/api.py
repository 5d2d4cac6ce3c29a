"""The page and its JSON, behind Airflow's own login and DAG permissions."""

# No `from __future__ import annotations` here: FastAPI resolves these annotations at definition.

import mimetypes
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response

from ml_lifecycle.adapters.lake import LakeFileMissingError
from ml_lifecycle.errors import UnsafeNameError
from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook
from ml_lifecycle_airflow.hooks.lake import LakeHook
from ml_lifecycle_airflow.hooks.mlflow import MlflowHook
from ml_lifecycle_ui.views import gather, models_of

STATIC = Path(__file__).parent / "static"
# Reports come from third-party libraries and show users' data: no cookies, no storage, no same origin.
SANDBOX = "sandbox allow-scripts; default-src 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'none'"
OWN_POLICY = "default-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
REPORTS = ("monitoring", "evaluations", "validations")

app = FastAPI(title="ML Lifecycle", docs_url=None, redoc_url=None, openapi_url=None)


def readable_dags(user: GetUserDep) -> set[str]:
    """Ids of the DAGs the caller may read."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


ReadableDags = Annotated[set[str], Depends(readable_dags)]


@app.get("/")
def page(user: GetUserDep) -> HTMLResponse:
    """The page itself; it holds no data."""
    return HTMLResponse((STATIC / "index.html").read_text(), headers={"Content-Security-Policy": OWN_POLICY})


@app.get("/static/{name}")
def static(name: str, user: GetUserDep) -> Response:
    """The page's script and style."""
    files = {file.name: file for file in STATIC.iterdir()}
    if name not in files:
        raise HTTPException(404, f"no such file: {name}")
    return Response(files[name].read_bytes(), media_type=mimetypes.guess_type(name)[0])


@app.get("/api/models")
def models(dags: ReadableDags) -> dict[str, Any]:
    """Every model the caller may see."""
    return {"models": gather(LifecycleDatabaseHook().get_conn(), dags), "mlflow": MlflowHook().get_conn()}


@app.get("/reports/{model}/{path:path}")
def report(model: str, path: str, dags: ReadableDags) -> Response:
    """A stage's report from the lake, in a sandbox of its own."""
    if model not in models_of(dags) or not path.startswith(tuple(f"{kind}/{model}/" for kind in REPORTS)):
        raise HTTPException(404, "no such report")
    try:
        data = LakeHook().get_conn().read_bytes(path)
    except (LakeFileMissingError, UnsafeNameError) as error:
        raise HTTPException(404, "no such report") from error
    return Response(
        data,
        media_type=mimetypes.guess_type(path)[0] or "text/plain",
        headers={"Content-Security-Policy": SANDBOX, "X-Content-Type-Options": "nosniff"},
    )
