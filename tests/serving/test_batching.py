"""Requests that come together are scored together, and never pay for each other's faults."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from ml_lifecycle.delivery.route import Pointer
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.batching import Batcher, Job, Result
from ml_lifecycle.serving.columns import Features, make_table
from ml_lifecycle.serving.dataplane import Query, ServedRoute
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.moments import microseconds
from ml_lifecycle.serving.queries import Asked, decode_query
from ml_lifecycle.serving.routes import RouteLoader
from tests.serving.conftest import Built, Publisher, row

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
            batcher = Batcher(self._take, self._rows)
            for served, request in asked:
                body = json.dumps(request).encode()
                loaded, query = decode_query(body, None, Asked(served, microseconds(NOW)), 1_000)
                batcher.submit(self._job(served), loaded, query)
            assert not self.batches, "nothing is scored before the round ends"
            await asyncio.sleep(0)

        asyncio.run(submit())

    def _job(self, served: ServedRoute) -> Job:
        def nothing(*_: object) -> Any:
            raise AssertionError("the batcher has no use for it")

        return Job(
            Asked(served, microseconds(NOW)),
            False,
            0.0,
            nothing,
            lambda scored, query, outputs: outputs,
            nothing,
            nothing,
        )

    def _take(self, results: list[Result]) -> None:
        for batch, scored, answers in results:
            if isinstance(scored, Exception):
                self.errors[batch[0].query.id] = scored
                continue
            self.batches.append([query.id for query in scored.queries])
            for one, outputs in zip(batch, answers, strict=True):
                self.answers[one.query.id] = outputs


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
        _, query = decode_query(body, None, Asked(line, microseconds(NOW)), 10)
        ids.add(query.id)
    assert len(ids) == 4


def whole_numbers() -> Built:
    """A file that answers with the whole number it was given."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["n"], ["prediction"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["m"], ["unused"]),
        ],
        "numbers",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [None, 1]) for name in ("n", "m")],
        [
            helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("unused", TensorProto.INT64, [None, 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    columns = (ColumnSpec("n", "int"), ColumnSpec("m", "int"))
    return Built(model.SerializeToString(), None, "regression", columns, ())


def test_a_neighbour_changes_no_whole_number_and_hides_no_fault(publisher: Publisher) -> None:
    publisher.built = {**publisher.built, "numbers": whole_numbers()}
    numbers = served(publisher, "numbers", "numbers")

    def query(n: Any, m: Any = 1) -> Query:
        values = [[n] if isinstance(n, int) else n, [m]]
        return Query(1, Features(1, values, "request"), {}, None, "q", 0)

    large, beyond = 2**53 + 1, np.array([2**63], dtype=np.uint64)
    small = np.array([3], dtype=np.uint64)
    packed = Query(1, Features(1, np.array([[3.7, 1.0]]), "request"), {}, None, "p", 0)
    specs = numbers.champion.variant.columns
    together = make_table(specs, [one.features for one in (query(large), query(small)) if one.features])
    assert together.columns["n"].tolist() == [large, 3]
    assert together.given["n"].dtype == np.int64  # type: ignore[union-attr]
    for wrong, message in ((query(beyond), "exceeds a 64-bit integer"), (packed, "expected a whole number")):
        for others in ([], [query(large)], [query(small)]):
            with pytest.raises(ServingError, match=message):
                numbers.champion.score(numbers.route, [*others, wrong])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("shape", [[1, True], [1.0], [1, 1.0], [True]])
def test_a_shape_is_read_the_same_way_the_first_time_and_later(
    publisher: Publisher, shape: list[Any], first: bool
) -> None:
    line = served(publisher, "line", "regression")
    column = {"name": "a", "datatype": "FP32", "shape": [1], "data": [1.5]}
    asked = Asked(line, microseconds(NOW))
    if not first:
        good = {"inputs": [column, {**column, "name": "b"}]}
        decode_query(json.dumps(good).encode(), None, asked, 10)
    for place in (0, 1):
        inputs = [dict(column), {**column, "name": "b"}]
        inputs[place]["shape"] = shape
        with pytest.raises(ServingError, match="shape"):
            decode_query(json.dumps({"inputs": inputs}).encode(), None, asked, 10)
