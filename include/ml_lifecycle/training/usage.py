"""What a pod uses: measured in the pod, written beside its result time and again.

A pod that is killed can say nothing afterwards, so what it wrote last is what is known of it: its seconds
count as well as those of the one that finished, and its memory tells how close to the limit it was.
"""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ml_lifecycle.adapters.lake import Lake

log = logging.getLogger("ml_lifecycle.training")

SAMPLE_SECONDS = 1.0
WRITE_SECONDS = 15.0


class Usage:
    """Wall, CPU and GPU use of this process and its children since it was made.

    GPU figures are there only where NVIDIA's management library and a device are, and are the device's: a
    pod has it to itself.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._devices = _devices()
        self._samples, self._utilisation, self._gpu_memory = 0, 0.0, 0

    def sample(self) -> None:
        """Look at the devices now."""
        self._samples += 1
        for nvml, device in self._devices:
            with suppress(nvml.NVMLError):  # a device that cannot say: the others still can
                self._utilisation += nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
                self._gpu_memory = max(self._gpu_memory, nvml.nvmlDeviceGetMemoryInfo(device).used)

    def figures(self) -> dict[str, float]:
        """Seconds, bytes, and the share of its seconds that a device was busy."""
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = {
            "wall_seconds": round(time.monotonic() - self._started, 3),
            "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
            "peak_memory_bytes": float(max(own.ru_maxrss, children.ru_maxrss) * _MAXRSS_BYTES),
        }
        if self._devices:
            looks = max(self._samples, 1) * len(self._devices)
            figures["gpu_seconds"] = round(figures["wall_seconds"] * len(self._devices), 3)
            figures["gpu_utilisation"] = round(self._utilisation / looks, 4)
            figures["peak_gpu_memory_bytes"] = float(self._gpu_memory)
        return figures


_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@contextmanager
def reported(lake: Lake, path: str) -> Iterator[Usage]:
    """Measure until the end of the block, and write the figures to ``path`` all along."""
    usage, ended = Usage(), threading.Event()

    def report() -> None:
        written = time.monotonic()
        while not ended.wait(SAMPLE_SECONDS):
            usage.sample()
            if time.monotonic() - written >= WRITE_SECONDS:
                written = time.monotonic()
                try:
                    lake.write_json(path, usage.figures())
                except Exception as error:  # noqa: BLE001 - figures are no reason to end a training
                    log.warning("the pod's use cannot be written: %s", error)

    reporter = threading.Thread(target=report, daemon=True, name="usage")
    reporter.start()
    try:
        yield usage
    finally:
        ended.set()
        reporter.join()


def _devices() -> list[tuple[Any, Any]]:
    try:
        import pynvml

        pynvml.nvmlInit()
        return [(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # noqa: BLE001 - no library, no driver, no right to ask: nothing is known of devices
        return []
