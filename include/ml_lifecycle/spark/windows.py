"""A window of the prediction log, profiled by Spark: stretch by stretch, as the monitor does it itself.

What is found in a stretch is kept in the lake, wherever it was found: the monitor then only has to put it
together, and finds the same in every bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.records import Training, digest_of, to_json
from ml_lifecycle.spark.job import Job
from ml_lifecycle.spark.session import session_for
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.monitor_drift import known_segments, profile_kind, profiled_stretch
from ml_lifecycle.stages.monitor_kept import KeptFindings


def keep_profiles(
    spec: ModelSpec,
    lake: Lake,
    log: PredictionWindow,
    training: Training,
    kept: KeptFindings,
    stretches: Sequence[Stretch],
) -> None:
    """Have the stretches' profiles made and kept, unless that was done before.

    What cannot be read is left to the monitor, which says so.

    :raises SparkElsewhereError: they are not, and Spark runs elsewhere. Retry: no.
    """
    segments = known_segments(training, spec.monitoring.segments)
    kind = profile_kind(training, segments)
    window = [log.window.start.isoformat(), log.window.end.isoformat()]
    digest = digest_of([kind, window, [[one.name, one.digest] for one in stretches]])
    done = f"monitoring/{spec.name}/profiled/{digest}.json"
    if not stretches or lake.exists(done):
        return
    given = {
        "environment_lake": log.lake.url,
        "start": window[0],
        "end": window[1],
        "training": to_json(training),
        "stretches": [one.name for one in stretches],
    }
    session = session_for(spec.spark, lake, Job("profile_window", given))

    def keep(stretch: Stretch) -> None:
        profiled_stretch(log, training, segments, kept, stretch)

    session.sparkContext.parallelize(stretches, len(stretches)).foreach(keep)
    lake.write_json(done, {"schema": "profiled_window/1", "kind": kind, "window": window})
