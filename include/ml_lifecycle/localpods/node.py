"""The one node of the cluster: admits pods, starts them when there is room, watches them and ends them.

Everything happens on one event loop and no method waits between reading and changing state, so there are no
locks. A thread per running pod does nothing but wait for its end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ml_lifecycle.localpods.environment import (
    ANY_SELECTION,
    NODE_NAME,
    base_environment,
    expand_all,
    resolve_environment,
)
from ml_lifecycle.localpods.manifest import check_metadata_patch, check_pod
from ml_lifecycle.localpods.pods import Ending, Event, Exit, Pod, place
from ml_lifecycle.localpods.process import PodProcess
from ml_lifecycle.localpods.secrets import SecretFolder
from ml_lifecycle.localpods.status import ApiError, already_exists, not_found
from ml_lifecycle.localpods.store import PodStore
from ml_lifecycle.quantity import CPU, MEMORY, Amounts

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
MEMORY_SECONDS = 0.5
# Longer than a deferred task's poll interval plus the start of the task that then reads the log.
TOMBSTONE_SECONDS = 30.0
# Ended pods that nobody deleted are kept up to this many (terminated-pod-gc-threshold in Kubernetes).
KEPT_PODS = 500


class Node:
    """Runs pods within ``capacity``.

    :param python: the interpreter that ``python`` in a pod's command means
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        store: PodStore,
        capacity: Amounts,
        secrets: SecretFolder,
        python: Path,
        python_folder: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._secrets = secrets
        self._python = python
        self._python_folder = python_folder
        self._clock = clock
        self._pods: dict[tuple[str, str], Pod] = {}
        self._processes: dict[str, PodProcess] = {}
        self._unsaved: set[str] = set()
        # Never lower than what an earlier server gave out, without a file to keep it in.
        self._version = int(clock() * 1000)
        self._news = asyncio.Event()
        self._starts = False
        self._ticker: asyncio.Task[None] | None = None
        self._memory_checked = 0.0

    async def open(self, *, start_pods: bool = True) -> None:
        """Take over what an earlier server left: adopt what runs, account for what ended meanwhile.

        :param start_pods: whether pods that wait for room may start
        """
        for pod in self._store.load():
            self._pods[pod.namespace, pod.name] = pod
            if pod.running:
                self._watch(pod)
        self._ticker = asyncio.create_task(self._tick_for_ever())
        self._starts = start_pods
        self._start_what_fits()

    async def close(self) -> None:
        """Stop watching; what runs runs on, for the next server to adopt."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
        self._store.close()

    async def stop_pods(self, grace_seconds: float) -> None:
        """End all pods and return when nothing of them runs any more; none starts after this."""
        self._starts = False
        for pod in [pod for pod in self._pods.values() if not pod.finished]:
            grace = min(grace_seconds, pod.spec.grace_seconds)
            self._end(pod, "Terminated", "Pod was terminated in response to imminent node shutdown.", grace)
        while any(pod.running for pod in self._pods.values()):
            await self.changed(TICK_SECONDS)

    # What the API offers

    def to_json(self) -> dict[str, Any]:
        """The Node object of the API: what it gives out, and that it runs pods of every pool."""
        amounts = {
            name: f"{amount}m" if name == CPU else str(amount) for name, amount in self._capacity.items()
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODE_NAME,
                "labels": {"kubernetes.io/hostname": NODE_NAME, ANY_SELECTION: "true"},
            },
            "spec": {},
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }

    def create(self, namespace: str, manifest: dict[str, Any]) -> Pod:
        """Admit a pod, and start it if there is room.

        :raises ApiError: 400 or 422, the manifest; 409, there is such a pod. Retry: no. 507, its record
            cannot be written. Retry: yes.
        """
        pod = Pod(manifest, namespace, str(uuid.uuid4()), self._clock())
        resolve_environment(pod.spec, pod.metadata, self._secrets)
        if (existing := self._pods.get((namespace, pod.name))) is not None:
            if not existing.gone:
                raise already_exists(pod.name)
            self._forget(existing)
        self._admit(pod)
        self._start_what_fits()
        return pod

    def get(self, namespace: str, name: str) -> Pod:
        """A pod, for a while also one that was deleted.

        :raises ApiError: 404. Retry: no.
        """
        try:
            return self._pods[namespace, name]
        except KeyError:
            raise not_found(name) from None

    def pods(self, namespace: str | None = None) -> list[Pod]:
        """The pods of a namespace, or all; deleted ones until they have ended."""
        return [pod for pod in self._pods.values() if namespace in (None, pod.namespace) and not pod.gone]

    def patch(self, namespace: str, name: str, patch: Any) -> Pod:
        """Merge labels and annotations; None removes one.

        :raises ApiError: 404; 422, it would change anything else. Retry: no.
        """
        pod = self.get(namespace, name)
        changes = check_metadata_patch(pod.name, patch)
        metadata = dict(pod.manifest["metadata"])
        for key, change in changes.items():
            merged = {**(metadata.get(key) or {}), **change}
            metadata[key] = {name: value for name, value in merged.items() if value is not None}
        changed = {**pod.manifest, "metadata": metadata}
        check_pod(changed, namespace)  # what many small patches make together
        pod.manifest = changed
        self._save(pod)
        return pod

    def delete(self, namespace: str, name: str, grace_seconds: int | None) -> Pod:
        """Stop a pod, then forget it after a while.

        :param grace_seconds: None is the pod's own; where it is being deleted already, what was said then
        :raises ApiError: 404. Retry: no.
        """
        pod = self.get(namespace, name)
        if pod.gone:
            raise not_found(name)
        if pod.deleted_at is not None and grace_seconds is None:
            return pod
        pod.delete(self._clock(), pod.spec.grace_seconds if grace_seconds is None else grace_seconds)
        if pod.running:
            self._event(pod, "Killing", f"Stopping container {pod.spec.container}")
        self._carry_out_end(pod)
        return pod

    def evict(self, namespace: str, name: str, grace_seconds: int | None) -> None:
        """Stop a pod as a node under pressure does: it ends Failed, reason Evicted, and stays there.

        :raises ApiError: 404. Retry: no.
        """
        pod = self.get(namespace, name)
        if pod.gone:
            raise not_found(name)
        if not pod.finished:
            grace = pod.spec.grace_seconds if grace_seconds is None else grace_seconds
            self._end(pod, "Evicted", "The node was asked to evict this pod.", grace)

    def events(self, namespace: str, after: int = 0) -> list[tuple[Pod, Event]]:
        """Events of a namespace's pods in their order, those newer than version ``after``."""
        found = [
            (pod, event)
            for pod in self._pods.values()
            if pod.namespace == namespace
            for event in pod.events
            if event.version > after
        ]
        return sorted(found, key=lambda item: item[1].version)

    @property
    def version(self) -> int:
        """The newest change's."""
        return self._version

    def log_path(self, pod: Pod) -> Path:
        """Where its output is written."""
        return self._store.folder(pod) / "log"

    async def changed(self, timeout: float) -> None:
        """Wait until any pod changes, or for ``timeout`` seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(timeout, 0))

    # What happens to pods

    def _admit(self, pod: Pod) -> None:
        self._pods[pod.namespace, pod.name] = pod
        self._save(pod)
        if pod.uid in self._unsaved:
            self._forget(pod)
            raise ApiError(
                507,
                "InsufficientStorage",
                "the pod's record cannot be written: make room in the state folder",
            )

    def _start_what_fits(self) -> None:
        while self._starts:
            placement = place(self._pods.values(), self._capacity)
            for pod, reason in placement.waiting:
                if pod.unschedulable != reason:
                    pod.unschedulable = reason
                    self._event(pod, "FailedScheduling", reason, "Warning")
            if not placement.start:
                return
            for pod, gpus in placement.start:
                self._start(pod, gpus)
            # Looked at again: one that failed to start has given its room back.

    def _start(self, pod: Pod, gpus: Sequence[int]) -> None:
        # Recorded first: a server that dies in between never starts a pod twice.
        pod.start(self._clock(), gpus)
        self._event(pod, "Scheduled", f"Successfully assigned {pod.namespace}/{pod.name} to {NODE_NAME}")
        if pod.uid in self._unsaved:
            self._record_end(
                pod, Exit(128, "StartError", "its start cannot be recorded: no room on the disk")
            )
            return
        process = PodProcess(self._store.folder(pod))
        try:
            given = resolve_environment(pod.spec, pod.metadata, self._secrets)
            devices = ",".join(map(str, gpus))
            process.launch(
                expand_all(pod.spec.command, given),
                {
                    **base_environment(process.folder, self._python_folder, self._python, pod.name),
                    **given,
                    "CUDA_VISIBLE_DEVICES": devices,
                },
            )
        except ApiError as error:
            self._record_end(pod, Exit(128, "CreateContainerConfigError", str(error)))
        except (OSError, ValueError) as error:  # ValueError: NUL in what its annotations say
            self._record_end(pod, Exit(128, "StartError", f"cannot start a process: {error}"))
        else:
            self._event(pod, "Started", f"Started container {pod.spec.container}")
            self._watch(pod, process)

    def _watch(self, pod: Pod, process: PodProcess | None = None) -> None:
        process = process or PodProcess(self._store.folder(pod))
        self._processes[pod.uid] = process
        loop = asyncio.get_running_loop()

        def wait() -> None:
            result = process.wait()
            with suppress(RuntimeError):  # the loop is closed: the next server will see for itself
                loop.call_soon_threadsafe(self._finish, pod, result)
            process.remove_scratch()

        threading.Thread(target=wait, name=f"wait-{pod.name}", daemon=True).start()

    def _end(self, pod: Pod, ending: Ending, message: str, grace_seconds: float) -> None:
        pod.end(ending, message, self._clock(), grace_seconds)
        self._event(pod, ending, message, "Warning")
        self._carry_out_end(pod)

    def _carry_out_end(self, pod: Pod) -> None:
        self._save(pod)
        if (process := self._processes.get(pod.uid)) is not None:
            process.terminate()
            self._kill_if_due(pod)
        else:
            self._start_what_fits()  # it only waited, perhaps before others

    def _kill_if_due(self, pod: Pod) -> None:
        if pod.kill_at is not None and self._clock() >= pod.kill_at:
            self._processes[pod.uid].kill()

    def _finish(self, pod: Pod, exit: Exit) -> None:
        self._record_end(pod, exit)
        self._start_what_fits()

    def _record_end(self, pod: Pod, exit: Exit) -> None:
        self._processes.pop(pod.uid, None)
        pod.finish(exit, self._clock())
        log.info("pod %s/%s ended: %s, exit code %d", pod.namespace, pod.name, pod.phase, exit.code)
        if exit.message is not None:
            self._event(pod, "Failed", exit.message, "Warning")
        self._save(pod)

    def _event(
        self, pod: Pod, reason: str, message: str, type: Literal["Normal", "Warning"] = "Normal"
    ) -> None:
        self._version += 1
        pod.events.append(Event(self._version, self._clock(), reason, message, type))
        self._save(pod)

    def _save(self, pod: Pod) -> None:
        """Record a change; one that cannot be written now holds all the same and is written later."""
        self._version += 1
        pod.version = self._version
        try:
            self._store.save(pod)
            self._unsaved.discard(pod.uid)
        except OSError as error:
            if pod.uid not in self._unsaved:
                log.error("the record of pod %s/%s cannot be written: %s", pod.namespace, pod.name, error)
            self._unsaved.add(pod.uid)
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _forget(self, pod: Pod) -> None:
        del self._pods[pod.namespace, pod.name]
        self._unsaved.discard(pod.uid)
        self._store.remove(pod)

    # What time does

    async def _tick_for_ever(self) -> None:
        while True:
            try:
                self._tick()
                await self._check_memory()
            except Exception:  # whatever it is, deadlines and limits of the other pods must still be held
                log.exception("the node's housekeeping failed and goes on")
            await asyncio.sleep(TICK_SECONDS)

    def _tick(self) -> None:
        now = self._clock()
        for pod in [pod for pod in self._pods.values() if pod.running]:
            if pod.ending is None and now >= (pod.deadline or math.inf):
                message = "Pod was active on the node longer than the specified deadline"
                self._end(pod, "DeadlineExceeded", message, pod.spec.grace_seconds)
            self._kill_if_due(pod)
        for pod in [pod for pod in self._pods.values() if pod.uid in self._unsaved]:
            self._save(pod)
        ended = [pod for pod in self._pods.values() if pod.finished]
        for pod in _overdue(ended, now):
            self._forget(pod)

    async def _check_memory(self) -> None:
        now = self._clock()
        limited = [pod for pod in self._pods.values() if pod.running and MEMORY in pod.spec.limits]
        if not limited or now - self._memory_checked < MEMORY_SECONDS:
            return
        self._memory_checked = now
        for pod in limited:
            limit = pod.spec.limits[MEMORY]
            process = self._processes.get(pod.uid)
            if process is None or not await asyncio.to_thread(process.exceeds, limit):
                continue
            if pod.running:  # still, after the look at its processes
                message = f"Memory use exceeded the limit of {limit} bytes"
                self._end(pod, "OOMKilled", message, grace_seconds=0)


def _overdue(ended: Iterable[Pod], now: float) -> list[Pod]:
    """Tombstones whose time is over, and the oldest of too many pods that nobody deleted."""

    def since(pod: Pod) -> float:
        return max(pod.finished_at or 0.0, pod.deleted_at or 0.0)

    kept = sorted((pod for pod in ended if not pod.gone), key=since)
    tombstones = [pod for pod in ended if pod.gone and now - since(pod) > TOMBSTONE_SECONDS]
    return tombstones + kept[: max(len(kept) - KEPT_PODS, 0)]
