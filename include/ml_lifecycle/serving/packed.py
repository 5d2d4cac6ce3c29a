"""Large packed tensors in JSON: their numbers become an array without becoming Python's first.

simdjson reads numbers straight into a buffer of doubles, in less than half of the time. It is asked for one
form only, and whatever is not exactly that is left to the usual way, which says what is wrong with it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

try:
    import simdjson
except ImportError:  # no wheel for this Python, and no compiler: the usual way does all
    simdjson = None  # type: ignore[assignment]

WORTH_BYTES = 2_000
"""Below, looking twice costs more than it saves."""

_TENSOR_KEYS = ["data", "datatype", "name", "shape"]
# A parser is no thread's but one's, and keeps its buffers from one request to the next.
_own = threading.local()


@dataclass(frozen=True, slots=True)
class Packed:
    """A request of one packed tensor and nothing else but, perhaps, an id.

    :param values: as many as ``rows * width``
    """

    id: str | None
    name: str
    datatype: str
    rows: int
    width: int
    values: NDArray[np.float64]


def read_packed(body: bytes) -> Packed | None:
    """The packed tensor of a request's JSON; None if it is anything else, right or wrong."""
    # The lists of inputs, of a shape and of its data; of lists within the data it would make one.
    if simdjson is None or body.count(b"[") != 3:
        return None
    try:
        parser = _own.parser
    except AttributeError:
        parser = _own.parser = simdjson.Parser()
    try:
        request = parser.parse(body)
        # Names that come twice would be found here the other way round than orjson finds them.
        keys = sorted(request.keys())
        if keys not in (["inputs"], ["id", "inputs"]):
            return None
        inputs = request["inputs"]
        if len(inputs) != 1 or sorted(inputs[0].keys()) != _TENSOR_KEYS:
            return None
        tensor = inputs[0]
        shape, name, datatype = tensor["shape"].as_list(), tensor["name"], tensor["datatype"]
        data = tensor["data"]
        rows, width = shape
        if type(rows) is not int or type(width) is not int or rows < 1 or width < 1:
            return None
        values = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
        request_id = request["id"] if len(keys) == 2 else None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError):
        return None
    plain = isinstance(name, str) and isinstance(datatype, str)
    if not plain or not (request_id is None or isinstance(request_id, str)) or len(values) != rows * width:
        return None
    return Packed(request_id, name, datatype, rows, width, values)
