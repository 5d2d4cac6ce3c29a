"""Reading files that a running program also writes, renames and removes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_under(root: Path) -> list[Path]:
    """Those that were there while we looked; ``Path.rglob`` fails where a folder goes meanwhile."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(path for path in paths if path.is_file())


def read_living(root: Path, suffix: str = "") -> Iterator[tuple[Path, bytes]]:
    """Every file whose path ends with ``suffix``, with its content; none that went on our way."""
    for path in files_under(root):
        if str(path).endswith(suffix):
            try:
                yield path, path.read_bytes()
            except FileNotFoundError:
                continue
