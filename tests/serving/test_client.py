from __future__ import annotations

import math
import socket
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from waiting import wait_until

from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.client import ModelClient, RequestRefusedError
from tests.serving.conftest import COLUMNS, NUMERIC, Publisher, Server, logged


def test_columns_in_outputs_out(publisher: Publisher, start: Callable[..., Server]) -> None:
    publisher("late", "binary", 3, "1")
    publisher("line", "regression", 1, "1")
    server = start(publisher.lake)
    moments = [datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 2, tzinfo=UTC)]
    with server.client() as client:
        wait_until(lambda: client.ready("late") and client.ready("line"))
        assert client.ready()
        assert not client.ready("late", version="2")
        answer = client.infer(
            "late",
            {"hour": [1, 23], "wind": [math.nan, 60.0], "carrier": [None, "UA"]},
            COLUMNS,
            version="1",
            request_id="replay",
            event_time=moments,
            entities={"flight": [1, 2]},
        )
        assert (answer.id, answer.model_version, answer.route_revision) == ("replay", "1", 3)
        assert answer.model_digest == publisher.built["binary"].variant("1").model_digest
        assert answer.outputs["label"] == [0, 1]
        assert [len(row) for row in answer.outputs["probabilities"]] == [2, 2]
        line = client.infer("line", {"a": [1.5], "b": [0.25]}, NUMERIC, event_time=moments[0])
        assert line.outputs["prediction"] == pytest.approx([4.25], abs=1e-4)
        with pytest.raises(RequestRefusedError, match="takes no null") as refused:
            client.infer("line", {"a": [1.5], "b": [None]}, NUMERIC)
        assert refused.value.status == 400
        assert not refused.value.retryable
        with pytest.raises(RequestRefusedError, match="404"):
            client.metadata("none")
    with ModelClient(server.url, "wrong") as stranger:
        assert stranger.ready()
        with pytest.raises(RequestRefusedError, match="401"):
            stranger.ready("late")
        with pytest.raises(RequestRefusedError, match="401"):
            stranger.metadata("late")
    server.stop()
    frame = logged(publisher.lake).filter(prediction_id="replay").sort("row")
    assert frame["event_time"].to_list() == moments
    assert frame["entity_keys"].to_list() == ['{"flight":1}', '{"flight":2}']


def test_no_server_is_worth_a_retry() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with ModelClient(url, "token") as client:
            for call in (client.ready, lambda: client.metadata("late"), lambda: client.post("late", {})):
                with pytest.raises(ServerUnavailableError, match="no answer") as unavailable:
                    call()
                assert unavailable.value.retryable
