"""What the page shows of each model, gathered from the lifecycle database alone.

All values are JSON-ready. Links are relative to the page, which lies one level below Airflow's root.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ml_lifecycle.delivery.release_history import PRODUCTION, ReleaseHistory
from ml_lifecycle.delivery.release_rows import APPROVAL_ENDED, asked_by, began_by_itself
from ml_lifecycle.delivery.strategies import step_at
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import ApprovalRequest, open_requests
from ml_lifecycle.ledger.windows import Window, newest_windows

if TYPE_CHECKING:
    from ml_lifecycle.delivery.release_history import Served
    from ml_lifecycle.delivery.route import Route
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.ledger.ledger import GivenApproval
    from ml_lifecycle.records import Release

    Approvals = dict[str, list[GivenApproval]]

KINDS = ("train", "promote", "monitor", "score", "rollback")
SHOWN_WINDOWS = 12
SHOWN_RELEASES = 20
_RANK = {None: 0, "informational": 1, "warning": 2, "critical": 3}


def models_of(dag_ids: Iterable[str]) -> dict[str, list[str]]:
    """Models by name with those of their five DAGs that are in ``dag_ids``, in a life's order.

    A model is there if its ``__train`` DAG is: whoever may not read that sees nothing of the model.
    """
    known = set(dag_ids)
    models = sorted(dag_id.removesuffix("__train") for dag_id in known if dag_id.endswith("__train"))
    return {model: [kind for kind in KINDS if f"{model}__{kind}" in known] for model in models if model}


def gather(database: Database, dag_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Every model whose DAGs the caller may read, those with something to do first.

    A fixed number of queries, however many models there are.
    """
    models = models_of(dag_ids)
    served = {each.release.model: each for each in ReleaseHistory(database).served(PRODUCTION)}
    busy = {each.release.model: each for each in ReleaseHistory(database).all_under_way(PRODUCTION)}
    approvals = _approvals(database, (*served.values(), *busy.values()))
    windows = newest_windows(database, models, SHOWN_WINDOWS)
    requests: dict[str, list[ApprovalRequest]] = {}
    for request in open_requests(database):
        requests.setdefault(request.model, []).append(request)
    views = [
        {
            "name": model,
            "dags": [{"kind": kind, "link": _site("dags", f"{model}__{kind}")} for kind in kinds],
            "champion": _champion(served[model], busy.get(model), approvals) if model in served else None,
            "under_way": _release(busy[model], approvals) if model in busy else None,
            "watch": _watch(busy.get(model), served.get(model)),
            "approvals": [_request(request) for request in requests.get(model, ())],
            "last_window": _window(windows[model][0]) if windows.get(model) else None,
            "windows": [_mark(window) for window in windows.get(model, ())],
        }
        for model, kinds in models.items()
    ]
    return sorted(views, key=_urgency)


def history(database: Database, model: str) -> dict[str, Any]:
    """One model's newest windows and production releases, newest first."""
    releases = ReleaseHistory(database).of_model(PRODUCTION, model, SHOWN_RELEASES)
    approvals = _approvals(database, releases)
    windows = newest_windows(database, [model], SHOWN_WINDOWS).get(model, ())
    return {
        "windows": [_window(window) for window in windows],
        "releases": [_release(each, approvals) for each in releases],
    }


def step_view(release: Release, route: Route) -> dict[str, Any] | None:
    """What its version is where a release stands; None after a withdrawal, when nothing is served."""
    if not route.variants:
        return None
    step = step_at(route.variants, release.version)
    return {"role": step.role, "weight": step.weight, "watched": release.kind == "deploy" and step.is_watched}


def _approvals(database: Database, shown: Sequence[Served]) -> Approvals:
    """Of the releases, and of those that rollbacks among them took back."""
    digests = {each.release.evidence_digest for each in shown}
    digests |= {_evidence_replaced(each) for each in shown}
    return Ledger(database).approvals(sorted(filter(None, digests)))


def _evidence_replaced(found: Served) -> str | None:
    """The evidence of what a rollback took out of service, by which its route draws who gets it."""
    return None if found.replaced is None else found.replaced[1].salt or None


def _approval(release: Release, approvals: Approvals) -> dict[str, Any]:
    """The approval that let a release begin, and what ended it; it stays, whatever was decided later."""
    given = approvals.get(release.evidence_digest or "", [])
    # Of those before it the newest, for the same evidence may be approved again.
    before = [one for one in given if one.approval.approved_at <= release.created_at]
    if not (before or given):
        return {"approved_by": None, "approval_ended": None}
    let = before[-1] if before else given[0]
    ended = None
    if let.ended is not None:
        ended = {"at": let.ended.at.isoformat(), "reason": let.ended.payload["reason"]}
    return {"approved_by": let.approval.approved_by, "approval_ended": ended}


def _urgency(view: dict[str, Any]) -> tuple[bool, int, str]:
    newest = view["windows"][0]["severity"] if view["windows"] else None
    return not view["approvals"], -_RANK[newest], view["name"]


def _champion(served: Served, busy: Served | None, approvals: Approvals) -> dict[str, Any]:
    release = served.release
    # What is published: a canary has its share before it is confirmed.
    published = busy if busy is not None and busy.release.state == "applied" else served
    return {
        "version": release.version,
        "digest": release.model_digest,
        "endpoint": release.endpoint,
        "revision": release.revision,
        "kind": release.kind,
        "reason": release.reason,
        "since": served.since.isoformat(),
        **_approval(release, approvals),
        "replaced": _replaced(served),
        "traffic": _traffic(published),
        "traffic_revision": published.release.revision,
    }


def _replaced(served: Served) -> dict[str, Any] | None:
    """What a rollback took out of service: what was live, or what had a part of the traffic beside it."""
    if served.replaced is None:
        return None
    release = served.release
    return {"version": served.replaced[0], "was_live": release.previous_revision == release.replaces}


def _watch(busy: Served | None, served: Served | None) -> dict[str, Any] | None:
    """Which release's judgement matters now: of what is under way, or of what was taken back last by itself.

    Whether that one was watched, its own route tells.
    """
    for each in filter(None, (busy, served)):
        release = each.release
        step = step_view(release, each.route)
        if step is not None and step["watched"]:
            return {"endpoint": release.endpoint, "revision": release.revision}
        if release.replaces is not None and release.request is None:
            return {"endpoint": release.endpoint, "revision": release.replaces}
    return None


def _traffic(served: Served) -> list[dict[str, Any]]:
    variants = served.route.variants
    rest = 1 - sum(variant.weight for variant in variants if variant.role == "canary")
    return [
        {
            "role": variant.role,
            "version": variant.version,
            "weight": rest if variant.role == "champion" else variant.weight,
        }
        for variant in variants
    ]


def _release(found: Served, approvals: Approvals) -> dict[str, Any]:
    release = found.release
    return {
        "revision": release.revision,
        "kind": release.kind,
        "version": release.version,
        "state": release.state,
        "strategy": release.strategy,
        "begun": release.created_at.isoformat(),
        "requested_by": asked_by(release),
        "taken_back_by": _taken_back_by(found, approvals),
        **_approval(release, approvals),
        "reason": release.reason,
        "endpoint": release.endpoint,
        "step": step_view(release, found.route),
        "traffic": _traffic(found),
    }


def _taken_back_by(found: Served, approvals: Approvals) -> str | None:
    """What began a rollback that nobody asked for.

    A step that has traffic is checked in the servers before it is watched. What traffic has shown ends the
    approval too; failed checks leave it standing.
    """
    if found.replaced is None or not began_by_itself(found.release):
        return None
    version, route = found.replaced
    if not step_at(route.variants, version).is_watched:
        return "checks"
    reason, given = found.release.reason, approvals.get(_evidence_replaced(found) or "", [])
    ended = [one.ended.payload for one in given if one.ended is not None]
    by_traffic = any(one["user"] is None and one["reason"] == reason for one in ended)
    return "watch" if by_traffic or reason == APPROVAL_ENDED else "checks"


def _mark(window: Window) -> dict[str, Any]:
    return {
        "start": window.window.start.isoformat(),
        "end": window.window.end.isoformat(),
        "severity": _severity(window),
        "retrain": window.payload["retrain"],
    }


def _window(window: Window) -> dict[str, Any]:
    found = window.payload
    dag_id, _, run_id = found["run"]["run_id"].partition("/")
    reports = {"drift": found["html_path"] or found["report_path"]}
    if found["labelled"]:
        reports["quality"] = f"{found['path']}/quality.html"
    return {
        **_mark(window),
        "predictions": found["predictions"],
        "labelled": found["labelled"],
        "versions": found["versions"],
        "metrics": found["metrics"],
        "alerts": sorted(found["alerts"], key=lambda alert: -_RANK[alert["severity"]]),
        "run": _site("dags", dag_id, "runs", run_id),
        "reports": [{"name": name, "link": f"reports/{quote(path)}"} for name, path in reports.items()],
    }


def _severity(window: Window) -> str | None:
    raised = [alert["severity"] for alert in window.payload["alerts"]]
    return max(raised, key=lambda severity: _RANK[severity], default=None)


def _request(request: ApprovalRequest) -> dict[str, Any]:
    key = request.key
    place = _site("dags", key.dag_id, "runs", key.run_id, "tasks", key.task_id)
    return {
        "version": request.version,
        "assigned": list(request.assigned),
        "opened_at": request.opened_at.isoformat(),
        "link": f"{place}/required_actions",
    }


def _site(*segments: str) -> str:
    """A page of Airflow's own; run ids have colons and plus signs."""
    return "../" + "/".join(quote(segment, safe="") for segment in segments)
