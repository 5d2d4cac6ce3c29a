"""Numbers that were measured elsewhere, as metrics of Evidently's own reports and snapshots.

Imported inside functions only: Evidently takes seconds.
"""

from __future__ import annotations

from typing import Any

from evidently.core.metric_types import SingleValue, SingleValueCalculation, SingleValueMetric


class WholeWindow(SingleValueMetric):  # type: ignore[misc]
    """One finding of the monitor, about all rows of the window where the rest of the report is a sample."""

    metric: str
    column: str
    value: float
    rows: int


class WholeWindowCalculation(SingleValueCalculation[WholeWindow]):  # type: ignore[misc]
    """Hands the number on."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> tuple[SingleValue, None]:
        """The value; the reference has none of its own, for it is a distance from it."""
        return self.result(self.metric.value), None

    def display_name(self) -> str:
        """As Evidently titles its own."""
        return f"{self.metric.metric} of '{self.metric.column}', all {self.metric.rows:,} rows"
