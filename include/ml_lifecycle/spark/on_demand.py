"""On-demand features, by Feast's own code wherever the rows are.

Spark's workers import this module, and Feast, which takes seconds, only if there is such a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from feast import OnDemandFeatureView
    from feast.infra.offline_stores.offline_store import RetrievalMetadata


class OnDemandFeatures:
    """Adds on-demand features to rows; goes to Spark's workers in the form in which Feast stores views.

    :param metadata: says which of the views' features are asked for
    """

    def __init__(self, views: Sequence[OnDemandFeatureView], metadata: RetrievalMetadata | None) -> None:
        self._views = [view.to_proto().SerializeToString() for view in views]
        self._metadata = metadata if views else None

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with these features."""
        if not self._views:
            return rows
        from feast import OnDemandFeatureView
        from feast.protos.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView as Proto

        from ml_lifecycle.adapters.feast_retrieval import AsOfRetrievalJob

        views = [OnDemandFeatureView.from_proto(Proto.FromString(view)) for view in self._views]
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())  # as Feast's conversions know them
        job = AsOfRetrievalJob(lambda: iter([table]), None, False, views, lambda: self._metadata)
        return pl.DataFrame(pl.from_arrow(job.to_arrow()))
