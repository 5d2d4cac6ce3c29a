"""A disk that can be filled: a tmpfs of its own, for tests of what happens when there is no room left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """A file system that holds little.

    :param folder: where it is mounted
    """

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / ".filler"

    def fill(self, leave: int = 0) -> None:
        """Take all the room there is, to the last page; ``leave`` bytes of it are given back."""
        self.free()
        status = os.statvfs(self.folder)
        room = max(status.f_bavail * status.f_frsize - leave, 0)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room) if room else None

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount one at ``folder``; skips the test where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
