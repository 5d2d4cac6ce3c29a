"""The page and its JSON, behind Airflow's own login and DAG permissions. It changes nothing: GET only."""

# No `from __future__ import annotations` here: FastAPI resolves these annotations at definition.

import logging
import mimetypes
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.sdk.exceptions import AirflowNotFoundException
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.errors import UnsafeNameError
from ml_lifecycle.ledger.database import Database, DatabaseUnavailableError
from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook
from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError, LakeHook
from ml_lifecycle_airflow.hooks.mlflow import MlflowHook
from ml_lifecycle_ui.views import gather, history, models_of
from ml_lifecycle_ui.watched import watched

log = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_FILES = {file.name: file for file in _STATIC.iterdir() if file.is_file()}
# Reports come from third-party libraries and show users' data: scripts may draw them, and that is all.
# `sandbox` gives them an origin of their own: no cookies, no storage, no reading of Airflow's pages.
_SANDBOX = (
    "sandbox allow-scripts; default-src 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'none'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_PRIVATE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
# Threads that may wait for production's lake: if it hangs, Airflow's own routes must not run out of theirs.
_WAITING = CapacityLimiter(4)
_REPORT_TYPES = {".html": "text/html", ".json": "application/json"}

app = FastAPI(title="ML Lifecycle", docs_url=None, redoc_url=None, openapi_url=None)


def readable_dags(user: GetUserDep) -> set[str]:
    """Ids of the DAGs the caller may read."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


def lifecycle_database() -> Database:
    """The lifecycle database, or a 503 that says which connection is missing."""
    try:
        return LifecycleDatabaseHook().get_conn()
    except (AirflowNotFoundException, ConnectionIncompleteError) as error:
        raise HTTPException(503, f"The lifecycle database has no connection: {error}") from error


def lake() -> Lake:
    """The lake that the stages write their reports to, or a 503."""
    try:
        return LakeHook().get_conn()
    except (AirflowNotFoundException, ConnectionIncompleteError) as error:
        raise HTTPException(503, f"The lake has no connection: {error}") from error


def production_lake() -> Lake:
    """The lake that production is served from and watched in.

    By its usual name: which one a model's folder names is known where DAGs are parsed, not here.
    """
    return LakeHook(f"{PRODUCTION}_lake").get_conn()


ReadableDags = Annotated[set[str], Depends(readable_dags)]
DatabaseDep = Annotated[Database, Depends(lifecycle_database)]
LakeDep = Annotated[Lake, Depends(lake)]
Revision = Annotated[int, PathParameter(ge=1, lt=2**31)]


@app.exception_handler(DatabaseUnavailableError)
@app.exception_handler(SQLAlchemyError)
def database_down(_: Request, error: Exception) -> Response:
    """Say so, and no more: the error's text has statements and addresses in it."""
    log.error("the models' page cannot read a database", exc_info=error)
    return JSONResponse({"detail": "The database cannot be read; the API server's log says why."}, 503)


@app.get("/")
def page(user: GetUserDep) -> Response:
    """The page itself; it holds no data."""
    return _file("index.html", {"Content-Security-Policy": _OWN_POLICY})


@app.get("/static/{name}")
def static(name: str, user: GetUserDep) -> Response:
    """The page's script, style and icons."""
    if name not in _FILES:
        raise HTTPException(404, "no such file")
    return _file(name, {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"})


@app.get("/api/models")
def models(dags: ReadableDags, database: DatabaseDep) -> Response:
    """Every model the caller may see."""
    found: dict[str, Any] = {"models": gather(database, dags), "mlflow": _mlflow_page()}
    return JSONResponse(found, headers=_PRIVATE)


@app.get("/api/models/{model}")
def model(model: str, dags: ReadableDags, database: DatabaseDep) -> Response:
    """One model's windows and releases."""
    if model not in models_of(dags):
        raise HTTPException(404, "no such model")
    return JSONResponse(history(database, model), headers=_PRIVATE)


@app.get("/api/models/{model}/watches/{endpoint}/{revision}")
async def watch(
    model: str, endpoint: str, revision: Revision, dags: ReadableDags, database: DatabaseDep
) -> Response:
    """How one of a model's releases was judged, at its last look."""
    found = None
    if model in models_of(dags):
        asked = (database, production_lake, model, endpoint, revision, datetime.now(UTC))
        found = await to_thread.run_sync(watched, *asked, limiter=_WAITING)
    if found is None:
        raise HTTPException(404, "no such release")
    return JSONResponse(found, headers=_PRIVATE)


@app.get("/reports/{kind}/{model}/{path:path}")
def report(
    kind: Literal["monitoring", "evaluations", "validations"],
    model: str,
    path: str,
    dags: ReadableDags,
    files: LakeDep,
) -> Response:
    """A stage's report from the lake, in a sandbox of its own."""
    media_type = _REPORT_TYPES.get(Path(path).suffix)
    if model not in models_of(dags) or media_type is None:
        raise HTTPException(404, "no such report")
    try:
        data = files.read_bytes(f"{kind}/{model}/{path}")
    except (LakeFileMissingError, UnsafeNameError) as error:
        raise HTTPException(404, "no such report") from error
    return Response(data, media_type=media_type, headers={**_PRIVATE, "Content-Security-Policy": _SANDBOX})


def _file(name: str, headers: dict[str, str]) -> Response:
    kind = mimetypes.guess_type(name)[0]
    return FileResponse(_FILES[name], media_type=kind, headers={**_PRIVATE, **headers})


def _mlflow_page() -> str | None:
    try:
        return MlflowHook().page()
    except AirflowNotFoundException:
        return None  # the page is of use without MLflow
