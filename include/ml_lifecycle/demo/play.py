"""2013, played: train, approve, serve, monitor, meet the drift, retrain, approve again.

This is what stands outside of Airflow: files that arrive, clients that ask for predictions, people who
approve. Everything else happens in the DAGs; nothing here reaches into them but through REST.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ml_lifecycle.demo.airflow import AirflowUser, DemoError, TaskState
from ml_lifecycle.demo.world import Access, World
from ml_lifecycle.records import Interval

MODEL = "flight_delay"
FIRST_TRAINING = datetime(2013, 5, 29, 8, tzinfo=UTC)
WINDOW = timedelta(days=14)
WINDOWS = 12
READING_SECONDS = 6.0
REQUESTER, APPROVER = "admin", "alice"


@dataclass
class Line:
    """One line of the table at the end."""

    stage: str
    run: str
    seconds: float
    result: str


@dataclass
class Played:
    """What the demo did so far."""

    lines: list[Line] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    version: str = ""
    former: str | None = None

    def say(self, text: str) -> None:
        """One line of live progress."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"{minutes:2d}:{seconds:02d}  {text}", flush=True)


def play(access: Access, windows: int = WINDOWS) -> int:
    """Play it; returns the exit code.

    :raises DemoError: a run failed, or the story went another way than the data say. Retry: no.
    """
    played = Played()
    requester = access.user(REQUESTER)
    approver = access.user(APPROVER)
    kinds = ("train", "promote", "monitor", "score", "rollback")
    requester.wait_for_dags({f"{MODEL}__{kind}" for kind in kinds})
    world = World(access)
    played.say(f"the airline's files up to {FIRST_TRAINING:%d %B} arrive")
    world.land_until(FIRST_TRAINING)
    _train(played, requester, "demo__first", FIRST_TRAINING)
    _promote(played, requester, approver)
    retrained_at = None
    for index in range(windows):
        window = Interval(FIRST_TRAINING + index * WINDOW, FIRST_TRAINING + (index + 1) * WINDOW)
        if _window(played, world, requester, window, retrained=retrained_at is not None):
            retrained_at = window.end
            _follow(played, requester, f"{MODEL}__train", _retraining(window), "retrain")
            _promote(played, requester, approver)
    _table(played, access)
    if retrained_at is None and windows == WINDOWS:
        raise DemoError("no window met the drift: September's should have")
    return 0


def _retraining(window: Interval) -> str:
    from ml_lifecycle.governor import retraining_run_id

    return retraining_run_id(MODEL, window)


def _train(played: Played, user: AirflowUser, run_id: str, as_of: datetime) -> None:
    played.say(f"{user.name} starts a training with what was known on {as_of:%d %B}")
    user.trigger(f"{MODEL}__train", run_id, {"as_of": as_of.isoformat()})
    _follow(played, user, f"{MODEL}__train", run_id, "train")


def _follow(played: Played, user: AirflowUser, dag_id: str, run_id: str, stage: str) -> None:
    user.wait(dag_id, run_id, played.say)
    _note(played, user, dag_id, run_id, stage)


def _note(played: Played, user: AirflowUser, dag_id: str, run_id: str, stage: str) -> None:
    """Write a finished run's tasks down for the table."""
    for task in user.tasks(dag_id, run_id):
        result = _result(user, dag_id, run_id, task)
        played.lines.append(Line(f"{stage}/{task.task_id}", run_id, task.seconds, result))
        if task.task_id == "register":
            played.former = played.version or None
            played.version = str(user.result(dag_id, run_id, "register")["version"])


def _promote(played: Played, requester: AirflowUser, approver: AirflowUser) -> None:
    dag_id, run_id = f"{MODEL}__promote", f"candidate__v{played.version}"

    def asked(tasks: list[TaskState]) -> bool:
        return any(task.task_id == "approve" and task.state == "awaiting_input" for task in tasks)

    said: set[str] = set()
    while asked(requester.wait(dag_id, run_id, played.say, until=asked, said=said)):
        # Airflow loses an answer that comes before its scheduler has put the asking attempt away, and asks
        # again after the retry delay. People take longer than that, so the demo does too; and looks again.
        time.sleep(READING_SECONDS)
        played.say(f"version {played.version} asks for production; {approver.name} approves (through REST)")
        approver.answer(dag_id, run_id, "approve", "Approve", "gates passed; approved by the demo")
        requester.wait(dag_id, run_id, played.say, until=lambda tasks: not asked(tasks), said=said)
    _note(played, requester, dag_id, run_id, "promote")


def _window(played: Played, world: World, user: AirflowUser, window: Interval, *, retrained: bool) -> bool:
    began = time.monotonic()
    rows = world.serve(window)
    spent = time.monotonic() - began
    played.lines.append(
        Line("serve", f"{window.start:%d %b}", spent, f"{rows} predictions by version {played.version}")
    )
    dag_id, run_id = f"{MODEL}__monitor", f"window__{window.end:%Y-%m-%d}"
    interval = {"start": window.start.isoformat(), "end": window.end.isoformat()}
    user.trigger(dag_id, run_id, {"as_of": window.end.isoformat(), "interval": interval})
    tasks = user.wait(dag_id, run_id, lambda text: None)
    found = user.result(dag_id, run_id, "monitor")
    metrics = found["metrics"]
    alerts = [_alert(alert) for alert in found["alerts"] if alert["severity"] != "informational"]
    text = f"skill {metrics['skill']:+.3f}, calibration error {metrics['calibration_error']:.3f}"
    if retrained and played.former is not None:
        before = world.skill_of(played.former, window)
        text += f" (version {played.former} on the same flights: {before:+.3f})"
    text += f"; {'; '.join(alerts) if alerts else 'nothing above its threshold'}"
    played.say(f"{window.start:%d %b} to {window.end:%d %b}: {rows} flights served; {text}")
    for task in tasks:
        result = text if task.task_id == "monitor" else _result(user, dag_id, run_id, task)
        played.lines.append(Line(f"monitor/{task.task_id}", run_id, task.seconds, result))
    return bool(found["retrain"])


def _alert(alert: dict[str, Any]) -> str:
    of = f" of {alert['column']}" if alert["column"] else ""
    return f"{alert['severity'].upper()} {alert['metric']}{of} = {alert['value']:.3f} ({alert['threshold']})"


def _result(user: AirflowUser, dag_id: str, run_id: str, task: TaskState) -> str:
    if task.state != "success":
        return task.state
    describe: dict[str, Callable[[dict[str, Any]], str]] = {
        "snapshot/1": lambda r: f"{sum(f['rows'] for t in r['tables'].values() for f in t['files'])} rows",
        "validation/1": lambda r: f"{r['rules']} rules, {len(r['failed'])} warnings",
        "training_set/1": lambda r: f"{r['train_rows']} rows, holdout {r['holdout_rows']}",
        "training/2": lambda r: f"model {r['model_digest'][:12]}",
        "evaluation/1": lambda r: f"{len(r['gates'])} gates passed, skill {r['metrics']['skill']:+.3f}",
        "model_version/1": lambda r: f"version {r['version']}, {r['role']}",
        "evidence/1": lambda r: f"digest {r['digest'][:12]}",
        "approval/1": lambda r: f"approved by {r['approved_by']}, ledger row {r['ledger_seq']}",
        "release/1": lambda r: f"{r['environment']} revision {r['revision']} {r['state']}",
    }
    try:
        record = user.result(dag_id, run_id, task.task_id)
    except DemoError:
        return "done"  # a task without a return value has no XCom
    schema = record.get("schema") if isinstance(record, dict) else None
    return describe[schema](record) if schema in describe else "done"


def _table(played: Played, access: Access) -> None:
    widths = [max(len(line.stage) for line in played.lines), max(len(line.run) for line in played.lines)]
    print(f"\n{'stage':<{widths[0]}}  {'run':<{widths[1]}}  seconds  result")
    for line in played.lines:
        print(f"{line.stage:<{widths[0]}}  {line.run:<{widths[1]}}  {line.seconds:7.1f}  {line.result}")
    total = time.monotonic() - played.started
    print(f"\n{len(played.lines)} steps in {total / 60:.1f} minutes. Look at:")
    airflow = access.airflow_page or access.airflow_url
    print(f"  {airflow}/plugin/ml-lifecycle   the models' page")
    print(f"  {airflow}/dags/{MODEL}__promote   who approved what")
    print(f"  {access.mlflow_url}/#/models/{MODEL}   the registry", flush=True)
