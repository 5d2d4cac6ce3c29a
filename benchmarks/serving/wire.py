"""The bytes of requests, and what answers say: the Open Inference Protocol V2, MLflow's and BentoML's own."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models import Model, Rows

JSON = {"Content-Type": "application/json"}
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_DATATYPES = {"float": "FP32", "string": "BYTES"}
_TYPES = {"FP32": np.float32, "INT64": np.int64}

# A request's body, and the headers it needs.
Body = tuple[bytes, Mapping[str, str]]


@dataclass(frozen=True)
class Said:
    """What an answer says.

    :param probabilities: flat, row by row
    :param labels: None where the protocol does not carry them
    :param version: of the model that answered; empty where the protocol does not say
    """

    probabilities: Sequence[float] | NDArray[Any]
    labels: Sequence[Any] | NDArray[Any] | None = None
    version: str = ""


class V2:
    """The Open Inference Protocol's REST: JSON, or tensors as raw bytes behind a JSON header.

    :param binary: ask with, and for, raw bytes
    """

    def __init__(self, binary: bool = False) -> None:
        self._binary = binary

    def bodies(self, model: Model, rows: Rows, size: int) -> Iterator[Body]:
        """A body for each ``size`` rows."""
        if not model.packed:
            return (_json({"inputs": _columns(model, part)}) for part in _parts(rows, size))
        matrices = _matrices(model, rows, size)
        if self._binary:
            return (_raw(matrix) for matrix in matrices)
        return (_json({"inputs": [{**_tensor(matrix), "data": matrix.ravel()}]}) for matrix in matrices)

    def read(self, head: bytes, body: bytes) -> Said:
        """The answer's outputs."""
        size = header(head, b"inference-header-content-length")
        if size:
            answer, raw = orjson.loads(body[: int(size)]), body[int(size) :]
            outputs = _raw_outputs(answer["outputs"], raw)
        else:
            answer = orjson.loads(body)
            outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return Said(outputs["probabilities"], outputs["label"], str(answer.get("model_version", "")))


class Mlflow:
    """What ``mlflow models serve`` takes for models of several tensors: ``inputs``, a list a column."""

    def bodies(self, model: Model, rows: Rows, size: int) -> Iterator[Body]:
        """A body for each ``size`` rows."""
        for part in _parts(rows, size):
            yield _json({"inputs": {name: _listed(values) for name, values in part.items()}})

    def read(self, head: bytes, body: bytes) -> Said:
        """The answer's outputs."""
        outputs = orjson.loads(body)["predictions"]
        return Said([value for row in outputs["probabilities"] for value in row], outputs["label"])


class Bento:
    """The JSON of our BentoML service: its method's arguments by name; it returns the probabilities."""

    def bodies(self, model: Model, rows: Rows, size: int) -> Iterator[Body]:
        """A body for each ``size`` rows."""
        if model.packed:
            yield from (_json({"rows": matrix}) for matrix in _matrices(model, rows, size))
            return
        for part in _parts(rows, size):
            columns = {
                name: values.tolist() if values.dtype == object else values for name, values in part.items()
            }
            yield _json(columns)

    def read(self, head: bytes, body: bytes) -> Said:
        """The answer's probabilities."""
        return Said([value for row in orjson.loads(body) for value in row])


Protocol = V2 | Mlflow | Bento


def request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def split(answer: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer; chunks are put together."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if header(head, b"transfer-encoding") == b"chunked":
        body = b"".join(_chunks(body))
    return int(head[9:12]), head, body


def header(head: bytes, name: bytes) -> bytes:
    """A header's value; empty if it is not there. ``name`` is given in lower case."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        yield body[end + 2 : end + 2 + size]
        at = end + size + 4


def _json(content: Any) -> Body:
    return orjson.dumps(content, option=_NUMPY), JSON


def _parts(rows: Rows, size: int) -> Iterator[Rows]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in rows.items()}


def _matrices(model: Model, rows: Rows, size: int) -> Iterator[NDArray[np.float32]]:
    matrix = np.stack([rows[column.name] for column in model.columns], axis=1)
    return (matrix[start : start + size] for start in range(0, len(matrix), size))


def _tensor(matrix: NDArray[np.float32]) -> dict[str, Any]:
    return {"name": "rows", "datatype": "FP32", "shape": list(matrix.shape)}


def _columns(model: Model, part: Rows) -> list[dict[str, Any]]:
    return [
        {
            "name": column.name,
            "datatype": _DATATYPES[column.type],
            "shape": [len(part[column.name]), 1],
            "data": part[column.name].tolist() if column.type == "string" else part[column.name],
        }
        for column in model.columns
    ]


def _listed(values: NDArray[Any]) -> Any:
    return values.reshape(-1, 1).tolist() if values.dtype == object else values.reshape(-1, 1)


def _raw(matrix: NDArray[np.float32]) -> Body:
    raw = matrix.tobytes()
    head = {
        "inputs": [{**_tensor(matrix), "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    start = orjson.dumps(head)
    return start + raw, {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(start)),
    }


def _raw_outputs(outputs: Sequence[Mapping[str, Any]], raw: bytes) -> dict[str, Any]:
    read, at = {}, 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            read[output["name"]] = output["data"]
            continue
        part, at = raw[at : at + size], at + size
        name, datatype = output["name"], output["datatype"]
        read[name] = list(_texts(part)) if datatype == "BYTES" else np.frombuffer(part, _TYPES[datatype])
    return read


def _texts(raw: bytes) -> Iterator[str]:
    """BYTES: each value behind its length, four bytes, the lowest first."""
    at = 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + size].decode()
        at += 4 + size
