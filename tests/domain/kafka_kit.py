"""Brokers that speak Kafka's protocol: librdkafka's own, in this process, behind a port of loopback.

They keep batches as they are produced, know topics' ids, and delete records and topics. Confluent's Python
client brings them along but has no call for most of it, so the library is called itself.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import orjson
from confluent_kafka import Producer

_PRODUCER = 0
_PRODUCE, _PRODUCE_VERSION = 0, 7
_CONTROL = 0x20
_NEW_YEAR = 1_357_000_000_000
_COMMIT = struct.pack(">hh", 0, 1), struct.pack(">hi", 0, 0)


class Brokers:
    """A cluster of one broker."""

    def __init__(self) -> None:
        self._library = _library()
        self._client = self._library.rd_kafka_new(_PRODUCER, self._library.rd_kafka_conf_new(), None, 0)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        self._library.rd_kafka_mock_set_controller_id(self._cluster, 1)
        self.address: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._producer = Producer({"bootstrap.servers": self.address, "linger.ms": 1, "log_level": 0})

    def config(self) -> Mapping[str, Any]:
        """What leads a client here."""
        return {"bootstrap.servers": self.address, "fetch.wait.max.ms": 20, "reconnect.backoff.ms": 10}

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic."""
        assert self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1) == 0

    def drop(self, topic: str) -> None:
        """Delete a topic."""
        assert self._library.rd_kafka_mock_topic_delete(self._cluster, topic.encode()) == 0

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete what is older, as retention does."""
        arguments = (self._cluster, topic.encode(), partition, offset)
        assert self._library.rd_kafka_mock_partition_delete_records(*arguments) == 0

    def put(
        self,
        topic: str,
        *values: Any,
        partition: int = 0,
        key: str | None = None,
        at: int = 1_357_000_000_000,
    ) -> None:
        """Produce records, as JSON unless they are bytes, or None for a tombstone; all acknowledged."""
        for number, value in enumerate(values):
            data = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
            self._producer.produce(topic, data, key, partition, timestamp=_NEW_YEAR + number)
        assert self._producer.flush(30) == 0

    def commit_marker(self, topic: str, partition: int = 0) -> None:
        """Append what ends a transaction: it takes an offset, and no reader ever sees it."""
        batch = _batch(_CONTROL, *_COMMIT)
        partitions = struct.pack(">iii", 1, partition, len(batch)) + batch
        body = struct.pack(">hhii", -1, 1, 5000, 1) + _string(topic) + partitions
        request = struct.pack(">hhi", _PRODUCE, _PRODUCE_VERSION, 1) + _string("kit") + body
        host, port = self.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(4096)
        # Length, correlation id, count of topics, name, count of partitions, partition, and the error.
        (error,) = struct.unpack_from(">h", answer, 4 + 4 + 4 + 2 + len(topic) + 4 + 4)
        assert error == 0, f"the broker refused the marker: {error}"

    def stop(self) -> None:
        """End it."""
        self._producer.flush(5)
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


@contextmanager
def running_brokers() -> Iterator[Brokers]:
    """Brokers for the time of a block."""
    brokers = Brokers()
    try:
        yield brokers
    finally:
        brokers.stop()


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    (path,) = (package.parent / "confluent_kafka.libs").glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    pointer, text, number, offset = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64
    for name, result, *arguments in (
        ("conf_new", pointer),
        ("new", pointer, number, pointer, text, ctypes.c_size_t),
        ("destroy", None, pointer),
        ("mock_cluster_new", pointer, pointer, number),
        ("mock_cluster_bootstraps", text, pointer),
        ("mock_cluster_destroy", None, pointer),
        ("mock_set_controller_id", number, pointer, number),
        ("mock_topic_create", number, pointer, text, number, number),
        ("mock_topic_delete", number, pointer, text),
        ("mock_partition_delete_records", number, pointer, text, number, offset),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _varint(value: int) -> bytes:
    """Zigzag, for small numbers."""
    return bytes([value << 1 if value >= 0 else (-value << 1) - 1])


def _batch(attributes: int, key: bytes, value: bytes) -> bytes:
    """One record in a batch of format 2; its checksum is not looked at here, so there is none."""
    inner = (
        b"\0" + _varint(0) + _varint(0) + _varint(len(key)) + key + _varint(len(value)) + value + _varint(0)
    )
    record = _varint(len(inner)) + inner
    rest = struct.pack(">hiqqqhii", attributes, 0, _NEW_YEAR, _NEW_YEAR, 7, 0, -1, 1) + record
    return struct.pack(">qiibI", 0, 4 + 1 + 4 + len(rest), 0, 2, 0) + rest
