"""Whether a container's process does its work: exit code 0 if so. Standard library only, Celery excepted.

``healthy.py URL``           something answers there, be it that it wants a token
``healthy.py airflow NAME``  the API server has heard of this component: scheduler, dag_processor, triggerer
``healthy.py celery FILE``   this host's Celery worker answers a ping through the broker whose URL is in FILE

Airflow's own commands for this import all of Airflow: seconds of CPU a check.
"""

import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

MONITOR = "http://api-server:8080/api/v2/monitor/health"
SECONDS = 10


def answers(url: str) -> bool:
    """Whether a server is there: a status below 500 will do."""
    try:
        urllib.request.urlopen(url, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def airflow_component(name: str) -> bool:
    """Whether its heartbeat is fresh."""
    try:
        with urllib.request.urlopen(MONITOR, timeout=SECONDS) as answer:
            health = json.load(answer)
    except (OSError, ValueError):
        return False
    return bool(health[name]["status"] == "healthy")


def celery_worker(broker_file: str) -> bool:
    """Whether the worker of this host answers."""
    from celery import Celery

    app = Celery(broker=Path(broker_file).read_text().strip())
    return bool(app.control.ping([f"celery@{socket.gethostname()}"], timeout=SECONDS))


CHECKS = {"airflow": airflow_component, "celery": celery_worker}

if __name__ == "__main__":
    kind, *names = sys.argv[1:]
    sys.exit(0 if (CHECKS[kind](*names) if kind in CHECKS else answers(kind)) else 1)
