"""The image, built for real, from a checkout that is full of what no image may hold.

``ML_LIFECYCLE_BASE_IMAGE`` names the image it is built on, where that is not the Dockerfile's own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

pytestmark = pytest.mark.proof

REPOSITORY = Path(__file__).parents[2]
MADE_OF = (
    "LICENSE",
    "README.md",
    "constraints.txt",
    "dags",
    "include",
    "operators",
    "plugins",
    "pyproject.toml",
)
CANARY = f"canary-{secrets.token_hex(16)}".encode()
PLANTED = (
    ".env",
    ".git/config",
    ".run/secrets.json",
    "tests/test_canary.py",
    "dags/models/digits/.env",
    "dags/models/digits/.ipynb_checkpoints/training.py",
    "dags/models/digits/__pycache__/dag.cpython-311.pyc",
    "include/ml_lifecycle/__pycache__/errors.cpython-39.pyc",
    "operators/.env.local",
    "plugins/ml_lifecycle_ui/.secrets/token",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What ``docker save`` writes of the image: its configuration, its history and its layers."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers, so no image can be built")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in (*MADE_OF, ".dockerignore"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    for name in PLANTED:
        planted = checkout / name
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_bytes(CANARY)
    image, saved = f"ml-lifecycle-canary:{secrets.token_hex(4)}", checkout.with_suffix(".tar")
    base = os.environ.get("ML_LIFECYCLE_BASE_IMAGE")
    chosen = ["--build-arg", f"BASE={base}"] if base else []
    file = str(checkout / "include" / "images" / "Dockerfile")
    subprocess.run(["docker", "build", *chosen, "--tag", image, "--file", file, str(checkout)], check=True)
    try:
        subprocess.run(["docker", "save", "--output", str(saved), image], check=True)
        yield saved
    finally:
        subprocess.run(["docker", "image", "rm", image], check=True)
        saved.unlink(missing_ok=True)


def test_nothing_is_in_the_image_but_what_it_is_made_of(archive: Path) -> None:
    contents = {name: CANARY in stream.read() for name, stream in _everything(archive)}
    assert {name for name, holds_canary in contents.items() if holds_canary} == set()
    ours = {name.split("/")[2] for name in contents if name.startswith("opt/ml-lifecycle/")}
    assert ours == set(MADE_OF)
    assert "opt/ml-lifecycle/dags/.airflowignore" in contents


def _everything(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Every file of every layer by its path, and every description of the image."""
    with tarfile.open(archive) as outer:
        for member in outer:
            if (part := outer.extractfile(member)) is None:
                continue
            if not tarfile.is_tarfile(part):
                part.seek(0)
                yield f"{archive.name}/{member.name}", part
                continue
            part.seek(0)
            with tarfile.open(fileobj=part) as layer:
                for file in layer:
                    if file.isfile() and (stream := layer.extractfile(file)) is not None:
                        yield file.name.removeprefix("./"), stream
