"""Fetch a topic: records that were committed since the last landing → the next landings of its chain.

Where to go on is what the lake says, never a consumer group: rows and offsets are kept by one write, so no
kill and no second reader can lose or double a record. What could be a gap is found by comparing what was
to be read next with what the brokers still have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ml_lifecycle.adapters.kafka_records import decode
from ml_lifecycle.adapters.kafka_topic import Span, Topic
from ml_lifecycle.adapters.landed_topic import Reached, TopicLanding, TopicLandings
from ml_lifecycle.errors import SourceError
from ml_lifecycle.spec.source import Kafka, Source

_log = logging.getLogger(__name__)


def fetch_topic(source: Source, landings: TopicLandings, config: Mapping[str, Any], what: str) -> int:
    """Bring in what is committed as this begins; the number of new rows.

    :param config: librdkafka's
    :param what: the source, for errors
    :raises SourceNotReadyError: the brokers do not answer, or have no such topic yet. Retry: yes.
    :raises SourceError: they refuse; a record cannot be read; records were lost. Retry: no.
    """
    kafka = source.kafka
    assert kafka is not None
    fetched = 0
    with Topic(config, kafka.topic, what) as topic:
        # The landings before the brokers: these then have all that those have, if they have it still.
        last = landings.last()
        topic_id, spans = topic.identity(), topic.spans()
        end = {partition: span.end for partition, span in spans.items()}
        begin, lost = _begin(kafka, last, topic_id, spans, what)
        finished = last is not None and last.topic_id == topic_id and last.end == end
        while not finished:
            finished = True
            for chunk in topic.read(begin, end, kafka.chunk_rows):
                decoded = decode(chunk.records, kafka, last.kinds if last is not None else {}, what)
                reached = Reached(topic_id, begin, chunk.offsets, lost)
                landing = landings.add(last, decoded, reached)
                if landing is None:  # another fetch was first: on from where it is
                    last = landings.last()
                    assert last is not None
                    begin, lost = {**begin, **last.end}, {}
                    finished = all(begin[partition] >= end[partition] for partition in end)
                    break
                _say(what, landing)
                fetched += landing.rows
                last, begin, lost = landing, dict(chunk.offsets), {}
    return fetched


def _begin(
    kafka: Kafka, last: TopicLanding | None, topic_id: str | None, spans: Mapping[int, Span], what: str
) -> tuple[dict[int, int], dict[int, int]]:
    """Where each partition is to be read from, and how many records of it were lost.

    The first fetch takes what there is. After that every offset counts, of a partition that is new from 0.
    """
    oldest = {partition: span.oldest for partition, span in spans.items()}
    if last is None:
        return oldest, {}
    other = topic_id != last.topic_id and None not in (topic_id, last.topic_id)
    shorter = any(at > (spans[one].end if one in spans else 0) for one, at in last.end.items())
    where = f"{what}: topic {kafka.topic!r}"
    if other or shorter:
        how = "has another id" if other else "ends before what was read of it"
        said = f"{where} was made anew since landing {last.number}: it {how}"
        if kafka.lost == "halt":
            raise SourceError(
                f"{said}. What the former one had after that is lost. "
                "Write lost: skip to go on with the new one; the rows that were read stay"
            )
        _log.warning("%s; going on with the new one", said)
        return oldest, {}
    begin = {one: max(last.end.get(one, 0), oldest[one]) for one in spans}
    lost = {one: begin[one] - at for one in spans if begin[one] > (at := last.end.get(one, 0))}
    if lost:
        gaps = ", ".join(
            f"{begin[one] - count} to {begin[one] - 1} of partition {one}" for one, count in lost.items()
        )
        said = f"{where}: offsets {gaps} were deleted before they were read"
        if kafka.lost == "halt":
            raise SourceError(
                f"{said}; fetch more often than the topic's retention. Write lost: skip to go on without them"
            )
        _log.warning("%s; going on without them", said)
    return begin, lost


def _say(what: str, landing: TopicLanding) -> None:
    if landing.tombstones:
        _log.info("%s: landing %d: %d tombstones left out", what, landing.number, landing.tombstones)
    if landing.set_aside is not None:
        _log.warning(
            "%s: landing %d: records that cannot be read are in %s", what, landing.number, landing.set_aside
        )
