"""A Kafka topic, read from one offset of each partition to another: nothing twice, and no gap unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from ml_lifecycle.errors import SourceError, SourceNotReadyError

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 1.0
_AT_ONCE = 10_000
# A topic's records may be a kilobyte each, or a megabyte: rows alone bound no memory.
_CHUNK_BYTES = 64 * 2**20
# What asking again does not change.
_REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._INVALID_ARG,
        KafkaError._SSL,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


@dataclass(frozen=True)
class Span:
    """The offsets of one partition: the oldest that is still there, and the end of what is committed."""

    oldest: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """Records, and by partition the offset that is to be read after them."""

    records: Sequence[Message]
    offsets: Mapping[int, int]


class Topic:
    """One topic as a reader sees it that says itself where to begin, and commits nothing.

    :param config: librdkafka's, with ``bootstrap.servers``
    :param what: the source, for errors
    :raises SourceError: the configuration is none. Retry: no.
    """

    def __init__(self, config: Mapping[str, Any], name: str, what: str) -> None:
        self.name = name
        self._what = what
        self._brokers = config.get("bootstrap.servers")
        self._said: list[KafkaError] = []
        own = {
            "group.id": "ml-lifecycle",  # a consumer must have one; ours is in no group
            **config,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Never on from somewhere else, where an offset is not there any more.
            "auto.offset.reset": "error",
            # Else nobody says that what is left of a span holds no record: markers, or compacted away.
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": _CHUNK_BYTES // 1024,
            "error_cb": self._said.append,
            "logger": _log,
        }
        self._admin_config = {**config, "error_cb": self._said.append, "logger": _log}
        try:
            self._consumer = Consumer(own)
        except (KafkaException, ValueError, TypeError) as error:
            raise SourceError(f"{what}: the connection's configuration is refused: {error}") from error

    def __enter__(self) -> Topic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def identity(self) -> str | None:
        """What the brokers call this topic and no other of its name, before or after; None if they cannot."""
        with self._told():
            client = AdminClient(self._admin_config)
            asked = client.describe_topics(TopicCollection([self.name]), request_timeout=_ANSWER_SECONDS)
            try:
                found = asked[self.name].result().topic_id
            except KafkaException as error:
                if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE:
                    return None
                raise
        # Brokers before 2.8 say zero of every topic.
        known = found.get_most_significant_bits() or found.get_least_significant_bits()
        return str(found) if known else None

    def spans(self) -> dict[int, Span]:
        """Every partition, as it is now.

        :raises SourceNotReadyError: the brokers do not answer, or have no such topic yet. Retry: yes.
        :raises SourceError: they refuse. Retry: no.
        """
        with self._told():
            topic = self._consumer.list_topics(self.name, _ANSWER_SECONDS).topics[self.name]
            if topic.error is not None:
                raise KafkaException(topic.error)
            spans = {}
            for partition in sorted(topic.partitions):
                place = TopicPartition(self.name, partition)
                marks = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_SECONDS)
                if marks is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                spans[partition] = Span(*marks)
        return spans

    def read(self, begin: Mapping[int, int], end: Mapping[int, int], rows: int) -> Iterator[Chunk]:
        """Records from ``begin`` up to and without ``end``; the last chunk's offsets are ``end``.

        What is committed later is left to the next one who reads.

        :param rows: in one chunk at most
        :raises SourceNotReadyError: brokers stopped answering, or deleted what is to be read. Retry: yes.
        """
        offsets = dict(begin)
        left = {partition for partition in begin if begin[partition] < end[partition]}
        if left:
            places = [TopicPartition(self.name, partition, begin[partition]) for partition in sorted(left)]
            self._consumer.assign(places)
        records: list[Message] = []
        size = 0
        while left:
            for message in self._some(min(rows - len(records), _AT_ONCE)):
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                if partition not in left:
                    continue
                if message.error() is None and offset < end[partition]:
                    records.append(message)
                    size += len(message)
                    offsets[partition] = offset + 1
                else:  # a later record, or the end: whatever was before it has come, or is none
                    offsets[partition] = max(offsets[partition], min(offset, end[partition]))
                if offsets[partition] >= end[partition]:
                    left.discard(partition)
                    self._consumer.incremental_unassign([TopicPartition(self.name, partition)])
            if left and (len(records) >= rows or size >= _CHUNK_BYTES):
                yield Chunk(records, dict(offsets))
                records, size = [], 0
        yield Chunk(records, offsets)

    def _some(self, rows: int) -> list[Message]:
        """Records and ends of partitions, as they come."""
        with self._told():
            for _ in range(int(_ANSWER_SECONDS / _POLL_SECONDS)):
                # Asked for several it waits until so many are there, or the time is over: not for what is.
                if messages := self._consumer.consume(1, _POLL_SECONDS):
                    messages += self._consumer.consume(rows - 1, 0) if rows > 1 else []
                    for message in messages:
                        error = message.error()
                        if error is not None and error.code() != KafkaError._PARTITION_EOF:
                            raise KafkaException(error)
                    return messages
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as raised:
            error: KafkaError = raised.args[0]
            where = f"{self._what}: topic {self.name!r}"
            # Of a refused login or certificate only the callback hears; who asked sees no answer.
            reason = next((said for said in self._said if said.code() in _REFUSALS), error)
            if reason.code() in _REFUSALS:
                raise SourceError(
                    f"{where} cannot be read: {reason.str()}. Look at the connection's extra (sasl.*, "
                    "ssl.*), and at what the brokers let its user read and describe"
                ) from raised
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise SourceNotReadyError(
                    f"{where}: records were deleted while they were being read; the next try says which"
                ) from raised
            raise SourceNotReadyError(
                f"{where} cannot be read now: {error.str()}; asked were {self._brokers}"
            ) from raised
