"""A whole stack for tests: real processes on free ports, gone afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from sqlalchemy import URL
from waiting import wait_until

from ml_lifecycle.demo.airflow import AirflowUser, TaskState
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.config import USERS, Ports, Stack


def free_ports() -> Ports:
    """Ports that nothing listens on now, each another."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in Ports.__dataclass_fields__]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return Ports(*(probe.getsockname()[1] for probe in probes))


def command_lines(stack: Stack) -> dict[int, str]:
    """Of each of the stack's processes that still runs when it is asked, by its id."""
    found = {}
    for pid in supervise.processes(stack):
        with suppress(psutil.NoSuchProcess):
            # Libraries set process titles, which become one long argument.
            found[pid] = " ".join(psutil.Process(pid).cmdline())
    return found


@contextmanager
def running_stack(
    root: Path,
    dags: Path,
    users: Mapping[str, str] = USERS,
    kind: type[Stack] = Stack,
    postgres: URL | None = None,
) -> Iterator[Stack]:
    """A stack that serves ``dags``, started and stopped; nothing of it is left behind.

    :param users: name → role of the simple auth manager (viewer, user, op, admin)
    :param kind: a stack with something different about it
    :param postgres: the server that holds its databases; SQLite files if None
    """
    stack = kind(root=root, ports=free_ports(), dags=dags, users=users, postgres=postgres)
    try:
        supervise.start(stack, print)
        yield stack
    finally:
        supervise.stop(stack, print)
        assert supervise.processes(stack) == []


def log_in(stack: Stack, name: str) -> AirflowUser:
    """One user's view of the REST API."""
    return AirflowUser(stack.airflow_url, name, stack.password(name))


def wait_for_request(stack: Stack, user: AirflowUser, dag_id: str, run_id: str, timeout: float = 300) -> None:
    """Return once the run's approval waits for its answer.

    An answer that comes before the scheduler has put the asking attempt away is lost by Airflow, which then
    asks anew after the retry delay; the scheduler's log says when it has.
    """

    def put_away() -> bool:
        log = (stack.logs / "scheduler.log").read_text(errors="replace")
        attempt = user.attempt(dag_id, run_id, "approve")
        key = f"dag_id='{dag_id}', task_id='approve', run_id='{run_id}', try_number={attempt},"
        task = f"TaskInstanceKey({key}"
        return f"executor event with state success for task instance {task}" in log

    user.wait(dag_id, run_id, print, until=asked, timeout=timeout)
    wait_until(put_away, f"the scheduler has put away approve of {dag_id}/{run_id}")


def asked(tasks: Sequence[TaskState]) -> bool:
    """Whether a run's approval waits for its answer."""
    return any(task.task_id == "approve" and task.state == "awaiting_input" for task in tasks)


def approve(stack: Stack, user: AirflowUser, dag_id: str, run_id: str) -> None:
    """Answer yes as ``user``, and follow the run to its end."""
    wait_for_request(stack, user, dag_id, run_id)
    user.answer(dag_id, run_id, "approve", "Approve", "by a test")
    user.wait(dag_id, run_id, print)
