"""What can be said of docker-compose.yaml without running it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docker-compose.yaml").read_text()
SECRETS = {name for name, default in re.findall(r"\$\{(\w+)(:-)?", TEXT) if not default}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT)["services"])


def test_every_secret_is_one_that_make_compose_env_writes() -> None:
    recipe = (REPOSITORY / "Makefile").read_text().partition("\n.env:\n")[2].partition("\n\n")[0]
    assert len(SECRETS) > 5
    assert {name for name in SECRETS if name not in recipe} == set()


def test_no_secret_is_on_a_command_line(services: dict[str, Any]) -> None:
    commands = {name: str(service.get("command", "")) for name, service in services.items()}
    # $$NAME is left to the shell within the container.
    filled = {name: set(re.findall(r"(?<!\$)\$\{?(\w+)", command)) for name, command in commands.items()}
    assert {name for name, variables in filled.items() if variables & SECRETS} == set()


def test_only_loopback_is_published(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_file_that_is_mounted_is_there(services: dict[str, Any]) -> None:
    mounted = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]
    files = [source for source, *_ in mounted if source.startswith(".")]
    assert files
    assert [source for source in files if not (REPOSITORY / source).is_file()] == []
