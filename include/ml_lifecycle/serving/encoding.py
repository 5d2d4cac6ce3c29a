"""Answers → the bytes of a V2 response, in JSON or with binary data behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.serving.dataplane import Query
from ml_lifecycle.serving.input_rules import as_parameters
from ml_lifecycle.serving.model import OnnxModel, Outputs
from ml_lifecycle.serving.types import announced

DATATYPES_OF_OUTPUTS = {"f": "FP32", "i": "INT64", "O": "BYTES"}


def encode_answer(
    route: Route, variant: Variant, query: Query, outputs: Outputs
) -> tuple[list[bytes], int | None]:
    """The body of the response in pieces, and the length of its JSON if binary data follows.

    Only the outputs that were asked for are in it.
    """
    wanted = {output.name: output.binary for output in query.outputs}
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, array in chosen_outputs(query, outputs).items():
        asked = wanted.get(name)
        one: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES_OF_OUTPUTS[array.dtype.kind],
            "shape": array.shape,
        }
        if query.binary if asked is None else asked:
            data = to_binary(array)
            one["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            one["data"] = array.tolist() if array.dtype.kind == "O" else array.ravel()
        described.append(one)
    text = orjson.dumps(
        {
            "model_name": route.endpoint,
            "model_version": variant.version,
            "id": query.id,
            "parameters": {"route_revision": route.revision, "model_digest": variant.model_digest},
            "outputs": described,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return [text, *binary], len(text) if binary else None


def chosen_outputs(query: Query, outputs: Outputs) -> Outputs:
    """Those that were asked for."""
    if not query.outputs:
        return outputs
    wanted = {output.name for output in query.outputs}
    return {name: array for name, array in outputs.items() if name in wanted}


def to_binary(array: NDArray[Any]) -> bytes:
    """Values as they lie in memory, little-endian; of BYTES each after its length in four bytes."""
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).tobytes()
    texts = [str(value).encode() for value in array.tolist()]
    return b"".join(piece for text in texts for piece in (len(text).to_bytes(4, "little"), text))


def describe(variant: Variant, model: OnnxModel) -> dict[str, Any]:
    """A model's inputs and outputs as the V2 metadata lists them, with what a contract says of the inputs."""
    return {
        "inputs": [
            {
                "name": column.name,
                "datatype": announced(column),
                "shape": [-1],
                **({"parameters": as_parameters(column.rules)} if column.rules is not None else {}),
            }
            for column in variant.columns
        ],
        "outputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [-1, len(variant.classes)] if name == "probabilities" else [-1],
            }
            for name, datatype in model.datatypes.items()
        ],
    }
