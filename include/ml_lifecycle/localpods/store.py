"""Pods on disk: one folder each, ``<state>/pods/<uid>``, its record replaced atomically at every change."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.localpods.pods import Pod

log = logging.getLogger(__name__)


class StateInUseError(LifecycleError):
    """Another server works on the state folder. Retry: yes, once it has stopped."""

    retryable = True


class PodStore:
    """The state folder, held for as long as this object is open.

    :raises StateInUseError: another server holds it. Retry: yes.
    """

    def __init__(self, folder: Path) -> None:
        self._pods = folder / "pods"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # records name secrets, logs may hold anything
        self._pods.mkdir(exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StateInUseError(
                f"{folder} is in use by another server; stop that or use another"
            ) from error

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)

    def folder(self, pod: Pod) -> Path:
        """The pod's own."""
        return self._pods / pod.uid

    def save(self, pod: Pod) -> None:
        """Write the pod's record."""
        folder = self.folder(pod)
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = folder / ".pod.json"
        temporary.write_text(json.dumps(pod.to_record()))
        temporary.replace(folder / "pod.json")

    def load(self) -> Iterator[Pod]:
        """All pods recorded by earlier servers."""
        for folder in sorted(self._pods.iterdir()):
            if not (folder / "pod.json").exists():
                shutil.rmtree(folder, ignore_errors=True)  # cut short while being made or removed
                continue
            try:
                yield Pod.from_record(json.loads((folder / "pod.json").read_bytes()))
            except (OSError, ValueError, KeyError, TypeError, LifecycleError):
                # One that nobody can read must not keep the others from being served.
                log.exception("%s holds no readable pod and is left alone", folder)

    def remove(self, pod: Pod) -> None:
        """Forget the pod and its log."""
        shutil.rmtree(self.folder(pod), ignore_errors=True)
