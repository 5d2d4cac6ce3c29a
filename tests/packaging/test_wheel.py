"""The wheel, installed where the project is not, is found by Airflow; its base install needs no Airflow."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]

FIND = """
import json
from airflow.providers_manager import ProvidersManager
from airflow import plugins_manager
import ml_lifecycle, ml_lifecycle_airflow, ml_lifecycle_ui
manager = ProvidersManager()
print("FOUND " + json.dumps({
    "provider": manager.providers["airflow-ml-lifecycle"].version,
    "connections": sorted(c for c in manager.hooks if c.startswith("ml_lifecycle_")),
    "plugins": [p.name for p in plugins_manager._get_plugins()[0]],
    "errors": plugins_manager.get_import_errors(),
    "from": ml_lifecycle_ui.__file__,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"ml_lifecycle", "ml_lifecycle_airflow", "ml_lifecycle_ui"}
    for needed in ("ml_lifecycle_ui/static/index.html", "ml_lifecycle/ledger/migrations/env.py"):
        assert needed in names
    assert any(name.startswith("ml_lifecycle/spec/template/") for name in names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel; third-party packages are this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
    )
    # Third-party packages are this environment's; the project itself, installed here too, must not be seen.
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        ours = entry.name.startswith(("airflow_ml_lifecycle", "_editable", "_airflow_ml_lifecycle"))
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def test_airflow_finds_provider_and_plugin(installed: Path, tmp_path: Path) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON"))
    }
    done = subprocess.run(
        [str(installed), "-c", FIND],
        env=environment | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["provider"] == "0.1.0"
    assert found["connections"] == [
        "ml_lifecycle_database",
        "ml_lifecycle_lake",
        "ml_lifecycle_mlflow",
        "ml_lifecycle_online_store",
        "ml_lifecycle_server",
    ]
    assert found["plugins"].count("ml_lifecycle_ui") == 1
    assert not found["errors"]
    assert str(installed.parents[1]) in found["from"]


def brought(wanted: dict[str, set[str]]) -> set[str]:
    """The modules of distributions with these extras, and of all that they require."""
    done: dict[str, set[str]] = {}
    while wanted:
        name, extras = wanted.popitem()
        new = extras | {""} if name not in done else extras - done[name]
        if not new:
            continue
        done.setdefault(name, set()).update(new)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, requirements):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in new):
                wanted.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
    return {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if any(canonicalize_name(name) in done for name in names)
    }


@pytest.mark.parametrize(
    ("module", "extras"),
    [
        ("ml_lifecycle.serving.server, ml_lifecycle.serving.grpc_service", "server"),
        ("ml_lifecycle.training.pod", "training"),
    ],
)
def test_server_and_pod_need_what_their_extra_brings(module: str, extras: str, installed: Path) -> None:
    known = set(importlib.metadata.packages_distributions())
    refused = known - brought({"airflow-ml-lifecycle": {extras}})
    assert {"airflow", "mlflow", "great_expectations", "evidently"} <= refused
    assert ("starlette" in refused) == (extras == "training")
    code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {refused!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
import {module}
"""
    done = subprocess.run([str(installed), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
