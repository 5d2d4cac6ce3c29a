"""Airflow's REST API, as far as someone outside needs it: start runs, watch them, answer approvals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ml_lifecycle.errors import LifecycleError

DONE = frozenset({"success", "failed"})
_TRIES = 5


class DemoError(LifecycleError):
    """A step of the demo did not end as it should. Retry: no, look at the run it names."""


@dataclass
class TaskState:
    """One task of a run: where it stands and how long it took."""

    task_id: str
    state: str
    seconds: float


@dataclass
class AirflowUser:
    """One Airflow user's view of the REST API.

    :param url: of the API server
    :param name: who acts
    """

    url: str
    name: str
    password: str
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        answer = self._client.post("/auth/token", json={"username": self.name, "password": self.password})
        answer.raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        answer, _ = self._send(method, path, **arguments)
        return self._checked(answer)

    def _send(self, method: str, path: str, **arguments: Any) -> tuple[httpx.Response, int]:
        """The answer, and which try it answers.

        On SQLite, Airflow does nothing and answers 500 or 503 while another process of its writes for long.
        """
        url, number = f"/api/v2{path}", 1
        answer = self._client.request(method, url, **arguments)
        while answer.status_code >= 500 and number < _TRIES:
            time.sleep(1)
            answer, number = self._client.request(method, url, **arguments), number + 1
        return answer, number

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            asked = (
                f"{answer.request.method} {answer.request.url.path.removeprefix('/api/v2')} as {self.name}"
            )
            raise DemoError(f"{asked}: HTTP {answer.status_code}: {answer.text[:400]}")
        return answer.json()

    def wait_for_dags(self, dag_ids: set[str], timeout: float = 90) -> None:
        """Return when all are known and none of their files has an import error.

        :raises DemoError: an import error, or not there in time. Retry: no.
        """
        deadline = time.monotonic() + timeout
        while True:
            known = {dag["dag_id"] for dag in self._call("GET", "/dags", params={"limit": 500})["dags"]}
            if dag_ids <= known:
                return
            if time.monotonic() > deadline:
                errors = self._call("GET", "/importErrors")["import_errors"]
                why = "\n".join(f"{e['filename']}: {e['stack_trace'][-1500:]}" for e in errors)
                raise DemoError(f"DAGs {sorted(dag_ids - known)} did not appear in {timeout:.0f} s\n{why}")
            time.sleep(0.5)

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a run; its id is the idempotency key."""
        body = {"logical_date": None, "dag_run_id": run_id, "conf": dict(conf)}
        answer, number = self._send("POST", f"/dags/{dag_id}/dagRuns", json=body)
        if answer.status_code != 409 or number == 1:  # else the try before has started it after all
            self._checked(answer)

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        """The run's state; None while there is no such run."""
        answer = self._client.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return str(answer.json()["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """The run's tasks in the order they started; those that have not are last."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        found.sort(key=lambda task: (task["start_date"] is None, task["start_date"] or ""))
        return [
            TaskState(task["task_id"], task["state"] or "none", float(task["duration"] or 0))
            for task in found
        ]

    def attempt(self, dag_id: str, run_id: str, task_id: str) -> int:
        """How often the task was begun."""
        return int(
            self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")["try_number"]
        )

    def result(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self._call("GET", path)["value"]

    def log_tail(self, dag_id: str, run_id: str, task_id: str, lines: int = 25) -> str:
        """The end of a task's log, for a failure's report."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        content = self._call("GET", path, params={"full_content": True}).get("content", [])
        return "\n".join(_log_line(line) for line in content[-lines:])

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, reason: str) -> None:
        """Answer an open approval."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        self._call("PATCH", path, json={"chosen_options": [option], "params_input": {"reason": reason}})

    def wait(
        self,
        dag_id: str,
        run_id: str,
        say: Callable[[str], None],
        *,
        until: Callable[[list[TaskState]], bool] | None = None,
        said: set[str] | None = None,
        timeout: float = 300,
    ) -> list[TaskState]:
        """Follow a run to its end, or until ``until`` holds; says each task as it ends.

        :param said: tasks said already; kept by the caller who follows one run in several calls
        :raises DemoError: the run failed or took too long. Retry: no; the log's end is in the message.
        """
        deadline = time.monotonic() + timeout
        said = set() if said is None else said
        while True:
            state = self.run_state(dag_id, run_id)
            tasks = self.tasks(dag_id, run_id) if state is not None else []
            for task in tasks:
                if task.state in {"success", "skipped", "failed"} and task.task_id not in said:
                    said.add(task.task_id)
                    say(f"{dag_id} {task.task_id}: {task.state} ({task.seconds:.1f} s)")
            if state == "success" or (until is not None and until(tasks)):
                return tasks
            if state == "failed":
                failed = [task.task_id for task in tasks if task.state == "failed"]
                tail = self.log_tail(dag_id, run_id, failed[0]) if failed else ""
                raise DemoError(f"run {run_id} of {dag_id} failed at {', '.join(failed)}:\n{tail}")
            if time.monotonic() > deadline:
                states = ", ".join(f"{task.task_id} {task.state}" for task in tasks)
                raise DemoError(f"run {run_id} of {dag_id} was not done in {timeout:.0f} s: {states}")
            time.sleep(0.4)


def _log_line(line: Any) -> str:
    if not isinstance(line, dict):
        return str(line)
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or []]
    return "\n".join([str(line.get("event", "")), *errors])
