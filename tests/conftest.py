"""For every test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports Feast, whose import switches the client to files that a whole process shares:
# counters of one server would then count for all.
import prometheus_client  # noqa: F401
import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from postgres_kit import PostgresServer, postgres_binaries, running_postgres
from s3_kit import S3Store, running_s3
from xdist.scheduler import LoadFileScheduling

# Before anything loads OpenMP: its threads would spin while they wait, and keep others from the processor.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MEMORY = Path("/dev/shm")

# The same examples each time, wherever tests are run, and however slow that is.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
# It also draws constants of our own modules, as far as they are loaded: after other tests other ones.
providers._get_local_constants = lambda: providers._local_constants


def pytest_configure(config: pytest.Config) -> None:
    """Keep the quick tests' files in memory, if there is plenty: on a disk each small write is waited for.

    What the others write, whole lives of a stack among it, may be more.
    """
    if (
        "not full" in config.getoption("markexpr")
        and "TMPDIR" not in os.environ
        and _MEMORY.is_dir()
        and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(_MEMORY).free > 4 * 2**30
    ):
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


# One worker runs each of these, or each worker would make what they share: Spark's JVM, an Airflow with its
# API server, a process to fork from with all libraries imported. They take longest, and come first: begun
# last, one alone would be waited for.
_FORKING = ("compact", "faults", "interrupted_training", "kill_delivery", "kill_stages", "torch_state")
_TOGETHER = (
    ("tests/integration/test_spine.py",),
    ("tests/spark/",),
    tuple(f"tests/domain/test_{name}.py" for name in _FORKING),
    ("tests/ui/",),
)


def _together(test: str) -> int:
    """The place among those of the test with this id."""
    return next((place for place, paths in enumerate(_TOGETHER) if test.startswith(paths)), len(_TOGETHER))


class _Scheduling(LoadFileScheduling):
    """A worker a file, or a worker for several."""

    def _split_scope(self, nodeid: str) -> str:
        place = _together(nodeid)
        return super()._split_scope(nodeid) if place == len(_TOGETHER) else _TOGETHER[place][0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Of ``--dist loadfile`` only; else it is xdist's own."""
    return _Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests, and give each an id of its own: of those that share one pytest-xdist runs one."""
    items.sort(key=lambda item: _together(item.nodeid))
    for item in items:
        _, parametrised, parameters = item.name.partition("[")
        if parametrised and "[" not in item.nodeid:  # Schemathesis', as of pytest 9.2
            item._id = item.id.with_params(parameters.removesuffix("]"))
    shared = [node for node, times in Counter(item.nodeid for item in items).items() if times > 1]
    if shared:
        raise pytest.UsageError(f"several tests are called {', '.join(shared)}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests; each makes databases of its own in it."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql, or put initdb on the PATH")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Store]:
    """One store for all tests; each makes buckets of its own in it."""
    with running_s3() as store:
        yield store


@pytest.fixture(params=["sqlite", "postgresql"])
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes an empty lifecycle database and returns its URL; a test that uses it runs on both kinds."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        with server.databases() as create:
            yield create
    else:
        numbers = itertools.count()
        yield lambda: f"sqlite:///{tmp_path}/lifecycle{next(numbers)}.db"


@pytest.fixture
def database_url(make_database: Callable[[], str]) -> str:
    """URL of an empty lifecycle database."""
    return make_database()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of an empty database, for what is so on PostgreSQL only."""
    with postgres.databases() as create:
        yield create()
