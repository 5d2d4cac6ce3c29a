"""A contract's rules on a model's inputs: in the metadata, counted, and, where that is wanted, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from live_server import live_client
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import ColumnSpec, InputRules
from ml_lifecycle.serving.server import ModelServer
from tests.serving.conftest import COLUMNS, NUMERIC, TOKEN, Built, Publisher, Server, logged, row
from tests.serving.test_grpc import Client, free_port, request_of
from tests.serving.test_resolver import MemoryReader, by_keys, wait_for, with_registry

CARRIER = InputRules("flights.carrier", "string", allowed_values=("AA", "UA"))
WIND = InputRules("weather.wind", "float", min=0, max=100)
HOUR = InputRules("flights.hour", "integer", nullable=False, min=0, max=23)
NUMBER = InputRules("numbers.a", "integer", nullable=False, min=-5)


def ruled(
    columns: tuple[ColumnSpec, ...], *rules: InputRules | None, **changes: Any
) -> tuple[ColumnSpec, ...]:
    return tuple(replace(one, rules=rule, **changes) for one, rule in zip(columns, rules, strict=True))


RULED = ruled(COLUMNS, CARRIER, WIND, HOUR)
SECRET = ruled(COLUMNS, CARRIER, WIND, HOUR, personal=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[tuple[Server, int]]:
    publish = Publisher(Lake(str(tmp_path_factory.mktemp("rules"))), built)
    publish("plain", "binary", 1, "1")
    publish("reports", "binary", 1, "1", columns=RULED)
    publish("refuses", "binary", 1, "1", columns=RULED, broken_rules="refuse")
    publish("secret", "binary", 1, "1", columns=SECRET, broken_rules="refuse")
    publish("packed", "regression", 1, "1", columns=ruled(NUMERIC, NUMBER, None), broken_rules="refuse")
    publish("packed-secret", "regression", 1, "1", columns=ruled(NUMERIC, NUMBER, None, personal=True))
    publish("says", "regression", 1, "1", columns=ruled(NUMERIC, InputRules("numbers.a", "float"), None))
    port = free_port()
    running = Server(publish.lake, "--grpc-port", str(port))
    try:
        with running.client() as client:
            wait_until(
                lambda: all(
                    map(
                        client.ready,
                        ("plain", "reports", "refuses", "secret", "packed", "packed-secret", "says"),
                    )
                )
            )
        yield running, port
    finally:
        assert running.stop() == 0


@pytest.fixture
def http(server: tuple[Server, int]) -> Iterator[httpx.Client]:
    with server[0].http() as client:
        yield client


@pytest.fixture
def call(server: tuple[Server, int]) -> Iterator[Client]:
    client = Client(server[1])
    yield client
    client.channel.close()


def infer(http: httpx.Client, model: str, request: dict[str, Any]) -> httpx.Response:
    return http.post(f"/v2/models/{model}/infer", json=request)


def counted(text: str, endpoint: str) -> dict[tuple[str, str, str, str], float]:
    """Feature, rule, origin and outcome → how many values."""
    found = {}
    for line in text.splitlines():
        if line.startswith("ml_lifecycle_input_rules_broken_total{"):
            labels, _, value = line.partition("} ")
            said = dict(one.split("=") for one in labels.partition("{")[2].split(","))
            said = {name: text.strip('"') for name, text in said.items()}
            if said["endpoint"] == endpoint:
                found[said["feature"], said["rule"], said["origin"], said["outcome"]] = float(value)
    return found


def rows(*given: tuple[Any, Any, Any]) -> dict[str, Any]:
    names = zip(
        ("carrier", "wind", "hour"), ("BYTES", "FP32", "INT64"), zip(*given, strict=True), strict=True
    )
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [len(given)], "data": list(values)}
            for name, datatype, values in names
        ]
    }


def test_metadata_say_what_the_contract_says(http: httpx.Client, call: Client) -> None:
    plain, told = (http.get(f"/v2/models/{name}").json() for name in ("plain", "refuses"))
    assert [one | {"parameters": None} for one in told["inputs"]] == [
        one | {"parameters": None} for one in plain["inputs"]
    ]
    assert all("parameters" not in one for one in plain["inputs"])
    assert "broken_rules" not in plain["parameters"]
    assert told["parameters"]["broken_rules"] == "refuse"
    said = {one["name"]: one["parameters"] for one in told["inputs"]}
    assert said == {
        "carrier": {
            "contract": "flights.carrier",
            "type": "string",
            "nullable": True,
            "allowed_values": ["AA", "UA"],
        },
        "wind": {"contract": "weather.wind", "type": "float", "nullable": True, "min": 0.0, "max": 100.0},
        "hour": {"contract": "flights.hour", "type": "integer", "nullable": False, "min": 0.0, "max": 23.0},
    }
    over_grpc = {}
    for one in call("ModelMetadata", name="refuses").inputs:
        values = {
            name: getattr(given, given.WhichOneof("parameter_choice"))
            for name, given in one.parameters.items()
        }
        if "allowed_values" in values:
            values["allowed_values"] = json.loads(values["allowed_values"])
        over_grpc[one.name] = values
    assert over_grpc == said
    assert not any(one.parameters for one in call("ModelMetadata", name="plain").inputs)
    # What no value can break is told, and costs nothing.
    says = http.get("/v2/models/says").json()
    assert says["inputs"][0]["parameters"] == {"contract": "numbers.a", "type": "float", "nullable": True}
    assert "broken_rules" not in says["parameters"]
    schema = http.get("/v2/openapi.json").json()["components"]["schemas"]["ModelMetadata"]
    assert {*said["wind"], *said["carrier"], "pattern"} == {
        *schema["properties"]["inputs"]["items"]["properties"]["parameters"]["properties"]
    }


def test_broken_rules_are_counted_and_change_no_answer(http: httpx.Client) -> None:
    odd = rows(("XX", -1.0, 17), ("AA", None, 24), (None, 100.0, 23), ("", 101.0, -1))
    plain, answered = (infer(http, name, odd).json() for name in ("plain", "reports"))
    assert answered["outputs"] == plain["outputs"]
    expected = {
        ("carrier", "allowed_values", "request", "answered"): 1.0,
        ("wind", "range", "request", "answered"): 2.0,
        ("hour", "range", "request", "answered"): 2.0,
    }
    text = http.get("/metrics").text
    assert counted(text, "reports") == expected
    assert counted(text, "plain") == {}
    infer(http, "reports", rows(("AA", 0.0, 0), ("UA", 100.0, 23), (None, None, 5)))
    assert counted(http.get("/metrics").text, "reports") == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            [("AA", 1.0, 1), ("AB", 1.0, 1)],
            "column 'carrier' (from the request), row 1: expected one of AA, UA (allowed_values of "
            "flights.carrier in the model's contract), got 'AB'",
        ),
        (
            [("AA", 100.5, 24)],
            "column 'wind' (from the request), row 0: expected 0 to 100 (range of weather.wind in the "
            "model's contract), got 100.5; and 1 more",
        ),
        (
            [("AA", None, 1), ("", 1.0, -1), ("UA", 2.0, -2)],
            "column 'hour' (from the request), row 1: expected 0 to 23 (range of flights.hour in the model's "
            "contract), got -1; and 1 more",
        ),
    ],
)
def test_broken_rules_may_be_refused(http: httpx.Client, given: list[Any], error: str) -> None:
    before = counted(http.get("/metrics").text, "refuses")
    answer = infer(http, "refuses", rows(*given))
    assert (answer.status_code, answer.json()) == (400, {"error": error})
    after = counted(http.get("/metrics").text, "refuses")
    assert {key[3] for key in after} == {"refused"}
    assert sum(after.values()) > sum(before.values())
    assert infer(http, "refuses", rows(("AA", 0, 23), (None, None, 0))).status_code == 200


def test_personal_values_are_masked(http: httpx.Client) -> None:
    error = infer(http, "secret", rows(("nobody", 1.0, 1))).json()["error"]
    assert error.endswith("(allowed_values of flights.carrier in the model's contract), got ***")
    error = infer(http, "secret", rows(("AA", 777.0, 1))).json()["error"]
    assert error.endswith("(range of weather.wind in the model's contract), got ***")


@pytest.mark.parametrize(
    ("carrier", "wind", "hour", "kind"),
    [
        (4242, 1.0, 1, "INT64"),
        ("AA", "4242", 1, "INT64"),
        ("AA", 1.0, "4242", "INT64"),
        ("AA", 1.0, 4242, "INT8"),
    ],
)
def test_personal_values_of_a_wrong_type_are_masked(
    http: httpx.Client, carrier: Any, wind: Any, hour: Any, kind: str
) -> None:
    request = rows((carrier, wind, hour))
    request["inputs"][2]["datatype"] = kind
    answer = infer(http, "secret", request)
    assert (answer.status_code, "***" in answer.json()["error"]) == (400, True)
    assert "4242" not in answer.text


def test_personal_values_of_a_packed_tensor_are_masked(http: httpx.Client) -> None:
    tensor: dict[str, Any] = {"name": "rows", "datatype": "FP32", "shape": [1, 2], "data": ["4242", 0.5]}
    error = infer(http, "packed-secret", {"inputs": [tensor]}).json()["error"]
    assert error == "column 'a' (from the request), row 0: expected a number, got ***"


def binary(wind: float, hour: int) -> tuple[bytes, dict[str, str]]:
    pieces = [b"\2\0\0\0AA", np.float32(wind).tobytes(), np.int64(hour).tobytes()]
    kinds = (("carrier", "BYTES"), ("wind", "FP32"), ("hour", "INT64"))
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "parameters": {"binary_data_size": len(piece)}}
        for (name, kind), piece in zip(kinds, pieces, strict=True)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(pieces), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    ("wind", "hour", "refused"),
    [(float("nan"), 1, None), (-0.5, 1, "column 'wind'"), (1.0, 99, "column 'hour'")],
)
def test_binary_tensors_are_held_to_the_same(
    http: httpx.Client, wind: float, hour: int, refused: str | None
) -> None:
    body, headers = binary(wind, hour)
    answer = http.post("/v2/models/refuses/infer", content=body, headers=headers)
    assert answer.status_code == (400 if refused else 200), answer.text
    assert refused is None or refused in answer.json()["error"]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([-5.0, 0.5, 7.0, -0.5], None),
        ([1.0, 0.5, -6.0, 0.0], "row 1: expected at least -5 (range of numbers.a"),
        ([1.5, 0.5, 2.0, 0.0], "row 0: expected a whole number (type of numbers.a"),
        ([1.0, 0.5, None, 0.0], "row 1: expected a value (not_null of numbers.a"),
    ],
)
def test_packed_tensors_are_held_to_the_same(
    http: httpx.Client, as_json: bool, values: list[Any], refused: str | None
) -> None:
    tensor: dict[str, Any] = {"name": "rows", "datatype": "FP32", "shape": [2, 2]}
    if as_json:
        answer = infer(http, "packed", {"inputs": [tensor | {"data": values}]})
    else:
        data = np.array([np.nan if one is None else one for one in values], np.float32).tobytes()
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = http.post("/v2/models/packed/infer", content=head + data, headers=headers)
    assert answer.status_code == (400 if refused else 200), answer.text
    assert refused is None or refused in answer.json()["error"]


def test_grpc_refuses_with_the_same_words(http: httpx.Client, call: Client) -> None:
    assert call("ModelInfer", request_of("refuses")).model_version == "1"
    request = request_of("refuses")
    request.inputs[2].contents.int64_contents[0] = 24
    with pytest.raises(grpc.RpcError) as refused:
        call("ModelInfer", request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == infer(http, "refuses", row(hour=24)).json()["error"]
    request = request_of("reports")
    request.inputs[2].contents.int64_contents[0] = 24
    assert call("ModelInfer", request).outputs


def test_who_keeps_the_rules_does_not_pay_for_who_comes_with_him(http: httpx.Client) -> None:
    """Large requests are decoded on threads, small ones are scored together: each is told its own."""
    many = [("AA", 1.0, number % 24) for number in range(5000)]
    assert infer(http, "refuses", rows(*many)).status_code == 200
    error = infer(http, "refuses", rows(*many, ("AA", 1.0, 24))).json()["error"]
    assert "row 5000: expected 0 to 23" in error


@pytest.mark.parametrize("policy", ["report", "refuse"])
def test_what_the_online_store_gives_is_counted_and_never_refused(publisher: Publisher, policy: str) -> None:
    columns = ruled(
        COLUMNS,
        replace(CARRIER, nullable=False, allowed_values=("UA",)),
        replace(WIND, nullable=False, max=10),
        HOUR,
    )
    with_registry(publisher, columns=columns, broken_rules=policy)
    server = ModelServer(
        publisher.lake, "test", TOKEN, "memory://", poll_seconds=0.02, reader_factory=MemoryReader
    )
    with live_client(server, TOKEN) as client:
        wait_for(client, 1)
        keys = by_keys(["EWR", "JFK"], [1, 2])
        assert client.post("/v2/models/late/infer", json=keys).status_code == 200
        assert counted(client.get("/metrics").text, "late") == {
            ("carrier", "allowed_values", "online_store", "answered"): 1.0,
            ("carrier", "not_null", "online_store", "answered"): 1.0,
            ("wind", "not_null", "online_store", "answered"): 1.0,
            ("wind", "range", "online_store", "answered"): 1.0,
        }
        wait_until(lambda: len(logged(publisher.lake)) == 2)


def test_what_a_canary_refuses_the_champion_answers(publisher: Publisher) -> None:
    from datetime import UTC, datetime

    from ml_lifecycle.delivery.route import Route, publish

    publisher("late", "binary", 1, "1")
    champion = publisher.built["binary"].variant("1")
    canary = replace(champion, role="canary", version="2", weight=1.0, columns=RULED, broken_rules="refuse")
    publish(
        publisher.lake,
        Route("late", "late", 2, (champion, canary), "0" * 64, datetime(2026, 1, 1, tzinfo=UTC)),
    )
    server = ModelServer(publisher.lake, "test", TOKEN, None, poll_seconds=0.02)
    with live_client(server, TOKEN) as client:
        wait_for(client, 2)
        assert client.post("/v2/models/late/infer", json=row()).json()["model_version"] == "2"
        answer = client.post("/v2/models/late/infer", json=row(hour=24))
        assert (answer.status_code, answer.json()["model_version"]) == (200, "1")
        text = client.get("/metrics").text
        assert counted(text, "late") == {("hour", "range", "request", "refused"): 1.0}
