"""What the page shows of each model, gathered from the lifecycle database alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import ApprovalRequest, open_requests
from ml_lifecycle.ledger.windows import Window, recorded_windows

if TYPE_CHECKING:
    from ml_lifecycle.ledger.database import Database

SHOWN_WINDOWS = 12
KINDS = ("train", "promote", "monitor", "score", "rollback")


@dataclass(frozen=True)
class ModelView:
    """One model's row; all values are JSON-ready."""

    name: str
    dags: list[str]
    champion: dict[str, Any] | None
    windows: list[dict[str, Any]]
    approvals: list[dict[str, Any]]


def models_of(dag_ids: set[str]) -> dict[str, list[str]]:
    """Models by name with those of their five DAGs that are in ``dag_ids``.

    A model is there if its ``__train`` DAG is: whoever may not read that sees nothing of the model.
    """
    found: dict[str, list[str]] = {}
    for dag_id in sorted(dag_ids):
        model, separator, kind = dag_id.rpartition("__")
        if separator and kind in KINDS and f"{model}__train" in dag_ids:
            found.setdefault(model, []).append(kind)
    return found


def gather(database: Database, dag_ids: set[str]) -> list[dict[str, Any]]:
    """Every model whose DAGs the caller may read, those with something to do first."""
    ledger = Ledger(database)
    live = {release.model: release for release in Releases(database).champions()}
    requests = open_requests(database)
    views = []
    for model, kinds in models_of(dag_ids).items():
        release = live.get(model)
        views.append(
            ModelView(
                name=model,
                dags=kinds,
                champion=None if release is None else _champion(release, ledger),
                windows=[_window(window) for window in recorded_windows(database, model, SHOWN_WINDOWS)],
                approvals=[_approval(request) for request in requests if request.model == model],
            )
        )
    views.sort(key=lambda view: (not view.approvals, not _alerting(view), view.name))
    return [asdict(view) for view in views]


def _champion(release: Any, ledger: Ledger) -> dict[str, Any]:
    approval = ledger.approval_for(release.evidence_digest) if release.evidence_digest else None
    return {
        "version": release.version,
        "digest": release.model_digest[:12],
        "endpoint": release.endpoint,
        "revision": release.revision,
        "strategy": release.strategy,
        "since": release.created_at.isoformat(),
        "approved_by": None if approval is None else approval.approved_by,
    }


def _window(window: Window) -> dict[str, Any]:
    found = window.payload
    return {
        "start": window.window.start.isoformat(),
        "end": window.window.end.isoformat(),
        "predictions": found["predictions"],
        "labelled": found["labelled"],
        "metrics": found["metrics"],
        "alerts": found["alerts"],
        "retrain": found["retrain"],
        "run": found["run"]["run_id"],
        "report": found["html_path"] or found["report_path"],
    }


def _approval(request: ApprovalRequest) -> dict[str, Any]:
    key = request.key
    return {
        "version": request.version,
        "assigned": list(request.assigned),
        "opened_at": request.opened_at.isoformat(),
        "link": f"/dags/{key.dag_id}/runs/{key.run_id}/tasks/{key.task_id}/required_actions",
    }


def _alerting(view: ModelView) -> bool:
    return bool(view.windows and view.windows[0]["alerts"])
