"""Validate: a snapshot judged by its sources' contracts.

**Which rows.** Missing values, ranges, sets, patterns and uniqueness are judged on the partitions that
are new since the last validated snapshot, uniqueness against the older rows too; on all rows where there
is no such snapshot or the contract has changed since. Values that another table must hold are looked for in
all of it, and those of all rows where it has lost or replaced a partition. Types are judged on the table,
freshness on its newest row against ``as_of`` (newest ``known_at`` where declared, else newest event), volume
on every whole UTC day of the interval, distributions on the interval's rows against all rows of the last
validated snapshot. Without a volume rule the interval must hold at least one row. Sources with ``keys`` must
not hold two rows with the same keys and event time, contract or not.

**What a broken rule does.** A rule that cannot be computed has not passed and says why. Where a rule that
halts is broken, up to 1,000 of its rows are written to ``quarantine/<model>/<snapshot>/<source>.parquet``
(fields marked ``pii`` masked), and the operator stops with :func:`raise_if_halted`. Otherwise the snapshot
becomes the last validated one of its ``as_of``.

**A changed contract** that breaks the last one must say so by its version, or nothing is judged: see
:mod:`ml_lifecycle.stages.contract_versions`.

**Who judges.** Polars in one streaming pass, or, where the contract says ``engine: great_expectations``,
Great Expectations on pandas in memory: with the same verdicts and counts, and a report in the same format.
Where the model says ``engine: spark``, Spark measures, and Great Expectations judges rows on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import ClassVar

import polars as pl

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.adapters.tables import StoredRows, read_table, scan_files
from ml_lifecycle.errors import DataHaltedError
from ml_lifecycle.records import (
    Record,
    RuleResult,
    Snapshot,
    SnapshotFile,
    Validation,
    digest_of,
    from_json,
    sortable,
    to_json,
)
from ml_lifecycle.rules.rule import Batch
from ml_lifecycle.spark.job import Job
from ml_lifecycle.spec.contract import Contract, ContractFile, contract_of
from ml_lifecycle.spec.contract_rules import RuleSeverity
from ml_lifecycle.spec.loader import Parsed
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Source
from ml_lifecycle.stages.contract_versions import contract_digest, keep_contracts, refuse_breaking
from ml_lifecycle.stages.validation_engine import ValidationEngine
from ml_lifecycle.stages.validation_facts import Facts
from ml_lifecycle.stages.validation_measures import measures, rows_by_day
from ml_lifecycle.stages.validation_report import quarantine_path, render_html, write_quarantine
from ml_lifecycle.stages.validation_rules import (
    blocked_values,
    day_batch,
    measure_batch,
    reference_batch,
    row_batch,
    type_batch,
    unique_batch,
)

_RULES_VERSION = 1


@dataclass(frozen=True)
class Validated(Record):
    """A snapshot that no halting rule stopped, and the digests of the contracts it met, by source."""

    schema: ClassVar[str] = "validated/1"
    snapshot: Snapshot
    contracts: dict[str, str]


def validate(
    spec: ModelSpec,
    contracts: Mapping[str, Contract],
    lake: Lake,
    snapshot: Snapshot,
    previous: Snapshot | None,
    written: Parsed[ContractFile] | None = None,
) -> Validation:
    """Judge ``snapshot``; a rerun returns the finished validation.

    :param contracts: by name
    :param previous: the last validated snapshot before the run, see :func:`latest_validated`
    :param written: the file that the contracts stand in; an error about one shows the lines
    :raises ContractBreaksError: a contract breaks the one that ``previous`` met, and its major version is not
        larger. Retry: no.
    :raises SpecError: a source names a contract that does not exist. Retry: no.
    :raises SparkElsewhereError: Spark, which is to make it, runs elsewhere. Retry: no, but there.
    """
    run = snapshot.run
    by_source = _contracts(spec, contracts)
    met = _contracts_met(lake, previous)
    refuse_breaking(lake, run.model, met, by_source, written)
    digests = {name: contract_digest(contract) for name, contract in by_source.items()}
    digest = digest_of(
        {
            "rules": _RULES_VERSION,
            "snapshot": snapshot.digest,
            "previous": previous.digest if previous is not None else None,
            "contracts": digests,
            "keys": {name: source.keys for name, source in spec.sources.items()},
            "as_of": run.as_of.isoformat(),
            "interval": [run.interval.start.isoformat(), run.interval.end.isoformat()],
            # Sketches of a distribution may tell something else in their last digits.
            **({"engine": spec.engine} if spec.engine != "polars" else {}),
        }
    )
    folder = f"validations/{safe_name(run.model)}/{digest}"
    path = f"{folder}/manifest.json"
    if lake.exists(path):
        validation = replace(from_json(Validation, lake.read_json(path)), run=run)
    else:
        validation = _judge(spec, by_source, lake, snapshot, previous, met, digest)
        lake.write_json(path, to_json(validation))
    if not validation.halted:
        keep_contracts(lake, run.model, by_source)
        _remember(lake, Validated(snapshot, digests))
    return validation


def raise_if_halted(validation: Validation) -> None:
    """Stop the run if a rule that halts was broken.

    :raises DataHaltedError: naming each such rule, what it found and where the rows are. Retry: no.
    """
    if not validation.halted:
        return
    lines = []
    for result in validation.failed:
        if not result.halts:
            continue
        where = f"{result.source}.{result.field}" if result.field is not None else result.source
        found = result.error or f"expected {result.expected}, observed {result.observed}"
        rows = ""
        if result.unexpected_rows:
            place = quarantine_path(validation.run.model, validation.snapshot_digest, result.source)
            rows = f" ({result.unexpected_rows:,} rows, see {place})"
        lines.append(f"  {where}: {result.rule}: {found}{rows}")
    raise DataHaltedError(
        f"{len(lines)} of {validation.rules} contract rules of {validation.run.model} halt the run; snapshot "
        f"{validation.snapshot_digest[:12]} is quarantined:\n" + "\n".join(lines)
    )


def latest_validated(lake: Lake, model: str, before: datetime) -> Snapshot | None:
    """The newest snapshot that passed its validation, of an ``as_of`` earlier than ``before``.

    A backfill thus never sees a later one. Each ``as_of`` has an entry of its own, so that no two
    validations can race for one pointer.
    """
    for path in sorted(lake.list(_validated_folder(model)), reverse=True):
        if path.rsplit("/", 1)[-1].removesuffix(".json") < sortable(before):
            return from_json(Validated, lake.read_json(path)).snapshot
    return None


def _remember(lake: Lake, validated: Validated) -> None:
    run, value = validated.snapshot.run, to_json(validated)
    entry = f"{_validated_folder(run.model)}/{sortable(run.as_of)}.json"
    if not lake.exists(entry) or lake.read_json(entry) != value:
        lake.write_json(entry, value)


def _validated_folder(model: str) -> str:
    return f"validated/{safe_name(model)}"


def _contracts(spec: ModelSpec, contracts: Mapping[str, Contract]) -> dict[str, Contract | None]:
    return {name: contract_of(name, source, contracts) for name, source in spec.sources.items()}


def _judge(
    spec: ModelSpec,
    contracts: Mapping[str, Contract | None],
    lake: Lake,
    snapshot: Snapshot,
    previous: Snapshot | None,
    met: Mapping[str, str],
    digest: str,
) -> Validation:
    """Check every source, then write the report and, if halted, the quarantine."""
    given = {"snapshot": to_json(snapshot), "previous": None if previous is None else to_json(previous)}
    engine = ValidationEngine(spec, lake, Job("validate", given))
    results: list[RuleResult] = []
    reports: dict[str, object] = {}
    offending: list[tuple[RuleResult, pl.DataFrame]] = []
    for name, contract in contracts.items():
        baseline = previous if contract is None or met.get(name) == contract_digest(contract) else None
        source = _Source(name, spec.sources, contract, lake, snapshot, previous, baseline, engine.facts)
        for batch in source.batches():
            checked = engine.check("polars" if contract is None else contract.engine, batch)
            results.extend(checked.results)
            reports[batch.name] = checked.report
            offending.extend(checked.offending)
    run, failed = snapshot.run, tuple(result for result in results if not result.passed)
    folder = f"validations/{safe_name(run.model)}/{digest}"
    report = {
        "schema": "validation_report/1",
        "model": run.model,
        "as_of": run.as_of.isoformat(),
        "interval": [run.interval.start.isoformat(), run.interval.end.isoformat()],
        "snapshot": snapshot.digest,
        "compared_with": previous.digest if previous is not None else None,
        "results": [asdict(result) for result in results],
        "great_expectations": reports,
    }
    report_path = lake.write_json(f"{folder}/report.json", report)
    lake.write_bytes(f"{folder}/report.html", render_html(snapshot, results).encode())
    validation = Validation(
        run=run,
        digest=digest,
        path=f"{folder}/manifest.json",
        snapshot_digest=snapshot.digest,
        snapshot_path=snapshot.path,
        rules=len(results),
        failed=failed,
        report_path=report_path,
    )
    if validation.halted:
        hidden = {
            name: {item.name for item in contract.fields if item.pii}
            for name, contract in contracts.items()
            if contract is not None
        }
        write_quarantine(lake, validation, offending, hidden)
    return validation


def _contracts_met(lake: Lake, previous: Snapshot | None) -> dict[str, str]:
    """Which contracts the previous snapshot was validated by; none if that is not on record."""
    if previous is None:
        return {}
    entry = f"{_validated_folder(previous.run.model)}/{sortable(previous.run.as_of)}.json"
    if not lake.exists(entry):
        return {}
    validated = from_json(Validated, lake.read_json(entry))
    return validated.contracts if validated.snapshot.digest == previous.digest else {}


@dataclass(frozen=True)
class _Source:
    """One source of the snapshot with everything its rules need.

    :param sources: all there are; its references lead to others
    :param previous: the last validated snapshot, which distributions are compared with
    :param baseline: the same, where its rows met this very contract and need no second look
    :param facts: what measures a table
    """

    name: str
    sources: Mapping[str, Source]
    contract: Contract | None
    lake: Lake
    snapshot: Snapshot
    previous: Snapshot | None
    baseline: Snapshot | None
    facts: Callable[[StoredRows], Facts]

    @property
    def source(self) -> Source:
        return self.sources[self.name]

    def batches(self) -> list[Batch]:
        """The source's rules, by what they look at."""
        table = self.snapshot.tables[self.name]
        known = self._judged(self.name)
        new = [file for file in table.files if file.digest not in known]
        old = [file for file in table.files if file.digest in known]
        batches = [*self._whole_table_batches(), *self._reference_batches(new)]
        if not new:
            return batches
        rows = StoredRows(self.lake, table.columns, tuple(new))
        if self.contract is not None:
            batch = row_batch(self.name, self.contract, table.columns, rows.scan())
            batches.append(replace(batch, stored=rows))
        return batches + self._unique_batches(rows, StoredRows(self.lake, table.columns, tuple(old)))

    def _judged(self, source: str) -> set[str]:
        """Digests of the files that a source had when this one's rows were judged last."""
        if self.baseline is None or source not in self.baseline.tables:
            return set()
        return {file.digest for file in self.baseline.tables[source].files}

    def _reference_batches(self, new: Sequence[SnapshotFile]) -> list[Batch]:
        """Fields that are looked up in other sources; for all rows where one of those has lost some."""
        tables, batches = self.snapshot.tables, []
        table = tables[self.name]
        for item in self.contract.fields if self.contract is not None else ():
            if (asked := item.references) is None:
                continue
            others = [name for name, source in self.sources.items() if source.contract == asked.contract]
            held = {file.digest for name in others for file in tables[name].files}
            lost = any(not self._judged(name) <= held for name in others)
            files = table.files if lost else new
            if not files:
                continue
            blocked = blocked_values(item, table.columns)
            wanted = item.model_copy(update={"name": asked.field})  # of the same type, as is checked
            for name in others:
                if blocked is None and (why := blocked_values(wanted, tables[name].columns)):
                    blocked = f"{why} ({name}.{asked.field})"
            if not others:
                blocked = f"could not be computed: no source has contract {asked.contract}"
            known = None
            if blocked is None:
                known = pl.concat(
                    read_table(self.lake, self.snapshot, name).select(asked.field) for name in others
                )
            rows = scan_files(self.lake, table, files)
            batches.append(reference_batch(self.name, item, rows, known, blocked))
        return batches

    def _whole_table_batches(self) -> list[Batch]:
        if self.contract is None:
            return []
        columns = self.snapshot.tables[self.name].columns
        own = [c for c in (self.source.event_time, self.source.known_at, *self.source.keys) if c is not None]
        batches = [type_batch(self.name, self.contract, columns, own)]
        rows, previous = self._facts(self.snapshot), None
        if self.previous is not None and self.name in self.previous.tables:
            previous = self._facts(self.previous)
        run = self.snapshot.run
        if self.contract.volume is not None and self.source.event_time is not None:
            days = rows_by_day(rows, self.source.event_time, run.interval)
            if days is not None:
                batches.append(day_batch(self.name, self.contract, days))
        measured = measures(self.source, self.contract, run, rows, previous)
        return [*batches, measure_batch(self.name, measured)] if measured else batches

    def _facts(self, snapshot: Snapshot) -> Facts:
        table = snapshot.tables[self.name]
        return self.facts(StoredRows(self.lake, table.columns, table.files))

    def _unique_batches(self, new: StoredRows, old: StoredRows) -> list[Batch]:
        groups: list[tuple[str, tuple[str, ...], RuleSeverity]] = []
        if self.source.keys:
            time = () if self.source.event_time is None else (self.source.event_time,)
            groups.append(("keys", tuple(dict.fromkeys((*self.source.keys, *time))), "halt"))
        hidden = set()
        if self.contract is not None:
            hidden = {item.name for item in self.contract.fields if item.pii}
            groups += [
                ("unique", (item.name,), item.severity) for item in self.contract.fields if item.unique
            ]
            groups += [("unique_together", fields, "halt") for fields in self.contract.unique_together]
        columns = self.snapshot.tables[self.name].columns
        batches = []
        for rule, fields, severity in groups:
            missing = [field for field in fields if field not in columns]
            # Rows of other partitions have other event times.
            older = old if old.files and self.source.event_time not in fields else None
            batch = unique_batch(
                *(self.name, rule, fields, severity, new.scan(), missing),
                hidden=not hidden.isdisjoint(fields),
                older=None if older is None else older.scan(),
            )
            batches.append(replace(batch, stored=new, older_stored=older))
        return batches
