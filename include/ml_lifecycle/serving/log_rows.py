"""What was answered, put aside for the prediction log in the moment it is answered."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.serving.columns import Matrix, Origin
from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.types import Values

_GROWN_ROWS = 256


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Requests that were answered together; they become as many rows as were scored.

    :param latencies_ms: one a request: from its arrival to its answer being ready
    :param size: bytes of the requests: about what their rows take while they wait
    """

    scored: Scored
    latencies_ms: Sequence[float]
    size: int = 0
    returned: bool = True

    @property
    def rows(self) -> int:
        """How many were scored."""
        return self.scored.table.rows


@dataclass(frozen=True, slots=True)
class FailedEntry:
    """A request that its variant could not answer: its rows have neither features nor outputs.

    :param latency_ms: from its arrival to the error
    :param status: what the client was told, or would have been if nobody else had answered
    """

    route: Route
    variant: Variant
    query: Query
    latency_ms: float
    status: int
    size: int = 0
    returned: bool = True

    @property
    def rows(self) -> int:
        """How many were to be scored."""
        return self.query.rows


class Grown:
    """An array that grows block by block in one piece of memory.

    :param first: the first block; later ones have as many columns
    """

    def __init__(self, first: NDArray[Any]) -> None:
        self._data = np.empty((max(_GROWN_ROWS, len(first)), *first.shape[1:]), first.dtype)
        self._rows = 0
        self.extend(first)

    def extend(self, block: NDArray[Any]) -> None:
        """Copy a block in."""
        end = self._rows + len(block)
        if block.dtype != self._data.dtype:
            self._data = self._data.astype(np.result_type(self._data, block), copy=False)
        if end > len(self._data):
            data = np.empty((2 * end, *self._data.shape[1:]), self._data.dtype)
            data[: self._rows] = self._data[: self._rows]
            self._data = data
        self._data[self._rows : end] = block
        self._rows = end

    @property
    def whole(self) -> NDArray[Any]:
        """All rows."""
        return self._data[: self._rows]


@dataclass(slots=True)
class Rows:
    """Rows of one kind, gathered as they are answered: a frame is made of thousands at once.

    What a row needs is copied while it is at hand, and nothing else is kept alive. To look for it later, in
    thousands of requests, and to take those apart, stopped everybody's answers for 4 µs a row.

    :param status: 200; of requests that failed, their entries'
    :param origin: where features came from; None of requests that failed
    :param values: ``packed`` or ``features:NAME``, and ``outputs:NAME`` → values of all rows
    :param unknown: numbers of the rows whose entity keys the online store did not know
    :param scored: how many rows there are by now
    :param ends: of each entry: how many requests there are up to its last
    """

    route: Route
    variant: Variant
    returned: bool
    status: int
    origin: Origin | None
    ids: list[str] = field(default_factory=list)
    received_us: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    event_times: list[Sequence[datetime | None] | None] = field(default_factory=list)
    entities: list[Mapping[str, Sequence[Any]] | None] = field(default_factory=list)
    values: dict[str, Grown | list[Any]] = field(default_factory=dict)
    unknown: array[int] = field(default_factory=lambda: array("q"))
    scored: int = 0
    ends: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, entry: LogEntry | FailedEntry) -> None:
        """Take what the rows of an entry need. It is of this kind: see :func:`kind_of_entry`."""
        if isinstance(entry, FailedEntry):
            queries: Sequence[Query] = (entry.query,)
            self.latencies_ms.append(entry.latency_ms)
        else:
            queries = entry.scored.queries
            self.latencies_ms.extend(entry.latencies_ms)
            self._add_values(entry.scored)
        for query in queries:
            self.ids.append(query.id)
            self.received_us.append(query.received_us)
            self.counts.append(query.rows)
            self.event_times.append(query.event_times)
            self.entities.append(query.entities or None)
        self.ends.append(len(self.ids))
        self.sizes.append(entry.size)

    def _add_values(self, scored: Scored) -> None:
        table = scored.table
        if any(len(values) != table.rows for values in scored.outputs.values()):
            raise ValueError(f"{table.rows} rows were scored, the model gave as many outputs as for others")
        if isinstance(table, Matrix):
            self._extend("packed", table.packed)
        else:
            for name, values in table.given.items():
                self._extend(f"features:{name}", values)
        for name, values in scored.outputs.items():
            self._extend(f"outputs:{name}", values)
        if table.unknown:
            self.unknown.extend(self.scored + number for number in table.unknown)
        self.scored += table.rows

    def _extend(self, name: str, values: Values) -> None:
        grown = self.values.get(name)
        if isinstance(grown, Grown):
            grown.extend(np.asarray(values))
        elif grown is not None:
            grown.extend(values)
        else:
            self.values[name] = Grown(values) if isinstance(values, np.ndarray) else list(values)

    def each(self) -> Iterator[Rows]:
        """Every entry by itself."""
        start = row = 0
        for number, end in enumerate(self.ends):
            last = row + sum(self.counts[start:end])
            yield replace(
                self,
                ids=self.ids[start:end],
                received_us=self.received_us[start:end],
                counts=self.counts[start:end],
                latencies_ms=self.latencies_ms[start:end],
                event_times=self.event_times[start:end],
                entities=self.entities[start:end],
                values={
                    name: Grown(values.whole[row:last]) if isinstance(values, Grown) else values[row:last]
                    for name, values in self.values.items()
                },
                unknown=array("q", [one - row for one in self.unknown if row <= one < last]),
                ends=array("q", [end - start]),
                sizes=self.sizes[number : number + 1],
            )
            start, row = end, last

    def named(self, prefix: str) -> dict[str, Any]:
        """The values of features or of outputs, by their names."""
        length = len(prefix)
        return {
            name[length:]: values.whole if isinstance(values, Grown) else values
            for name, values in self.values.items()
            if name.startswith(prefix)
        }


def kind_of_entry(entry: LogEntry | FailedEntry) -> tuple[Any, ...]:
    """What is the same for all entries whose rows have the same constants."""
    if isinstance(entry, FailedEntry):
        return (id(entry.route), id(entry.variant), entry.status, entry.returned)
    scored = entry.scored
    packed = isinstance(scored.table, Matrix)
    return (id(scored.route), id(scored.variant), scored.table.origin, packed, entry.returned)


def gather(entry: LogEntry | FailedEntry) -> Rows:
    """The first of its kind."""
    if isinstance(entry, FailedEntry):
        rows = Rows(entry.route, entry.variant, entry.returned, entry.status, origin=None)
    else:
        scored = entry.scored
        rows = Rows(scored.route, scored.variant, entry.returned, 200, scored.table.origin)
    rows.add(entry)
    return rows
