"""Great Expectations' Data Docs from the reports that validations left, apart from the validations.

It takes seconds to import what they need and more to write the pages, so nothing but a person's wish does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.gx_import import great_expectations
from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.errors import LifecycleError

_SITE = "contracts"


class NoReportsError(LifecycleError):
    """There is no validation to show. Retry: once the model has been validated."""


@dataclass(frozen=True)
class StoredReport:
    """What one validation found, as Great Expectations' JSON by batch."""

    validation: str
    as_of: datetime
    batches: Mapping[str, dict[str, Any]]


def stored_reports(lake: Lake, model: str, last: int) -> list[StoredReport]:
    """The reports of the model's newest validations by ``as_of``, the oldest of them first.

    :raises NoReportsError: the lake has none of this model. Retry: once it has been validated.
    """
    reports = []
    for path in lake.list(f"validations/{safe_name(model)}"):
        folder, _, name = path.rpartition("/")
        if name == "report.json":
            value = lake.read_json(path)
            moment = datetime.fromisoformat(value["as_of"])
            reports.append(StoredReport(folder.rpartition("/")[2], moment, value["great_expectations"]))
    if not reports:
        raise NoReportsError(f"{lake.uri('validations')} has no validation of {model!r}")
    return sorted(reports, key=lambda report: report.as_of)[-last:]


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as pages can show it.

    They know no sets that are handed over when a suite runs, and make a gap of a share of all rows.
    """
    shown = deepcopy(dict(report))
    for outcome in shown["results"]:
        given = outcome["expectation_config"]["kwargs"]
        if isinstance(named := given.get("value_set"), dict):
            given["value_set"] = list(named.values())
        if given.get("mostly") == 1:
            del given["mostly"]
    return shown


def build_data_docs(reports: Iterable[StoredReport], folder: Path) -> Path:
    """Write the site into ``folder``; returns its first page."""
    gx = great_expectations()
    from great_expectations.core import RunIdentifier, expectationSuiteValidationResultSchema
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    context = gx.get_context(mode="ephemeral")
    for report in reports:
        run = RunIdentifier(run_name=report.validation[:12], run_time=report.as_of)
        for name, value in report.batches.items():
            if not value:
                continue  # no rule of it could be computed
            result = expectationSuiteValidationResultSchema.load(_shown(value))
            result.meta["run_id"] = run
            key = ValidationResultIdentifier(ExpectationSuiteIdentifier(name), run, name)
            context.validation_results_store.set(key, result)
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        _SITE,
        {
            "class_name": "SiteBuilder",
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(folder.absolute()),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    context.build_data_docs(site_names=[_SITE])
    return folder / "index.html"
