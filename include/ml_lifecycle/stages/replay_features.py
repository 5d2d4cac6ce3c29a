"""The first step of a replay: what the offline store says of logged requests.

Of each it is asked by the code that the version which answered was trained with. A value that this code does
not compute, and another state of the model folder does, is told from one that nothing explains: an online
store is written by the folder as it is at the time, whatever version reads from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.errors import NoSpaceError
from ml_lifecycle.personal import personal_columns
from ml_lifecycle.records import Snapshot, Training
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    build_tables,
    features_of,
    make_frames,
    personal_names,
    sources_of,
)
from ml_lifecycle.stages.replay_code import Code, codes_of
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
        """What the replay follows from, beside the log and the code of the versions in it."""
        return [self.snapshot.digest, self.folder.code_digest]

    @property
    def personal(self) -> frozenset[str]:
        """The names of fields that a contract marks as personal data."""
        return personal_columns(self.folder.contracts.values())


class OfflineFeatures:
    """What the offline store says of the rows whose keys were logged.

    :ivar offline: number of the row → its features by Feast's join, as of now
    :ivar differences: number → of each view the first feature that is not as it was served
    :ivar unsettled: numbers of rows whose data changed since, and what was known then is not at hand
    :ivar codes: what the rows were replayed with
    :ivar hidden: features and keys whose values stand in no report
    """

    def __init__(
        self,
        lake: Lake,
        offline: Offline | None,
        rows: Sequence[ServedRow],
        training_of: Callable[[str], Training | None],
    ) -> None:
        self.offline: dict[int, dict[str, Any]] = {}
        self.differences: dict[int, list[Difference]] = {}
        self.unsettled: set[int] = set()
        self.codes: list[Code] = []
        self.hidden = frozenset[str]()
        if offline is None:
            return
        self._lake, self._now, self._rows = lake, offline, rows
        with tempfile.TemporaryDirectory(prefix="replay-") as name:
            self.codes = codes_of(rows, offline.folder, lake, training_of, Path(name))
            folders = {code.folder.code_digest: code.folder for code in self.codes if code.folder is not None}
            self._folders = {offline.folder.code_digest: offline.folder} | folders
            for code in self.codes:
                if code.folder is not None:
                    self._add(code, code.folder)
            self.hidden = self._hidden()

    def _add(self, code: Code, folder: ModelFolder) -> None:
        """Replay the rows of a code."""
        found = self._by(folder, code.numbers)
        if code.because is None:
            self._blame(found)
        else:
            # Whether these are of the version's own code, nobody can say.
            for differences in found.differences.values():
                differences[:] = [
                    replace(one, detail=f"by today's code: {code.because}") for one in differences
                ]
        self.offline |= found.offline
        self.differences |= found.differences
        self.unsettled |= found.unsettled

    def _by(self, folder: ModelFolder, numbers: Iterable[int]) -> _FeaturesBy:
        rows = {number: self._rows[number] for number in numbers}
        return _FeaturesBy(self._lake, folder, self._now, rows)

    def _blame(self, found: _FeaturesBy) -> None:
        """See whether another state of the folder computes what this one does not."""
        for digest, folder in self._folders.items():
            suspects = found.unexplained()
            if digest == found.folder.code_digest or not suspects:
                continue
            try:
                other = self._by(folder, suspects)
            except (OSError, NoSpaceError):
                raise
            except Exception:  # noqa: BLE001 - it explains nothing, and need not
                continue
            for number in suspects:
                found.blame(number, other)

    def _hidden(self) -> frozenset[str]:
        folders = self._folders.values()
        personal = frozenset[str]().union(*(personal_names(one, features_of(one)) for one in folders))
        if not personal:
            return personal
        from ml_lifecycle.adapters.feast_replay import masked_features

        found = personal.union(*(masked_features(features_of(one), sorted(personal)) for one in folders))
        return found | {"label", "prediction"} if self._now.folder.spec.labels.column in personal else found


class _FeaturesBy:
    """What a state of the model folder computes for some rows; attributes are those of the whole.

    :param rows: by number
    """

    def __init__(self, lake: Lake, folder: ModelFolder, now: Offline, rows: Mapping[int, ServedRow]) -> None:
        self.offline: dict[int, dict[str, Any]] = {}
        self.differences: dict[int, list[Difference]] = {}
        self.unsettled: set[int] = set()
        self.folder = folder
        self._lake, self._now, self._rows = lake, now, rows
        self._features = features_of(folder)
        self._views: dict[str, View] = {}
        needed = self._features.join_keys()
        asked = [number for number, row in rows.items() if all(key in row.keys for key in needed)]
        if asked:
            self._look_back(self._look(asked))

    def unexplained(self) -> list[int]:
        """The rows with a feature that no row of its view's table has."""
        return [
            number
            for number, differences in self.differences.items()
            if number not in self.unsettled and any(one.cause == "skew" for one in differences)
        ]

    def blame(self, number: int, other: _FeaturesBy) -> None:
        """Name the code as the cause of what another one computes just as it was served."""
        differences = self.differences[number]
        wrong = {one.view for one in differences if one.cause == "skew"}
        explained = {view for view in wrong if other._computes(number, self._views[view])}
        if not explained:
            return
        detail = f"model folder {other.folder.code_digest} computes it so, {self.folder.code_digest} does not"
        self.differences[number] = [
            replace(one, cause="code", detail=detail)
            if one.cause == "skew" and explained & {one.view, *self._views[one.view].made_from}
            else one
            for one in differences
        ]

    def _computes(self, number: int, view: View) -> bool:
        """Whether a stored view's features are served as they are, or were, by this code."""
        mine, logged = self._views.get(view.name), self._rows[number].features
        if mine is None or mine.columns is None or view.columns is None:
            return False
        if number in self.unsettled or number not in self.offline:
            return False
        if not {name for name in view.features if name in logged} <= {*mine.features}:
            return False
        return not any(one.view == view.name and one.is_mismatch for one in self.differences[number])

    def _look(self, asked: list[int]) -> list[int]:
        """Compare by today's snapshot; returns the rows some values of which nothing explains."""
        today = self.folder is self._now.folder
        try:
            if today:
                tables = build_tables(self.folder, self._lake, self._now.snapshot).tables
                frames = {name: self._lake.scan([path]) for name, path in tables.items()}
            else:  # not kept: nobody else asks for them
                frames = self._frames(self._now.snapshot)
            return self._compare(frames, asked)
        except (OSError, NoSpaceError):
            raise
        except Exception:
            if today:
                raise
            # Former code need not fit the columns that there are now, but fits those that there were then.
            self.unsettled.update(asked)
            return asked

    def _frames(self, snapshot: Snapshot) -> dict[str, pl.LazyFrame]:
        sources = sources_of(self.folder, self._lake, snapshot)
        frames = make_frames(self.folder, self._features, sources, self._features.source_tables())
        return {name: frame.lazy() for name, frame in frames.items()}

    def _compare(self, tables: Mapping[str, pl.LazyFrame], asked: Sequence[int]) -> list[int]:
        found = self._open(tables, asked)
        self._views = {view.name: view for view in found.views}
        self.offline |= dict(zip(asked, found.joined().to_dicts(), strict=True))
        return self._explain(found, asked)

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
        if not suspects:
            return
        from ml_lifecycle.snapshots.history import all_snapshots

        earlier = sorted(all_snapshots(self._lake, self.folder.spec.name), key=lambda one: one.run.as_of)
        by_snapshot: dict[str, list[int]] = {}
        for number in suspects:
            known = [one for one in earlier if one.run.as_of <= self._rows[number].known_by]
            if known and known[-1].digest != self._now.snapshot.digest:
                by_snapshot.setdefault(known[-1].digest, []).append(number)
        snapshots = {one.digest: one for one in earlier}
        ranked = sorted(by_snapshot.items(), key=lambda one: (-len(one[1]), one[0]))
        for digest, numbers in ranked[:_SNAPSHOTS]:
            try:
                self._compare(self._frames(snapshots[digest]), numbers)
                self.unsettled.difference_update(numbers)
            except (OSError, NoSpaceError):
                raise
            except Exception:  # noqa: BLE001 - this code need not fit the columns that there were then
                self.unsettled.update(numbers)
        for _, numbers in ranked[_SNAPSHOTS:]:
            self.unsettled.update(numbers)
