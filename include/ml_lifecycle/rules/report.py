"""Great Expectations' result format, written without Great Expectations.

What stands here its own ``ExpectationSuiteValidationResult`` reads, and Data Docs shows: the same keys and
the same numbers as it gives in its format SUMMARY.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from ml_lifecycle.rules.rule import Batch, Rule

_PARTIAL = 20
# Of one rule: whether it holds, what was counted, and why it could not be.
Found = tuple[bool, dict[str, Any], str | None]
_NO_EXCEPTION = {"raised_exception": False, "exception_traceback": None, "exception_message": None}


def suite_result(batch: Batch, found: Mapping[int, Found], *, engine: str = "polars") -> dict[str, Any]:
    """The report of a batch.

    :param found: success, result and error of each computable rule
    """
    outcomes = [
        _outcome(batch, index, rule, *found[index]) for index, rule in sorted(batch.computable.items())
    ]
    passed = sum(outcome["success"] for outcome in outcomes)
    return {
        "success": passed == len(outcomes),
        "suite_name": batch.name,
        "suite_parameters": {},
        "statistics": {
            "evaluated_expectations": len(outcomes),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(outcomes) - passed,
            "success_percent": passed / len(outcomes) * 100,
        },
        "meta": {"engine": engine},
        "id": None,
        "results": outcomes,
    }


def _outcome(
    batch: Batch, index: int, rule: Rule, success: bool, result: dict[str, Any], error: str | None
) -> dict[str, Any]:
    exception: dict[str, Any] = _NO_EXCEPTION
    if error is not None:
        exception = {"raised_exception": True, "exception_traceback": "", "exception_message": error}
    given = {name: finite(value) for name, value in rule.arguments.items() if value is not None}
    return {
        "success": success,
        "expectation_config": {
            "type": re.sub(r"(?<!^)(?=[A-Z])", "_", rule.expectation).lower(),
            "kwargs": {**given, "batch_id": f"lake-{batch.name}"},
            "meta": {"rule": index, "name": rule.rule},
            "severity": "critical" if rule.halts else "warning",
        },
        "result": result,
        "meta": {},
        "exception_info": exception,
    }


def counts(rows: int, missing: int | None, unexpected: int, values: Sequence[Any]) -> dict[str, Any]:
    """The result of a rule about rows.

    :param missing: None for a rule about missing values itself
    :param values: the first unexpected ones, of rules about several columns as ``column → value``
    """
    judged = rows - (missing or 0)
    result: dict[str, Any] = {
        "element_count": rows,
        "unexpected_count": unexpected,
        "unexpected_percent": _percent(unexpected, judged),
    }
    if missing is not None:
        result |= {
            "missing_count": missing,
            "missing_percent": _percent(missing, rows),
            "unexpected_percent_total": _percent(unexpected, rows),
            "unexpected_percent_nonmissing": _percent(unexpected, judged),
        }
    first = values[:_PARTIAL]
    hashable = [tuple(value.values()) if isinstance(value, dict) else value for value in first]
    # By their text where they are equally many: not all values compare.
    counted = sorted(Counter(hashable).items(), key=lambda item: (-item[1], str(item[0])))
    result["partial_unexpected_list"] = [_shown(value) for value in first]
    result["partial_unexpected_counts"] = [{"value": _shown(value), "count": n} for value, n in counted]
    return result


def mostly(rows: int, missing: int | None, unexpected: int, share: float) -> bool:
    """Whether enough of the rows that are judged are as expected; none at all are."""
    judged = rows - (missing or 0)
    return judged == 0 or (judged - unexpected) / judged >= share


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: what is no finite number becomes its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _percent(part: int, whole: int) -> float | None:
    return part / whole * 100 if whole else None


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_shown(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else finite(value)
