"""Feature rows into Redis in bulk, in the format of Feast's RedisOnlineStore, which reads them.

A hash an entity: the event time of each view, and a message a feature. One field is added, which Feast does
not ask for: when a view's row was created, which decides between two of the same event. A script compares and
writes on the server, a batch at a time: of two writers neither puts an older row over a newer one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import polars as pl
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore

from ml_lifecycle.adapters.feast_bulk import CREATED, EVENT, ahead
from ml_lifecycle.adapters.feast_online import fields_of, keys_of
from ml_lifecycle.adapters.feast_values import with_messages
from ml_lifecycle.adapters.online_bytes import data, fixed, joined, texts, timestamps, with_size
from ml_lifecycle.adapters.online_bytes import messages as value_messages
from ml_lifecycle.adapters.online_rows import Kind

_BATCH = 2_000  # rows; the server does nothing else meanwhile, some 10 ms
_PACKED_ROWS = 20_000  # made at a time
_NONE = -(2.0**62)  # before any moment: a row that does not say when it was created

_SCRIPT = """
local function moment(message)
  local parts, at, size = {0, 0}, 1, #message
  while at <= size do
    local field, value, scale, last = string.byte(message, at), 0, 1, 0
    at = at + 1
    local first = at
    repeat
      last = string.byte(message, at)
      at = at + 1
    until last < 128
    if at - first == 10 then  -- negative: two's complement
      for i = first, first + 8 do
        value = value + (127 - string.byte(message, i) % 128) * scale
        scale = scale * 128
      end
      value = -value - 1
    else
      for i = first, at - 1 do
        value = value + (string.byte(message, i) % 128) * scale
        scale = scale * 128
      end
    end
    parts[field == 8 and 1 or 2] = value
  end
  return parts[1], parts[2]
end

local call, unpacked, from = redis.call, struct.unpack, unpack
local event_field, created_field, format, expire = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local rows, count, at = ARGV[5], #ARGV - 5, 1
local size, values = #rows, {event_field, '', created_field, ''}
for i = 1, count do values[3 + 2 * i] = ARGV[5 + i] end
while at <= size do
  local row = {unpacked(format, rows, at)}
  at = row[count + 4]
  local key, event = row[1], row[2]
  local stored = call('HMGET', key, event_field, created_field)
  local newer = not stored[1]
  if not newer then
    if stored[1] == event then
      newer = not stored[2] or unpacked('<d', row[3]) >= unpacked('<d', stored[2])
    else
      local seconds, nanos = moment(event)
      local stored_seconds, stored_nanos = moment(stored[1])
      newer = seconds > stored_seconds or (seconds == stored_seconds and nanos >= stored_nanos)
    end
  end
  if newer then
    values[2], values[4] = event, row[3]
    for i = 1, count do values[4 + 2 * i] = row[3 + i] end
    call('HSET', key, from(values))
    if expire > 0 then call('EXPIRE', key, expire) end
  end
end
"""


class RedisWriter:
    """Writes rows to the Redis of a repository; see :class:`~.feast_bulk.BulkWriter`."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._client: Any = RedisOnlineStore()._get_client(config.online_store)
        self._script = self._client.register_script(_SCRIPT)

    def write(self, view: FeatureView, parts: Iterable[pl.DataFrame]) -> None:
        """Write the rows a batch at a time."""
        name = compute_versioned_name(view, self._config.registry.enable_online_feature_view_versioning)
        fields = fields_of(view)
        head = (
            f"_ts:{name}",
            f"_created:{name}",
            "<I4c0I4c0c8" + "I4c0" * len(fields),
            self._config.online_store.key_ttl_seconds or 0,
        )
        hashes = [_mmh3(f"{name}:{field}") for field, _ in fields]
        with contextlib.closing(ahead(self._batches(view, parts))) as batches:
            for batch in batches:
                self._script(keys=[], args=[*head, batch, *hashes])

    def _batches(self, view: FeatureView, parts: Iterable[pl.DataFrame]) -> Iterator[memoryview]:
        keys, fields, project = keys_of(view), fields_of(view), self._config.project.encode()
        for part in parts:
            for rows in part.iter_slices(_PACKED_ROWS):
                messages = with_messages(view, rows)
                created = rows[CREATED].to_physical().cast(pl.Float64).fill_null(_NONE).to_numpy()
                packed = joined(
                    *with_size(joined(keys.pack_frame(rows), project)),
                    *with_size(timestamps(rows[EVENT])),
                    fixed(created.astype("<f8")),
                    *chain.from_iterable(with_size(_messages(messages[name], kind)) for name, kind in fields),
                )
                for first in range(0, len(packed), _BATCH):
                    yield data(packed[first : first + _BATCH])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _messages(column: pl.Series, kind: Kind) -> pa.Array:
    return texts(column) if kind == "value" else value_messages(column, kind)
