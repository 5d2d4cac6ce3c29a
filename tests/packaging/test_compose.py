"""What can be said of docker-compose.yaml without running it."""

from __future__ import annotations

import configparser
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_lifecycle.demo.__main__ import read_access
from ml_lifecycle_airflow.stack.full_secrets import write_secrets

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docker-compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]
# They start as root to take their volume into possession, and step down.
OTHERS = {"postgres", "redis", "lake"}
ONE_SHOT = {"buckets", "migrate", "demo"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of secrets, as `make full-secrets` makes it."""
    folder = tmp_path_factory.mktemp("full") / "secrets"
    write_secrets(folder)
    return folder


def passwords(folder: Path) -> Iterator[str]:
    """Every value that nobody may see."""
    for path in folder.iterdir():
        if re.search(r"(password|secret|token|key)$", path.name):
            yield path.read_text()
    yield from json.loads((folder / "airflow-passwords.json").read_text()).values()


def test_every_secret_that_is_mounted_is_made(secrets: Path) -> None:
    named = {name: definition["file"] for name, definition in COMPOSE["secrets"].items()}
    mounted = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert mounted == set(named)
    assert {Path(file).name for file in named.values()} == set(named)
    assert [name for name in named if not (secrets / name).is_file()] == []


def test_a_service_mounts_each_secret_file_that_it_reads() -> None:
    for name, service in SERVICES.items():
        read = set(
            re.findall(
                r"/run/secrets/([\w.-]+)", json.dumps([service.get("command"), service.get("environment")])
            )
        )
        if name in ("buckets", "demo"):  # which start nothing of Airflow, whose settings they share
            read = {secret for secret in read if not secret.startswith(("airflow", "celery"))}
        assert read - set(service["secrets"]) == set(), name


def test_no_secret_is_in_the_file(secrets: Path) -> None:
    found = list(passwords(secrets))
    assert len(found) > 15
    assert len(set(found)) == len(found)
    assert [value for value in found if value in TEXT] == []
    # A variable is seen by `docker inspect`: none is filled in but for images, ports and limits.
    variables = set(re.findall(r"(?<!\$)\$\{?(\w+)", TEXT))
    assert {
        name for name in variables if not re.search(r"(BASE|IMAGE|PORT|MEMORY|CPUS|CONCURRENCY)$", name)
    } == {"SECRETS"}


def test_the_secrets_are_for_who_may_enter_their_folder_only(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o444}


def test_what_was_made_once_is_kept(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    write_secrets(secrets)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


def test_it_runs_on_a_machine_that_has_python_alone(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('airflow', 'pydantic', 'yaml', 'fsspec'))); "
        "from ml_lifecycle_airflow.stack.full_secrets import main; sys.exit(main(sys.argv[1:]))"
    )
    roots = {"PYTHONPATH": f"{REPOSITORY}/include:{REPOSITORY}/operators", "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-S", "-c", code, str(tmp_path / "full")], env=roots, check=True)
    assert read_access(tmp_path / "full" / "demo-access.json").lake == "s3://lifecycle"


def test_pods_go_to_the_cluster_that_is_given(tmp_path: Path) -> None:
    write_secrets(tmp_path, "apiVersion: v1\nkind: Config\n", "models")
    assert (tmp_path / "kubeconfig").read_text() == "apiVersion: v1\nkind: Config\n"
    connections = json.loads((tmp_path / "airflow-connections.json").read_text())
    assert connections["ml_lifecycle_pods"]["extra"]["namespace"] == "models"


def test_the_store_knows_every_client_and_lets_it_into_its_own_bucket(secrets: Path) -> None:
    identities = json.loads((secrets / "lake-identities.json").read_text())["identities"]
    known = {each["name"]: each for each in identities}
    assert set(known) == {"airflow", "pods", "mlflow", "staging", "production"}
    for name, identity in known.items():
        written = configparser.ConfigParser()
        written.read(secrets / f"aws-{name}")
        (credentials,) = identity["credentials"]
        assert written["default"]["aws_access_key_id"] == credentials["accessKey"]
        assert written["default"]["aws_secret_access_key"] == credentials["secretKey"]
        buckets = {action.partition(":")[2] for action in identity["actions"]}
        assert buckets == {{"airflow": "", "pods": "lifecycle"}.get(name, name)}
    options = json.loads((secrets / "lake-options.json").read_text())
    assert options["secret"] == known["pods"]["credentials"][0]["secretKey"]


def test_what_must_be_private_is_copied_to_where_it_is(secrets: Path, tmp_path: Path) -> None:
    script = (REPOSITORY / "include" / "images" / "entrypoint.sh").read_text()
    script = script.replace("/run/secrets", str(secrets)).replace("/run/private", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", script, "sh", "echo", "a b"], check=True, capture_output=True, text=True
    )
    assert done.stdout == "a b\n"
    copies = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert copies == dict.fromkeys(("pgpass", "pods-token", "airflow-passwords.json"), 0o600)
    assert [name for name in copies if (tmp_path / name).read_text() != (secrets / name).read_text()] == []


def test_only_loopback_is_published() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [source for source, *_ in mounted if source.startswith(".")]
    assert files
    assert [source for source in files if not (REPOSITORY / source).is_file()] == []
    named = {source for source, *_ in mounted if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_every_service_has_a_limit_and_a_check() -> None:
    assert [name for name, service in SERVICES.items() if "mem_limit" not in service] == []
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == ONE_SHOT


def test_ours_can_gain_no_right() -> None:
    for name, service in SERVICES.items():
        if name not in OTHERS:
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert "user" not in service, name  # the image's, which is not root
    dockerfile = (REPOSITORY / "include" / "images" / "Dockerfile").read_text()
    stages = re.split(r"^FROM .* AS ", dockerfile, flags=re.MULTILINE)[1:]
    final = {stage.split()[0]: stage for stage in stages if not stage.startswith(("wheel", "base"))}
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"airflow", "training", "server"}
    assert set(final) == targets | {"spark"}
    assert [name for name, stage in final.items() if "\nUSER lifecycle\n" not in stage] == []


def test_an_image_is_built_by_one_service() -> None:
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert sorted(built) == sorted(set(built))
    ours = {service["image"] for service in SERVICES.values() if service["image"].startswith("airflow-ml")}
    assert ours == set(built)


def test_the_servers_know_their_own_environment_only() -> None:
    for own, other in (("staging", "production"), ("production", "staging")):
        assert other not in json.dumps(SERVICES[f"server-{own}"])
