"""Where the features of a request come from: a vector in it, or entity keys read from the online store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.serving.columns import Features
from ml_lifecycle.serving.errors import (
    BadRequestError,
    FeaturesUnavailableError,
    ServingError,
    UnknownEntityError,
)
from ml_lifecycle.shown import shown

log = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads features by entity keys: one list a feature, rows in the keys' order, None where missing."""

    def look_up(
        self, entities: Mapping[str, Sequence[object]], as_of: Sequence[datetime]
    ) -> tuple[Mapping[str, list[object]], Mapping[str, int], Sequence[int], Mapping[str, float]]:
        """Features of the rows ``entities`` name, without those too old at each row's ``as_of``.

        Beside them how many values of each feature were there and too old, the numbers of the rows whose
        keys the store does not know at all, and by view the age of the oldest row, in seconds.
        """
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


ReaderFactory = Callable[[bytes, str, str], Reader]


Counted = Callable[[int, Mapping[str, int], Mapping[str, int], Mapping[str, float]], None]
"""Takes what a read came to: its rows, by feature how many values were missing, and too old, and by view the
age of the oldest row."""


def feast_reader(registry: bytes, service: str, online_store: str, cache_seconds: float = 0.0) -> Reader:
    """A reader of Feast's online store. Importing Feast takes seconds and 130 MiB, hence only here."""
    from ml_lifecycle.adapters.feast_reader import OnlineReader

    reader: Reader = OnlineReader(registry, service, online_store, cache_seconds)
    return reader


def _uncounted(
    rows: int, missing: Mapping[str, int], stale: Mapping[str, int], ages: Mapping[str, float]
) -> None:
    pass


class Resolver:
    """Resolves the features of one variant.

    The registry is read and checked at once; the reader is made by :meth:`warm`, at the latest when entity
    keys are first asked for.

    :param online_store: URL of the online store; None for a server that takes vectors only
    :param counted: told of every read
    :raises IntegrityError: the registry's bytes have another digest. Retry: no.
    """

    def __init__(
        self,
        variant: Variant,
        lake: Lake,
        online_store: str | None,
        factory: ReaderFactory,
        counted: Counted = _uncounted,
    ) -> None:
        self._counted = counted
        self._variant = variant
        self._online_store = online_store
        self._factory = factory
        self._registry = (
            lake.read_bytes(variant.registry_path, variant.registry_digest) if variant.registry_path else None
        )
        self._reader: Reader | None = None
        # Online store clients make no promise about threads.
        self._lock = threading.Lock()
        self._users = 0  # who has the lock or waits for it
        self._closed = False
        self._counting = threading.Lock()  # of the two above; held for a moment only

    def prepare(self, previous: Resolver) -> None:
        """Make the reader now if ``previous`` was asked for entity keys: the next request will be too."""
        if previous._reader is not None and self._registry is not None:
            self.open()

    def warm(self) -> None:
        """Make the reader beside what goes on, so that who asks first by entity keys waits for no imports."""
        takes_keys = self._registry is not None and self._variant.feature_service is not None
        if takes_keys and self._online_store is not None and self._reader is None:
            threading.Thread(target=self._warm, name="features", daemon=True).start()

    def _warm(self) -> None:
        try:
            with self._used():
                if not self._closed:
                    self.open()
        except Exception:  # whatever it is, the next request by entity keys meets it too and answers with it
            log.exception("the online store cannot be read yet")

    def close(self) -> None:
        """Close the reader, or leave that to the last one who uses it: a slow store holds nobody else up.

        Who asks after all, by a route that was live a moment ago, makes another and closes it.
        """
        with self._counting:
            self._closed = True
        self._close_unused()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """For one at a time; the last to leave a closed resolver closes the reader."""
        with self._counting:
            self._users += 1
        try:
            with self._lock:
                yield
        finally:
            with self._counting:
                self._users -= 1
            self._close_unused()

    def _close_unused(self) -> None:
        with self._counting:
            if self._users or not self._closed:
                return
            reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.close()
            except Exception:  # each online store's client raises its own; what was read is good all the same
                log.exception("a reader of the online store does not close")

    def open(self) -> Reader:
        """The reader, made at the first call.

        :raises BadRequestError: the endpoint, or the server, takes no entity keys. Retry: no.
        """
        if self._registry is None or self._variant.feature_service is None:
            raise BadRequestError("this endpoint takes feature vectors only: it has no feature service")
        if self._online_store is None:
            raise BadRequestError(
                "this server takes feature vectors only: it was started without an online store"
            )
        if self._reader is None:
            self._reader = self._factory(self._registry, self._variant.feature_service, self._online_store)
        return self._reader

    def resolve(self, entities: Mapping[str, Sequence[Any]], as_of: Sequence[datetime]) -> Features:
        """Read the features of ``entities``; may take seconds the first time.

        :param as_of: one moment a row: a value past its time to live then is missing, as it is in training
        :raises BadRequestError: the endpoint takes no entity keys, or not these. Retry: no.
        :raises UnknownEntityError: the store does not know them, and the endpoint refuses such. Retry: no.
        :raises FeaturesUnavailableError: the online store did not answer. Retry: yes.
        """
        try:
            with self._used():
                found, stale, unknown, ages = self.open().look_up(entities, as_of)
        except ServingError:
            raise
        except LifecycleError as error:
            raise ServingError(f"features cannot be read: {error}") from error
        except (TypeError, ValueError) as error:
            raise BadRequestError(f"features cannot be looked up by these entity keys: {error}") from error
        except Exception as error:  # each online store's client raises its own; all mean "not now"
            raise FeaturesUnavailableError(f"the online store did not answer: {error}") from error
        rows, columns = len(as_of), self._variant.columns
        for column in columns:
            if len(found.get(column.name, ())) != rows:
                raise FeaturesUnavailableError(
                    f"the online store gave {len(found.get(column.name, ()))} values of {column.name!r} "
                    f"for {rows} rows; the feature service {self._variant.feature_service!r} should give it"
                )
        values = [found[column.name] for column in columns]
        missing = {column.name: one.count(None) for column, one in zip(columns, values, strict=True)}
        fresh = {name: count - stale.get(name, 0) for name, count in missing.items()}
        self._counted(rows, {name: count for name, count in fresh.items() if count}, stale, ages)
        if unknown and self._variant.not_found == "refuse":
            given = {key: column[unknown[0]] for key, column in entities.items()}
            others = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UnknownEntityError(
                f"the online store has nothing of the entity in row {unknown[0]} ({shown(given)}){others}, "
                "and this endpoint refuses to answer from missing values only (features.not_found in "
                "model.yaml)",
                len(unknown),
            )
        return Features(rows, values, "online_store", tuple(unknown))
