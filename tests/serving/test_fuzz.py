"""The V2 surface against what nobody would send on purpose, made from the server's own OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import live_client
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.openapi import document
from ml_lifecycle.serving.server import ModelServer
from tests.serving.conftest import TOKEN, Built, Publisher, row

MODELS = ("late", "line", "sizes")
# The same examples at every run; more of them in the full tests.
FEW = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=500)

# The token is tested elsewhere; here every request has it.
document_of = document("0", MODELS)
# Loading and unloading would take the models away that the other operations ask for.
schema = schemathesis.openapi.from_dict({**document_of, "security": []}).exclude(
    path_regex="repository/models"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[httpx.Client]:
    """The real server, in this process."""
    lake = Lake(str(tmp_path_factory.mktemp("fuzz")))
    publish = Publisher(lake, built)
    for endpoint, model in zip(MODELS, ("binary", "regression", "multiclass"), strict=True):
        publish(endpoint, model, 1, "1")
    with live_client(ModelServer(lake, "staging", TOKEN), TOKEN) as client:
        wait_until(lambda: all(client.get(f"/v2/models/{name}/ready").is_success for name in MODELS))
        yield client


def test_the_document_is_served_and_is_what_is_fuzzed(client: httpx.Client) -> None:
    served = client.get("/v2/openapi.json").json()
    served["info"]["version"] = "0"
    assert served == json.loads(json.dumps(document("0", MODELS)))


def _call(client: httpx.Client, case: schemathesis.Case) -> None:
    arguments = case.as_transport_kwargs(base_url=str(client.base_url))
    response = client.request(**arguments)
    case.validate_response(
        schemathesis.Response.from_any(response),
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
            unsupported_method,
        ],
    )


@schema.parametrize()
@FEW
def test_every_operation(client: httpx.Client, case: schemathesis.Case) -> None:
    _call(client, case)


@pytest.mark.full
@schema.parametrize()
@MANY
def test_every_operation_at_length(client: httpx.Client, case: schemathesis.Case) -> None:
    _call(client, case)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A good request with something replaced, removed or added somewhere."""
    request: Any = row()
    for _ in range(draw(st.integers(1, 3))):
        place = request
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if draw(st.booleans()) or not isinstance(place[key], dict | list):
                if draw(st.booleans()):
                    del place[key]
                else:
                    place[key] = draw(JSON)
                break
            place = place[key]
    return json.dumps(request).encode()


def _refused_or_answered(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v2/models/late/infer", content=body)
    assert response.status_code in (200, 400, 413), response.text
    content = response.json()
    assert ("outputs" in content) if response.is_success else len(content["error"]) < 2000


@FEW
@given(body=nearly_right() | st.binary(max_size=200))
def test_bodies_that_are_nearly_right(client: httpx.Client, body: bytes) -> None:
    _refused_or_answered(client, body)


@pytest.mark.full
@settings(MANY, max_examples=5000)
@given(body=nearly_right() | st.binary(max_size=2000))
def test_bodies_that_are_nearly_right_at_length(client: httpx.Client, body: bytes) -> None:
    _refused_or_answered(client, body)
