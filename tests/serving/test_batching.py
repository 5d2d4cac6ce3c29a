"""Requests that come together are scored together, and never pay for each other's faults."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from ml_lifecycle.delivery.route import Pointer
from ml_lifecycle.serving.batching import Batcher, Job, Waiting
from ml_lifecycle.serving.dataplane import Scored, ServedRoute
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.queries import Asked, decode_query
from ml_lifecycle.serving.routes import RouteLoader
from tests.serving.conftest import Publisher, row

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Round:
    """Jobs submitted in one round of an event loop, and what came of them."""

    def __init__(self, rows: int = 256) -> None:
        self.batches: list[list[str]] = []
        self.answers: dict[str, Any] = {}
        self.errors: dict[str, Exception] = {}
        self._rows = rows

    def run(self, *asked: tuple[ServedRoute, dict[str, Any]]) -> None:
        async def submit() -> None:
            batcher = Batcher(self._scored, self._failed, self._rows)
            for served, request in asked:
                body = json.dumps(request).encode()
                loaded, query = decode_query(body, None, Asked(served, NOW), 1_000)
                batcher.submit(self._job(served), loaded, query)
            assert not self.batches, "nothing is scored before the round ends"
            await asyncio.sleep(0)

        asyncio.run(submit())

    def _job(self, served: ServedRoute) -> Job:
        def nothing(*_: object) -> Any:
            raise AssertionError("the batcher has no use for it")

        return Job(served, 1, 0.0, nothing, nothing, nothing, nothing)

    def _failed(self, waiting: Waiting, error: Exception) -> None:
        self.errors[waiting.query.id] = error

    def _scored(self, jobs: Any, scored: Scored) -> None:
        self.batches.append([query.id for query in scored.queries])
        for query, outputs in scored.each():
            self.answers[query.id] = outputs


def served(publisher: Publisher, endpoint: str, model: str, version: str = "1") -> ServedRoute:
    route = publisher(endpoint, model, int(version), version)
    return RouteLoader(publisher.lake, Metrics("test")).load(route, Pointer(int(version), "", ""))


def packed(name: str, *rows: tuple[float | None, float | None]) -> dict[str, Any]:
    data = [value for one in rows for value in one]
    return {
        "id": name,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": data}],
    }


def test_what_comes_together_is_scored_together_and_each_gets_its_own(publisher: Publisher) -> None:
    late = served(publisher, "late", "binary")
    requests = [{**row(wind=4 + number / 8, hour=15), "id": str(number)} for number in range(20)]
    together = Round()
    together.run(*((late, request) for request in requests))
    assert together.batches == [[str(number) for number in range(20)]]
    for request in requests:
        alone = Round()
        alone.run((late, request))
        for name, array in alone.answers[request["id"]].items():
            np.testing.assert_allclose(together.answers[request["id"]][name], array, atol=1e-6)
    assert len({answer["probabilities"].tobytes() for answer in together.answers.values()}) == 20


def test_every_endpoint_and_revision_has_batches_of_its_own(publisher: Publisher) -> None:
    one, other = served(publisher, "line", "regression"), served(publisher, "sizes", "multiclass")
    again = served(publisher, "line", "regression", "2")
    together = Round()
    together.run(
        (one, packed("a", (1, 2))),
        (other, packed("b", (1, 2))),
        (one, packed("c", (3, 4), (5, 6))),
        (again, packed("d", (1, 2))),
    )
    assert together.batches == [["a", "c"], ["b"], ["d"]]
    assert together.answers["c"]["prediction"].shape == (2,)
    assert "label" in together.answers["b"]


def test_a_batch_has_a_bound_and_a_large_request_is_not_split(publisher: Publisher) -> None:
    line = served(publisher, "line", "regression")
    together = Round(rows=4)
    sizes = {"a": 3, "b": 1, "c": 2, "d": 9, "e": 1}
    together.run(*((line, packed(name, *[(1.0, 2.0)] * size)) for name, size in sizes.items()))
    assert together.batches == [["a", "b"], ["c"], ["d"], ["e"]]
    assert {name: len(answer["prediction"]) for name, answer in together.answers.items()} == sizes


def test_one_request_at_fault_fails_alone(publisher: Publisher) -> None:
    line = served(publisher, "line", "regression")
    together = Round()
    together.run(
        (line, packed("good", (1, 2))),
        (line, packed("null", (1, None))),
        (line, packed("large", (1e300, 2))),
        (line, packed("fine", (None, 2))),
    )
    assert together.answers.keys() == {"good", "fine"}
    assert "'b' (from the request) is null in row 0" in str(together.errors["null"])
    assert "exceeds a 32-bit float" in str(together.errors["large"])
    assert all(isinstance(error, ServingError) for error in together.errors.values())


@pytest.mark.parametrize("mixed", [True, False])
def test_columns_and_packed_tensors_may_meet(publisher: Publisher, mixed: bool) -> None:
    line = served(publisher, "line", "regression")
    columns = {
        "id": "columns",
        "inputs": [
            {"name": "b", "datatype": "FP32", "shape": [1], "data": [2]},
            {"name": "a", "datatype": "FP64", "shape": [1, 1], "data": [[1.5]]},
        ],
    }
    together = Round()
    together.run(
        (line, columns), (line, packed("packed", (1.5, 2)) if mixed else {**columns, "id": "packed"})
    )
    assert len(together.batches) == 1
    first, second = together.answers.values()
    np.testing.assert_array_equal(first["prediction"], second["prediction"])


def test_queries_without_id_get_one(publisher: Publisher) -> None:
    line = served(publisher, "line", "regression")
    request = packed("x", (1, 2))
    del request["id"]
    body = json.dumps(request).encode()
    ids: set[str] = set()
    for _ in range(4):  # the first is read thoroughly, the others quickly
        _, query = decode_query(body, None, Asked(line, NOW), 10)
        ids.add(query.id)
    assert len(ids) == 4
