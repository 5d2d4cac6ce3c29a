"""A rehearsal of a model folder: its code is run on sources without rows, and held against what it declares.

Reading the files finds what is malformed; this finds what would only fail in a run: a feature service by
another name, a label column that is not made, a misspelt import. The command line rehearses; parsing DAGs
does not, since this runs the folder's code and imports what it imports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl

from ml_lifecycle.adapters.tables import POLARS_TYPES
from ml_lifecycle.errors import FeatureError, SpecError, TrainingError
from ml_lifecycle.records import TaskType
from ml_lifecycle.spec.feature_fields import can_become, contract_says, field_mark, tag_mark
from ml_lifecycle.spec.feature_tags import TAG, Tag, TagError, can_be_served, field_of, input_rules
from ml_lifecycle.spec.folder import FolderReading, error_place, load_module
from ml_lifecycle.spec.loader import Parsed
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.problems import Problem, SourceFile, suggest
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.spec.yaml12 import Mark

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features

_MOMENT = "event_timestamp"


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found.

    :param problems: what would fail in a run
    :param advice: what may be meant, and is rarely wanted
    """

    problems: tuple[Problem, ...]
    advice: tuple[str, ...]


def rehearse(reading: FolderReading) -> Rehearsal:
    """Import ``training.py`` and ``features.py``, and try what they define as far as it goes without data."""
    problems = [*_training(reading)]
    advice: list[str] = []
    features = _import(reading, "features", problems)
    if reading.model is not None:
        advice += [*_advice(reading.model.value), *_renamed(reading, reading.model.value)]
        if features is not None:
            problems += _Features(reading, reading.model, features, advice).problems()
    return Rehearsal(tuple(problems), tuple(advice))


def _import(reading: FolderReading, stem: str, problems: list[Problem]) -> ModuleType | None:
    """The module; None if it does not import, or if reading the file has found that already."""
    source = reading.files.get(f"{stem}.py")
    if source is None or not _compiles(source):
        return None
    try:
        return load_module(reading.path, stem)
    except SpecError as error:
        problems.append(Problem(str(error)))
    except SystemExit as error:
        problems.append(Problem(f"{reading.path / stem}.py: exits while it is imported (code {error.code})"))
    return None


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _training(reading: FolderReading) -> Iterator[Problem]:
    from ml_lifecycle.training.fit import load_train

    found: list[Problem] = []
    if (module := _import(reading, "training", found)) is not None and hasattr(module, "train"):
        try:
            load_train(reading.path)
        except TrainingError as error:
            found.append(Problem(f"{reading.path}/{error}"))
    yield from found


def _advice(spec: ModelSpec) -> Iterator[str]:
    if len(set(spec.approvers.users)) == 1:
        yield (
            f"{spec.approvers.users[0]} is the only one of approvers.users in model.yaml: what that user "
            "starts, a training or a promotion, nobody can approve; name a second one"
        )
    if spec.monitoring.window <= spec.labels.delay:
        yield (
            f"monitoring.window ({format_duration(spec.monitoring.window)}) is no longer than labels.delay "
            f"({format_duration(spec.labels.delay)}): when a window ends, few of its labels are known and "
            "its quality can hardly be measured; make it longer"
        )
    if (shares := spec.delivery.shares) and max(shares) < 0.01:
        yield (
            f"delivery.steps in model.yaml are percent: the largest, {max(shares) * 100:g}, is less than one "
            "in a hundred requests; 5 is five percent"
        )


def _renamed(reading: FolderReading, spec: ModelSpec) -> Iterator[str]:
    """A misspelt name would leave a column of its own, and the right one without values."""
    contracts = {one.name: one for one in reading.contracts.value.all} if reading.contracts else {}
    for name, source in spec.sources.items():
        if (contract := contracts.get(source.contract or "")) is None:
            continue
        fields = [field.name for field in contract.fields]
        for column in source.renamed:
            if column not in fields:
                yield (
                    f"sources.{name}.renamed in model.yaml: contract {contract.name} lists no {column!r}; "
                    + "; ".join(suggest(column, fields))
                )


@dataclass
class _Features:
    """``features.py`` held against ``model.yaml`` and the contracts."""

    reading: FolderReading
    model: Parsed[ModelSpec]
    module: ModuleType
    advice: list[str]

    @property
    def spec(self) -> ModelSpec:
        return self.model.value

    def problems(self) -> Iterator[Problem]:
        """All that is wrong; where the Feast objects cannot be had, the tables are still tried."""
        from ml_lifecycle.adapters.feast_repo import Features

        declared: dict[str, dict[str, pl.DataType]] = {}
        try:
            features = Features.of(self.module, self.spec.name, self.spec.features.service)
            declared = features.source_tables()
            columns, keys = [*features.columns()], features.join_keys()
        except FeatureError as error:
            yield self._in_code(str(error))
        else:
            yield from self._names(columns, keys)
            yield from self._tags(features.tags())
            yield from self._alerts(features, columns)
        yield from self._tables(declared)

    def _names(self, columns: list[str], keys: tuple[str, ...]) -> Iterator[Problem]:
        """Names in ``model.yaml`` that must be features or keys."""
        labels = self.spec.labels
        if missing := [key for key in keys if key not in labels.keys]:
            yield self.model.problem(
                ("labels", "keys"),
                f"lacks {', '.join(missing)}, which feature service {self.spec.features.service!r} "
                "looks features up by",
            )
        if clash := sorted({*columns} & {*labels.keys, labels.column, _MOMENT}):
            yield self._in_code(f"features {clash} are named like the label or an entity key: rename them")
        known = [*columns, *labels.keys]
        for number, gate in enumerate(self.spec.evaluation.gates):
            if gate.segment is not None and gate.segment not in known:
                path = ("evaluation", "gates", number, "segment")
                yield self.model.problem(
                    path, f"no feature or key {gate.segment!r}", suggest(gate.segment, known)
                )
        for column in self.spec.delivery.watch.segments:
            if column not in known:
                yield self.model.problem(
                    ("delivery", "watch", "segments", column),
                    f"no feature or key {column!r}",
                    suggest(column, known),
                )

    def _tags(self, tags: Iterable[Tag]) -> Iterator[Problem]:
        """Each tag names a field that its feature can hold; what becomes of the field's rules is advice."""
        contracts = self.reading.contracts
        if contracts is None:
            return
        for tag in tags:
            try:
                contract, item = field_of(tag, contracts.value.all)
            except TagError as error:
                hints = [*error.hints]
                if error.field is not None:
                    name = error.field[0].name
                    said = contract_says(contracts, error.field[1].name)
                    hints += [line for line in said if line.startswith(f"contract {name} ")]
                mark = tag_mark(self.reading.files["features.py"], tag.view, tag.feature, TAG)
                yield self._at(mark, error.message, hints)
                continue
            if input_rules(contract, item) is None:
                self.advice.append(
                    f"feature {tag.feature!r} holds {tag.names}, whose broken rules only warn (severity: "
                    "warn): none of them becomes a rule of the model's input"
                )
            elif item.pattern is not None and not can_be_served(item.pattern):
                self.advice.append(
                    f"the pattern of {tag.names} becomes no rule of the model's input {tag.feature!r}: only "
                    "Python's own engine computes it (look-around, back references, flags), and a client's "
                    "text could keep it, and the server, busy for ever"
                )

    def _alerts(self, features: Features, columns: list[str]) -> Iterator[Problem]:
        """What alerts name as columns is something that their metric has findings of."""
        views = {view.name: [field.name for field in view.features] for view in features.views}
        of_the_store = {
            "feature_staleness_seconds": ("feature view", [*views]),
            "online_mismatch_share": (
                "feature",
                [f"{view}:{name}" for view, names in views.items() for name in names],
            ),
        }
        for number, alert in enumerate(self.spec.monitoring.alerts):
            if alert.metric.startswith("replay_"):
                continue  # of the steps that differ
            kind, known = of_the_store.get(alert.metric, ("feature", columns))
            for place, column in enumerate(alert.columns or ()):
                if column not in known:
                    path = ("monitoring", "alerts", number, "columns", place)
                    yield self.model.problem(path, f"no {kind} {column!r}", suggest(column, known))

    def _tables(self, declared: Mapping[str, Mapping[str, pl.DataType]]) -> Iterator[Problem]:
        tables = getattr(self.module, "tables", None)
        sources = self._empty_sources()
        if not callable(tables) or sources is None:
            return
        try:
            made = tables(sources)
        except Exception as error:  # noqa: BLE001 - it is the user's code, which raises what it likes
            place = error_place(error, self.reading.path / "features.py")
            yield Problem(f"{place}: tables() fails on sources without rows: {_short(error)}")
            return
        if odd := _not_lazy(made):
            yield self._in_code(f"tables() must return a dict of Polars LazyFrames; {odd}")
            return
        labels = self.spec.labels
        needed: dict[str, Mapping[str, pl.DataType | None]] = {**declared}
        needed[labels.table] = dict.fromkeys(
            [labels.event_time, labels.known_at, labels.column, *labels.keys]
        )
        if self.spec.features.entities in made:
            needed[self.spec.features.entities] = dict.fromkeys([_MOMENT, *labels.keys])
        else:
            self.advice.append(
                f"tables() returns no {self.spec.features.entities!r} (features.entities in model.yaml): "
                f"{self.spec.name}__score will fail, as it does not know what there is to predict"
            )
        for metric in self.spec.delivery.watch.business.values():
            if metric.table is not None and metric.table in made:
                needed.setdefault(metric.table, {})
        for table, columns in needed.items():
            yield from self._table(table, columns, made)
        yield from self._business(declared, made)

    def _empty_sources(self) -> dict[str, pl.LazyFrame] | None:
        """A frame without rows a source, with the contract's columns; None where a contract is missing."""
        contracts = (
            {one.name: one for one in self.reading.contracts.value.all} if self.reading.contracts else {}
        )
        named = {name: source.contract for name, source in self.spec.sources.items()}
        if without := [name for name, contract in named.items() if contract is None]:
            self.advice.append(
                f"tables() was not tried: no contract says which columns {', '.join(without)} has"
            )
            return None
        if any(contract not in contracts for contract in named.values()):
            return None  # said already
        return {
            name: pl.LazyFrame(
                schema={field.name: POLARS_TYPES[field.type] for field in contracts[str(contract)].fields}
            )
            for name, contract in named.items()
        }

    def _table(
        self, table: str, columns: Mapping[str, pl.DataType | None], made: Mapping[str, pl.LazyFrame]
    ) -> Iterator[Problem]:
        """One frame has its columns, in types that can become those of the features, and can be computed."""
        if table not in made:
            yield self._in_code(f"tables() returns no {table!r}", suggest(table, sorted(made)))
            return
        try:
            schema = made[table].collect_schema()
        except Exception as error:  # noqa: BLE001 - Polars finds only now what the user's expressions ask for
            yield self._in_code(f"table {table!r} cannot be computed: {_short(error)}")
            return
        for column in columns:
            if column not in schema:
                message = f"table {table!r} lacks column {column!r}"
                yield self._at_field(table, column, message, suggest(column, list(schema)))
        for column, declared in columns.items():
            held = schema.get(column)
            keys_and_moments = column in self.spec.labels.keys or isinstance(declared, pl.Datetime)
            if declared is None or held is None or keys_and_moments:
                continue
            if not can_become(held, declared):
                message = f"field {column!r} is declared as {declared}, and table {table!r} holds {held}"
                yield self._at_field(table, column, message, contract_says(self.reading.contracts, column))
        if columns.keys() <= schema.keys():
            casts = [pl.col(name).cast(dtype) for name, dtype in columns.items() if dtype is not None]
            try:
                made[table].with_columns(casts).collect()
            except Exception as error:  # noqa: BLE001 - as above
                yield self._in_code(f"table {table!r} cannot be computed: {_short(error)}")
            yield from self._moments_and_label(table, schema)

    def _moments_and_label(self, table: str, schema: pl.Schema) -> Iterator[Problem]:
        labels = self.spec.labels
        moments = {
            labels.table: (labels.event_time, labels.known_at),
            self.spec.features.entities: (_MOMENT,),
        }.get(table, ())
        for name in moments:
            if not isinstance(schema[name], pl.Datetime):
                yield self._in_code(f"column {name!r} of table {table!r} is {schema[name]}, not a time")
        if table == labels.table and not _fits(schema[labels.column], self.spec.task):
            yield self._in_code(
                f"label {labels.column!r} is {schema[labels.column]}, and {self.spec.task} models predict "
                + ("numbers" if self.spec.task == "regression" else "text, whole numbers or truth values")
            )

    def _business(
        self, declared: Mapping[str, Mapping[str, pl.DataType]], made: Mapping[str, pl.LazyFrame]
    ) -> Iterator[Problem]:
        """Each business metric has its table, with numbers that can be joined as labels are."""
        labels = self.spec.labels
        for name, metric in self.spec.delivery.watch.business.items():
            path, table = ("delivery", "watch", "business", name), metric.table or labels.table
            if table not in made:
                if table != labels.table:  # of the labels it is said already
                    message = f"tables() of features.py returns no {table!r}"
                    yield self.model.problem((*path, "table"), message, suggest(table, sorted(made)))
                continue
            try:
                schema = dict(made[table].collect_schema())
            except Exception:  # noqa: BLE001 - said already, with the place in the code
                continue
            # Of a feature view's table only what the view declares is kept.
            schema = {column: schema[column] for column in declared.get(table, schema) if column in schema}
            joined_by = [*labels.keys, labels.event_time, labels.known_at]
            if table != labels.table and (lacking := [one for one in joined_by if one not in schema]):
                yield self.model.problem(
                    (*path, "table"),
                    f"table {table!r} lacks {', '.join(lacking)}: its rows are joined as labels are, "
                    f"by {', '.join(joined_by)}",
                    [f"it has: {', '.join(schema)}"],
                )
            column = metric.column or name
            where = path if metric.column is None else (*path, "column")
            if column not in schema:
                named = "" if metric.column else "; name one as column, which is the metric's name by default"
                message = f"table {table!r} has no column {column!r}{named}"
                yield self.model.problem(where, message, suggest(column, list(schema)))
            elif not (schema[column].is_numeric() or schema[column] == pl.Boolean):
                message = f"column {column!r} of table {table!r} is {schema[column]}, not a number"
                yield self.model.problem(where, message)

    def _at_field(self, table: str, column: str, message: str, hints: list[str]) -> Problem:
        """A problem with what a feature view declares; without a place where the code makes its fields."""
        return self._at(field_mark(self.reading.files["features.py"], table, column), message, hints)

    def _at(self, mark: Mark | None, message: str, hints: list[str]) -> Problem:
        if mark is None:
            return self._in_code(message, hints)
        data = self.reading.files["features.py"]
        shown = str(self.reading.path / "features.py")
        return SourceFile(shown, data.decode("utf-8", errors="replace")).problem(mark, message, hints)

    def _in_code(self, message: str, hints: list[str] | None = None) -> Problem:
        lines = [f"{self.reading.path / 'features.py'}: {message}", *(f"  {hint}" for hint in hints or [])]
        return Problem("\n".join(lines))


def _fits(label: pl.DataType, task: TaskType) -> bool:
    if task == "regression":
        return label.is_numeric()
    # Whole numbers often come as floats; only the values can tell.
    return label.is_numeric() or label in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)


def _not_lazy(made: Any) -> str | None:
    if not isinstance(made, Mapping):
        return f"it returns {type(made).__name__}"
    odd = {name: type(frame).__name__ for name, frame in made.items() if not isinstance(frame, pl.LazyFrame)}
    return f"these are none: {odd}" if odd else None


def _short(error: Exception) -> str:
    """Polars adds the whole plan below its first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
