"""The first step of a replay: what the offline store says of logged requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.records import Snapshot
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    build_tables,
    features_of,
    make_frames,
    sources_of,
)
from ml_lifecycle.stages.replay_rows import ServedRow
from ml_lifecycle.stages.replay_steps import Difference, explain, same

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_replay import OfflineRows, View

# Of those that look wrong by today's rows: to compute the tables of an older snapshot takes a while.
_SNAPSHOTS = 3


@dataclass(frozen=True)
class Offline:
    """The offline store as it is now: a model folder and the snapshot that its tables are made of."""

    folder: ModelFolder
    snapshot: Snapshot

    @property
    def inputs(self) -> list[str]:
        """What the replay follows from, beside the log."""
        return [self.snapshot.digest, self.folder.code_digest]

    @property
    def personal(self) -> set[str]:
        """The names of fields that a contract marks as personal data."""
        contracts = self.folder.contracts.values()
        return {one.name for contract in contracts for one in contract.fields if one.pii}


class OfflineFeatures:
    """What the offline store says of the rows whose keys were logged.

    :ivar offline: number of the row → its features by Feast's join, as of now
    :ivar differences: number → of each view the first feature that is not as it was served
    """

    def __init__(
        self, lake: Lake, spec: ModelSpec, offline: Offline | None, rows: Sequence[ServedRow]
    ) -> None:
        self.offline: dict[int, dict[str, Any]] = {}
        self.differences: dict[int, list[Difference]] = {}
        self.unsettled: set[int] = set()
        self._lake, self._spec, self._rows = lake, spec, rows
        if offline is None:
            return
        self._now, self._features = offline, features_of(offline.folder)
        needed = self._features.join_keys()
        asked = [number for number, row in enumerate(rows) if all(key in row.keys for key in needed)]
        if not asked:
            return
        tables = build_tables(offline.folder, lake, offline.snapshot)
        found = self._open({name: lake.scan([path]) for name, path in tables.tables.items()}, asked)
        self.offline = dict(zip(asked, found.joined().to_dicts(), strict=True))
        suspects = self._explain(found, asked)
        if suspects:
            self._look_back(suspects)

    def _open(self, tables: Mapping[str, pl.LazyFrame], asked: Sequence[int]) -> OfflineRows:
        from ml_lifecycle.adapters.feast_replay import OfflineRows

        rows = [self._rows[number] for number in asked]
        keys = {
            key: pl.Series([row.keys[key] for row in rows], strict=False)
            for key in self._features.join_keys()
        }
        moments = pl.Series([row.moment - INSTANT for row in rows], dtype=TIMESTAMP)
        return OfflineRows(self._features, tables, pl.DataFrame({**keys, "event_timestamp": moments}))

    def _explain(self, found: OfflineRows, asked: Sequence[int]) -> list[int]:
        """Find the differences; returns the rows some values of which nothing explains."""
        suspects = []
        for place, number in enumerate(asked):
            self.differences[number] = []
            logged, right = self._rows[number].features, self.offline[number]
            if all(same(logged[name], value) for name, value in right.items() if name in logged):
                continue
            self.differences[number] = self._of_row(found, place, number)
            if any(one.is_mismatch for one in self.differences[number]):
                suspects.append(number)
        return suspects

    def _of_row(self, found: OfflineRows, place: int, number: int) -> list[Difference]:
        row, by_view, changed = self._rows[number], dict[str, Difference](), set[str]()
        for view in found.views:
            if view.columns is not None:
                events = found.events(view.name, place)
                difference = explain(view, events, row.features, row.moment, row.known_by)
                if difference is None and not self._as_joined(view, number):
                    changed.add(view.name)
            elif changed & {*view.made_from}:
                continue  # it was made from what was known then, which the join does not say
            else:
                difference = self._of_derived(view, by_view, number)
            if difference is not None:
                by_view[view.name] = difference
        return list(by_view.values())

    def _as_joined(self, view: View, number: int) -> bool:
        logged, right = self._rows[number].features, self.offline[number]
        return all(same(logged[name], right[name]) for name in view.features if name in logged)

    def _of_derived(self, view: View, stored: Mapping[str, Difference], number: int) -> Difference | None:
        """An on-demand view differs rightly where what it is made from does."""
        logged, right = self._rows[number].features, self.offline[number]
        for name in view.features:
            if name in logged and not same(logged[name], right[name]):
                sources = [stored[one] for one in view.made_from if one in stored]
                cause = sources[0].cause if sources else "skew"
                age = sources[0].age if sources else None
                return Difference(f"features: {view.name}:{name}", logged[name], right[name], cause, age)
        return None

    def _look_back(self, suspects: Sequence[int]) -> None:
        """Rows of the same event may have been corrected since: look at what was known then."""
        from ml_lifecycle.snapshots.history import all_snapshots

        earlier = sorted(all_snapshots(self._lake, self._spec.name), key=lambda one: one.run.as_of)
        by_snapshot: dict[str, list[int]] = {}
        for number in suspects:
            known = [one for one in earlier if one.run.as_of <= self._rows[number].known_by]
            if known and known[-1].digest != self._now.snapshot.digest:
                by_snapshot.setdefault(known[-1].digest, []).append(number)
        snapshots = {one.digest: one for one in earlier}
        ranked = sorted(by_snapshot.items(), key=lambda one: (-len(one[1]), one[0]))
        for digest, numbers in ranked[:_SNAPSHOTS]:
            try:
                self._as_of(snapshots[digest], numbers)
            except OSError:
                raise
            except Exception:  # noqa: BLE001 - today's code need not fit the columns that there were then
                self.unsettled.update(numbers)
        for _, numbers in ranked[_SNAPSHOTS:]:
            self.unsettled.update(numbers)

    def _as_of(self, snapshot: Snapshot, numbers: Sequence[int]) -> None:
        sources = sources_of(self._now.folder, self._lake, snapshot)
        frames = make_frames(self._now.folder, self._features, sources, self._features.source_tables())
        found = self._open({name: frame.lazy() for name, frame in frames.items()}, numbers)
        self.offline |= dict(zip(numbers, found.joined().to_dicts(), strict=True))
        self._explain(found, numbers)
