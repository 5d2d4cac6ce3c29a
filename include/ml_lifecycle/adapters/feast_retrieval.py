"""What a retrieval from our Feast offline store comes to: read at once, a slice at a time, or written."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource, OnDemandFeatureView
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage, ValidationReference
from feast.types import from_feast_to_pyarrow_type

from ml_lifecycle.adapters.parquet import COMPRESSION, COMPRESSION_LEVEL, ROW_GROUP_ROWS
from ml_lifecycle.errors import FeatureError


class AsOfRetrievalJob(RetrievalJob):  # type: ignore[misc]  # Feast has no types
    """A retrieval that runs when its result is asked for; on-demand views are computed by Feast's base.

    ``to_df`` and ``to_arrow`` hold the whole result; :meth:`write` and ``persist`` hold a slice of it.

    :param slices: yields the result in slices, at least one
    """

    def __init__(
        self,
        slices: Callable[[], Iterator[pa.Table]],
        repo_path: Path | None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: Callable[[], RetrievalMetadata | None] = lambda: None,
    ) -> None:
        self._slices = slices
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views that are computed from the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for; None when a table was read as it is."""
        return self._metadata()

    def slices(self) -> Iterator[pa.Table]:
        """The result slice by slice, at least one, without on-demand features."""
        return self._slices()

    def parts(self) -> Iterator[pa.Table]:
        """The result slice by slice with on-demand features, in whatever types their values have there."""
        for one in self._slices():
            part = copy.copy(self)
            part._slices = partial(iter, [one])
            yield part.to_arrow()

    def to_df(
        self, validation_reference: ValidationReference | None = None, timeout: int | None = None
    ) -> pd.DataFrame:
        """The result as a pandas frame.

        Feast's base copies it once more, which only columns need that would lie in Arrow's memory, read-only.
        """
        rows = self.to_arrow(validation_reference, timeout)
        frame = rows.to_pandas()
        return frame if all(map(_is_copied, rows.schema.types)) else frame.copy()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return pa.concat_tables(self._slices())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def write(self, path: Path) -> int:
        """Write the result as one Parquet file, slice by slice, and return how many rows it has.

        On-demand features are written in the types they declare: the values of a slice alone would make
        whole numbers fractions wherever one is missing.

        :raises FeatureError: an on-demand feature is not what it declares. Retry: no.
        """
        written = 0
        with replacing(path) as temporary, ExitStack() as opened:
            writer: pq.ParquetWriter | None = None
            for part in self.parts():
                rows = self._declared(part)
                if writer is None:
                    writer = opened.enter_context(
                        pq.ParquetWriter(
                            temporary,
                            rows.schema,
                            compression=COMPRESSION,
                            compression_level=COMPRESSION_LEVEL,
                        )
                    )
                writer.write_table(rows, ROW_GROUP_ROWS)
                written += rows.num_rows
        return written

    def _declared(self, rows: pa.Table) -> pa.Table:
        for view in self._on_demand_feature_views:
            prefix = f"{view.projection.name_to_use()}__" if self._full_feature_names else ""
            for feature in view.features:
                at = rows.schema.get_field_index(prefix + feature.name)
                if at < 0:  # not asked for
                    continue
                try:
                    values = rows.column(at).cast(from_feast_to_pyarrow_type(feature.dtype))
                except pa.ArrowInvalid as error:
                    raise FeatureError(
                        f"on-demand feature {view.name}:{feature.name} is declared {feature.dtype}: {error}"
                    ) from error
                rows = rows.set_column(at, prefix + feature.name, values)
        return rows

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """:meth:`write` to a saved data set's file.

        :raises SavedDatasetLocationAlreadyExists: there is a file and it may not be overwritten. Retry: no.
        :raises FeatureError: the storage is no file of this machine. Retry: no.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise FeatureError(
                f"this store persists to SavedDatasetFileStorage, not {type(storage).__name__}"
            )
        uri = storage.file_options.uri
        if "://" in uri:
            raise FeatureError(f"this store persists to a local path, not to {uri}")
        path = Path(FileSource.get_uri_for_file_path(self._repo_path, uri))
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=uri)
        self.write(path)


def _is_copied(kind: pa.DataType) -> bool:
    """Whether pyarrow copies such a column into a frame; the codes of categories it does not."""
    types = pa.types
    return bool(types.is_primitive(kind) or types.is_string(kind) or types.is_large_string(kind))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` once it is whole, and is gone if it never is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
