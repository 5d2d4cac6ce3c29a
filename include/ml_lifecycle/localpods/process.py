"""A pod's container as a child process, behind :mod:`ml_lifecycle.localpods.shim`.

A pod's folder holds ``work`` (the container's working folder), ``tmp``, ``log``, ``lock`` and, once it ended,
``exit.json``. The lock is held by the shim and by nobody else, so waiting for a container means waiting for
its lock: that works the same for one we started and for one that an earlier server did.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ml_lifecycle.localpods.pods import KILLED, Exit
from ml_lifecycle.localpods.shim import LOCK_BYTES

_SHIM = Path(__file__).with_name("shim.py")


class PodProcess:
    """The process of the pod whose folder this is, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shim: subprocess.Popen[bytes] | None = None

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. A command that cannot be run shows as its exit.

        :raises OSError: this machine can start no further process. Retry: yes.
        """
        for name in ("work", "tmp"):
            (self.folder / name).mkdir(mode=0o700)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(lock, b" " * LOCK_BYTES)  # room for the shim's word: later the disk may be full
        # The shim inherits these as blocked: one sent before it can handle them waits until it does.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        try:
            # Locked before the shim exists and inherited by it: at no time can it seem to be gone.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._shim = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SHIM), str(self.folder), str(lock), *command],
                env=dict(environment),
                cwd=self.folder / "work",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[lock],
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(lock)

    def wait(self) -> Exit:
        """Block until nothing of it runs any more; returns how it ended, as often as it is asked."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._shim is not None:
                self._shim.wait()
            try:
                return Exit(**json.loads((self.folder / "exit.json").read_bytes()))
            except FileNotFoundError:
                self._kill_stray(lock)
                return Exit(
                    KILLED, "ContainerStatusUnknown", "the process vanished without leaving its exit code"
                )
        finally:
            os.close(lock)

    def terminate(self) -> None:
        """Send SIGTERM to the container's first process, as Kubernetes does."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Have the shim send SIGKILL to the container's first process, then to all its descendants."""
        self._signal(signal.SIGUSR1)

    def memory(self) -> int:
        """Bytes that its processes hold together, what they share counted once where the system tells."""
        processes = self._processes()
        return sum(_proportional_memory(process) for process in processes)

    def exceeds(self, limit: int) -> bool:
        """Whether its processes hold more than ``limit`` bytes."""
        resident = 0
        for process in self._processes():
            with suppress(psutil.Error):
                resident += process.memory_info().rss
        # The exact number costs the kernel a walk through every page table: ask only when it may matter.
        return resident > limit and self.memory() > limit

    def remove_scratch(self) -> None:
        """Remove the working folder and the temporary one: what a pod wants to keep goes to the lake."""
        for name in ("work", "tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _signal(self, number: int) -> None:
        shim = self._shim.pid if self._shim is not None else self._pids()[0]
        if shim:
            with suppress(ProcessLookupError):
                os.kill(shim, number)

    def _pids(self) -> tuple[int, int]:
        """Process ids of shim and container; zeros until both run."""
        words = (self.folder / "lock").read_text().split()
        return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)

    def _processes(self) -> list[psutil.Process]:
        shim, _ = self._pids()
        try:
            return psutil.Process(shim).children(recursive=True) if shim else []
        except psutil.Error:
            return []

    def _kill_stray(self, lock: int) -> None:
        """Somebody killed the shim: kill the container too, if the process of that id is still the same."""
        _, container = self._pids()
        with suppress(psutil.Error, ProcessLookupError):
            if container and abs(psutil.Process(container).create_time() - os.fstat(lock).st_mtime) < 2:
                os.killpg(container, signal.SIGKILL)


def _proportional_memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", full.rss))
