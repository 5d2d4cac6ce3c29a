"""The examples' raw files reach any lake: a folder, or an object store."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.__main__ import main, read_access, wait_for_stack
from ml_lifecycle.demo.airflow import DemoError
from ml_lifecycle.demo.files import landing_folder


@pytest.fixture(params=["folder", "object store"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path / "lake"))
    return Lake(f"memory://bucket-{uuid.uuid4().hex}/prefix")


def write(lake: Lake, name: str, text: str) -> None:
    with landing_folder(lake) as folder:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_is_written_lies_below_landing(lake: Lake) -> None:
    write(lake, "flights/1.csv", "one")
    write(lake, "planes.csv", "two")
    assert list(lake.list("landing")) == ["landing/flights/1.csv", "landing/planes.csv"]
    assert lake.read_bytes("landing/flights/1.csv") == b"one"


def test_what_an_object_store_has_is_not_sent_again() -> None:
    lake = Lake(f"memory://bucket-{uuid.uuid4().hex}/prefix")
    write(lake, "planes.csv", "one")
    before = lake.filesystem.info(lake.full_path("landing/planes.csv"))["created"]
    write(lake, "planes.csv", "one")
    assert lake.filesystem.info(lake.full_path("landing/planes.csv"))["created"] == before


def test_a_write_that_fails_lands_nothing_in_an_object_store() -> None:
    lake = Lake(f"memory://bucket-{uuid.uuid4().hex}/prefix")

    def fail() -> None:
        with landing_folder(lake) as folder:
            (folder / "half.csv").write_text("ha")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert list(lake.list("landing")) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_folder": "x"}', '{"model_folder": 1}'])
def test_a_file_that_does_not_say_how_to_reach_a_stack(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "access.json"
    path.write_text(content)
    with pytest.raises(DemoError, match=r"access\.json does not say how to reach a stack"):
        read_access(path)
    assert main(["--access", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def write_access(path: Path) -> Path:
    texts = ("airflow_url", "mlflow_url", "lake", "production_lake", "production_url", "production_token")
    fields = {name: name for name in (*texts, "production_online_store")}
    path.write_text(json.dumps(fields | {"passwords": {"admin": "x"}, "model_folder": "/dags/models/m"}))
    return path


def test_access_is_read_as_it_is_written(tmp_path: Path) -> None:
    access = read_access(write_access(tmp_path / "access.json"))
    assert access.passwords == {"admin": "x"}
    assert access.model_folder == Path("/dags/models/m")
    assert access.production_url == "production_url"
    assert access.airflow_page is None


PARTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")


@pytest.fixture
def stack() -> Iterator[tuple[str, dict[str, str]]]:
    """A server that says what Airflow and a model server would; its URL, and its parts' states to be set."""
    states = dict.fromkeys(PARTS, "healthy")

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({name: {"status": states[name]} for name in states}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", states
        server.shutdown()


def test_the_demo_begins_when_all_is_there(stack: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, states = stack
    access = replace(read_access(write_access(tmp_path / "a.json")), airflow_url=url, production_url=url)
    wait_for_stack(access, timeout=0)
    states["triggerer"] = "unhealthy"
    with pytest.raises(DemoError, match=r"not there after 0 s: triggerer$"):
        wait_for_stack(access, timeout=0)
    with pytest.raises(DemoError, match=r"the production server at http://127\.0\.0\.1:1 "):
        wait_for_stack(replace(access, production_url="http://127.0.0.1:1"), timeout=0)
    with pytest.raises(DemoError, match=r"Airflow at http://127\.0\.0\.1:1 "):
        wait_for_stack(replace(access, airflow_url="http://127.0.0.1:1"), timeout=0)
