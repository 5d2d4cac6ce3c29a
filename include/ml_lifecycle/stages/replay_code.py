"""Which code served requests are replayed with: that which the version that answered was trained with.

Every training leaves its model folder in the lake, packed. Where a package is gone, or does not run any
more, today's folder stands in for it, and the report says so. Features of a version that nobody knows are not
looked up: by which code they would be right, nobody can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.code_package import kept_folder
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import Training
from ml_lifecycle.spec.folder import ModelFolder, read_folder
from ml_lifecycle.stages.feature_tables import features_of
from ml_lifecycle.stages.replay_rows import ServedRow

# What features are made of is all of a folder but these; of the spec it is compared what counts for them.
_ASIDE = ("model.yaml", "contract.yaml", "dag.py")


@dataclass(frozen=True)
class Code:
    """What some of the rows are replayed with.

    :param trained_with: digest of the model folder that their versions were trained with, if it is known
    :param folder: that one, or today's: where features follow from both alike, or in its place; None if it is
        not known which
    :param because: why it is not that one; None if it is, or might as well be
    """

    trained_with: str | None
    folder: ModelFolder | None
    because: str | None
    numbers: tuple[int, ...]

    def told(self, rows: Sequence[ServedRow]) -> dict[str, Any]:
        """For the report."""
        return {
            "versions": sorted({rows[number].version for number in self.numbers}),
            "rows": len(self.numbers),
            "trained_with": self.trained_with,
            "replayed_with": None if self.folder is None else self.folder.code_digest,
            "because": self.because,
        }


def codes_of(
    rows: Sequence[ServedRow],
    today: ModelFolder,
    lake: Lake,
    training_of: Callable[[str], Training | None],
    into: Path,
) -> list[Code]:
    """The rows by the code that made their versions, in the order in which these come up.

    :param training_of: model digest → the training that made it, None if it is unknown
    :param into: an empty folder, which must stay while the code runs
    :raises OSError: the lake cannot be reached. Retry: yes.
    """
    numbers: dict[tuple[str | None, str | None], list[int]] = {}
    trained_with = {digest: _trained_with(digest, training_of) for digest in {row.digest for row in rows}}
    for number, row in enumerate(rows):
        numbers.setdefault(trained_with[row.digest], []).append(number)
    found = []
    for place, ((digest, because), those) in enumerate(numbers.items()):
        folder = None
        if digest is not None:
            folder, because = _folder(lake, digest, today, into / str(place))
        found.append(Code(digest, folder, because, tuple(those)))
    return found


def _trained_with(
    model_digest: str, training_of: Callable[[str], Training | None]
) -> tuple[str | None, str | None]:
    """The digest of a version's code; or why it is not known."""
    try:
        training = training_of(model_digest)
    except LifecycleError as error:
        return None, f"the training of the version cannot be read: {error}"
    return (None, "no training of the version is known") if training is None else (training.code_digest, None)


def _folder(lake: Lake, digest: str, today: ModelFolder, into: Path) -> tuple[ModelFolder, str | None]:
    if digest == today.code_digest:
        return today, None
    try:
        folder = kept_folder(lake, today.spec.name, digest, into)
        if _of_features(folder) == _of_features(today):
            return today, None  # whose tables are in the lake already
        features_of(folder)
    except LifecycleError as error:
        return today, f"the version's code cannot be used: {type(error).__name__}: {error}"
    return folder, None


def _of_features(folder: ModelFolder) -> tuple[str, dict[str, bytes]]:
    """What a folder's features follow from."""
    files = {name: data for name, data in read_folder(folder.path).files.items() if name not in _ASIDE}
    others = [data for name, data in files.items() if name.endswith(".py") and name != "training.py"]
    if not any(b"training" in data for data in others):
        files.pop("training.py", None)
    return folder.spec.features.service, files
