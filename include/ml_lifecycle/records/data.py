"""Records of ingest, validate and features: snapshots, what was found of them, training sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from ml_lifecycle.records.record import Interval, Record, Run


@dataclass(frozen=True)
class SnapshotFile:
    """One immutable Parquet file of a snapshot.

    :param partition: the partition's label, e.g. ``2013-04`` (``all`` for an unpartitioned table)
    :param digest: of the rows' content, not of the file's bytes
    :param min_time: earliest event time within, None for tables without one
    :param max_time: latest event time within
    """

    partition: str
    path: str
    digest: str
    rows: int
    min_time: AwareDatetime | None = None
    max_time: AwareDatetime | None = None


@dataclass(frozen=True)
class SnapshotTable:
    """The files of one source within a snapshot, and their columns as ``name → Arrow type``."""

    files: tuple[SnapshotFile, ...]
    columns: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Snapshot(Record):
    """One version of a model's data: every source up to ``run.as_of``. ``digest`` is the data version."""

    schema: ClassVar[str] = "snapshot/1"
    run: Run
    digest: str
    path: str
    tables: dict[str, SnapshotTable]


@dataclass(frozen=True)
class RuleResult:
    """One contract rule, measured on one source.

    :param rule: e.g. ``not_null``, ``range``, ``allowed_values``, ``unique``, ``freshness``
    :param observed: the measured number or text; None if it could not be computed
    :param error: why it could not be computed; such a rule has not passed
    """

    source: str
    rule: str
    field: str | None
    passed: bool
    halts: bool
    expected: str
    observed: float | str | None = None
    unexpected_rows: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Validation(Record):
    """The verdict on a snapshot. The full report is a file; failed rules travel here."""

    schema: ClassVar[str] = "validation/1"
    run: Run
    digest: str
    path: str
    snapshot_digest: str
    snapshot_path: str
    rules: int
    failed: tuple[RuleResult, ...]
    report_path: str

    @property
    def page_path(self) -> str:
        """The report as a page."""
        return f"{self.report_path.removesuffix('.json')}.html"

    @property
    def halted(self) -> bool:
        """Whether a rule that halts was broken."""
        return any(result.halts for result in self.failed)


@dataclass(frozen=True)
class InputRules:
    """What a contract says of each single value of a feature that holds one of its fields unchanged.

    :param contract: the field, as ``contract.field``
    :param type: the field's; a whole number may come in a column of floats
    :param nullable: false where no value may be missing
    :param pattern: regular expression that the whole of each text must match
    """

    contract: str
    type: Literal["string", "integer", "float", "boolean"]
    nullable: bool = True
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[str | int | float | bool, ...] | None = None
    pattern: str | None = None


ColumnType = Literal["float", "int", "string", "bool"]


@dataclass(frozen=True)
class ColumnSpec:
    """A named, typed model input. Nullable floats are NaN; a null string is the empty string.

    :param personal: a contract marks it ``pii``: its values stand in no report
    :param rules: what a contract says of its values, proved on the training set; None where it says nothing.
        Then it is not written either, so that routes and digests are what they were before there were such
    """

    name: str
    type: ColumnType
    nullable: bool = False
    personal: bool = False
    rules: Annotated[InputRules | None, Field(exclude_if=lambda rules: rules is None)] = None


@dataclass(frozen=True)
class TrainingSet(Record):
    """Point-in-time correct rows, split in training rows and the later holdout.

    Both files hold the feature columns of ``columns``, then ``label``, ``event_timestamp`` and the
    entity keys.

    :param label_column: the label's name in the files
    :param personal: columns of the files, keys and label included, whose values stand in no report
    :param train_end: no training row's event time is at or after it
    :param holdout: the holdout's event times; it starts an embargo (the label delay) after ``train_end``
    """

    schema: ClassVar[str] = "training_set/1"
    run: Run
    digest: str
    path: str
    snapshot_digest: str
    code_digest: str
    train_path: str
    holdout_path: str
    train_rows: int
    holdout_rows: int
    train_end: AwareDatetime
    holdout: Interval
    columns: tuple[ColumnSpec, ...]
    label_column: str
    entity_keys: tuple[str, ...]
    personal: tuple[str, ...] = ()

    @property
    def registry_path(self) -> str:
        """The feature registry that a server of the model resolves entity keys with."""
        return f"{self.path}/registry.pb"

    @property
    def profile_path(self) -> str:
        """The training rows' profile, made as they were written.

        Without one (sets of older versions, those that a search makes for its trials), or with one of
        other segments, each training makes its own.
        """
        return f"{self.path}/profile.json"
