"""What stages hand to each other: small frozen dataclasses that travel as plain JSON.

Airflow refuses to read unknown classes back from XCom, so operators return :func:`to_json`'s dicts, each
with a ``schema`` key (``"snapshot/1"``). Data stays in the lake; a record holds paths and digests only.

All paths are relative to the lake they were written to. All digests are lower-case SHA-256 hex. All
times are timezone-aware UTC; intervals are half open, ``start <= t < end``.
"""

from ml_lifecycle.records.data import (
    ColumnSpec,
    ColumnType,
    InputRules,
    RuleResult,
    Snapshot,
    SnapshotFile,
    SnapshotTable,
    TrainingSet,
    Validation,
)
from ml_lifecycle.records.delivery import Approval, Evidence, Release
from ml_lifecycle.records.models import Evaluation, GateResult, ModelVersion, TaskType, Training
from ml_lifecycle.records.monitoring import Finding, Monitoring, Severity
from ml_lifecycle.records.record import (
    Interval,
    Record,
    RecordError,
    Run,
    canonical_json,
    digest_of,
    from_json,
    sortable,
    to_json,
)
from ml_lifecycle.records.scoring import (
    RowSlice,
    ScoredFile,
    ScoredPartition,
    ScoredShare,
    Scoring,
    ScoringPlan,
)

__all__ = [
    "Approval",
    "ColumnSpec",
    "ColumnType",
    "Evaluation",
    "Evidence",
    "Finding",
    "GateResult",
    "InputRules",
    "Interval",
    "ModelVersion",
    "Monitoring",
    "Record",
    "RecordError",
    "Release",
    "RowSlice",
    "RuleResult",
    "Run",
    "ScoredFile",
    "ScoredPartition",
    "ScoredShare",
    "Scoring",
    "ScoringPlan",
    "Severity",
    "Snapshot",
    "SnapshotFile",
    "SnapshotTable",
    "TaskType",
    "Training",
    "TrainingSet",
    "Validation",
    "canonical_json",
    "digest_of",
    "from_json",
    "sortable",
    "to_json",
]
