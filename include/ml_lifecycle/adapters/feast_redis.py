"""Feature rows into Redis in bulk, in the format of Feast's RedisOnlineStore, which reads them.

A hash an entity: the event time of each view, and a message a feature. One field is added, which Feast does
not ask for: when a view's row was created, which decides between two of the same event. A script compares and
writes on the server, a batch at a time: of two writers neither puts an older row over a newer one.
"""

from __future__ import annotations

import struct
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore

from ml_lifecycle.adapters.feast_bulk import CREATED, EVENT, with_messages
from ml_lifecycle.adapters.feast_online import fields_of, keys_of
from ml_lifecycle.adapters.online_rows import Kind

_BATCH = 2_000  # rows; the server does nothing else meanwhile, some 10 ms
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

# The tag of each kind's field in Feast's Value message, and NumPy's code of those of fixed size.
_TAGS: dict[Kind, tuple[int, str]] = {
    "bytes": (0x0A, ""),
    "string": (0x12, ""),
    "int32": (0x18, ""),
    "int64": (0x20, ""),
    "double": (0x29, "<f8"),
    "float": (0x35, "<f4"),
    "bool": (0x38, "u1"),
}


class RedisWriter:
    """Writes rows to the Redis of a repository; see :class:`~.feast_bulk.BulkWriter`."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._client: Any = RedisOnlineStore()._get_client(config.online_store)
        self._script = self._client.register_script(_SCRIPT)

    def write(self, view: FeatureView, rows: pl.DataFrame) -> None:
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
        keys, project = keys_of(view), self._config.project.encode()
        # The next batch is made while the server writes the last one.
        with ThreadPoolExecutor(1) as sender:
            sent: Future[Any] | None = None
            for part in rows.iter_slices(_BATCH):
                created = part[CREATED].to_physical().cast(pl.Float64).fill_null(_NONE).to_numpy()
                messages = with_messages(view, part)
                columns: list[list[bytes]] = [
                    _with_length([key + project for key in keys.pack_frame(part)]),
                    _with_length(_moments(part[EVENT])),
                    created.astype("<f8").view("V8").tolist(),
                    *(_with_length(_messages(messages[field], kind)) for field, kind in fields),
                ]
                packed = b"".join(chain.from_iterable(zip(*columns, strict=True)))
                if sent is not None:
                    sent.result()
                sent = sender.submit(self._script, keys=[], args=[*head, packed, *hashes])
            if sent is not None:
                sent.result()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _with_length(parts: list[bytes]) -> list[bytes]:
    pack = struct.Struct("<I").pack
    return [pack(len(part)) + part for part in parts]


def _moments(events: pl.Series) -> list[bytes]:
    """Timestamp messages, as Feast writes them; equal ones are made once."""
    return _once(events.to_physical(), _moment)


def _moment(event_us: int) -> bytes:
    seconds, micros = divmod(event_us, 1_000_000)
    first = b"\x08" + _varint(seconds) if seconds else b""
    return first + (b"\x10" + _varint(micros * 1000) if micros else b"")


def _messages(column: pl.Series, kind: Kind) -> list[bytes]:
    """The bytes of Feast's Value messages; a null's are none."""
    if kind == "value":
        return column.fill_null(b"").to_list()
    tag, code = _TAGS[kind]
    if kind in ("int32", "int64"):
        head = bytes([tag])
        found = _once(column.cast(pl.Int64), lambda value: head + _varint(value))
    elif code:
        table = np.zeros(len(column), [("tag", "u1"), ("value", code)])
        table["tag"] = tag
        table["value"] = column.fill_null(False if kind == "bool" else 0.0).to_numpy()
        found = table.view(f"V{table.dtype.itemsize}").tolist()
    else:
        text = column.cast(pl.String) if kind == "string" else column
        found = _once(text.cast(pl.Binary), lambda value: bytes([tag]) + _varint(len(value)) + value)
    if column.null_count():
        return [b"" if absent else one for one, absent in zip(found, column.is_null(), strict=True)]
    return found


def _once(column: pl.Series, make: Any) -> list[bytes]:
    """What is made of each value, by way of a dictionary: few differ."""
    values = column.to_list()
    made = {value: make(value) for value in set(values) if value is not None}
    made[None] = b""
    return [made[value] for value in values]


def _varint(value: int) -> bytes:
    """As protobuf writes whole numbers; negative ones take ten bytes."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
