"""Stands between the server and one container, so that the container outlives a restart of the server.

Run as a script of its own, with nothing but the standard library's quickest parts:
``python -I -S shim.py FOLDER LOCK_FD COMMAND...``, in the environment and folder meant for the container.
It starts COMMAND in a process group of its own, copies its output to ``FOLDER/log`` with a time before each
line, and when the command ends it kills whatever that left behind, writes ``FOLDER/exit.json`` and exits.

``FOLDER/lock`` comes already locked, as LOCK_FD. The lock is free exactly when the shim is gone, however it
went; until then the file names its process id and its container's. SIGTERM is passed on to the command,
SIGUSR1 kills it with all its descendants.
"""

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress

MAX_LINE = 256 * 1024
MAX_LOG = 64 * 1024 * 1024
LOCK_BYTES = 64
RESET = [signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGUSR1, signal.SIGXFSZ]


def main(folder: str, lock: int, command: list[str]) -> int:
    """Run ``command`` to its end; returns its exit code."""
    os.set_inheritable(lock, False)
    _adopt_orphans()
    wake = _catch_signals()
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    output, container_output = os.pipe()
    try:
        container = _spawn(command, container_output)
    except OSError as error:
        # The words and the code of containerd, which callers may know.
        message = f'exec: "{command[0]}": {error.strerror}'
        return _leave(folder, {"code": 128, "reason": "StartError", "message": message})
    os.close(container_output)
    os.pwrite(lock, f"{os.getpid()} {container}".encode().ljust(LOCK_BYTES), 0)
    status = _copy_until_exit(_Log(log), output, wake, container)
    code = os.waitstatus_to_exitcode(status)
    return _leave(folder, {"code": code if code >= 0 else 128 - code})


def _catch_signals() -> int:
    """Have each signal's number written to a pipe, whose reading end is returned; nothing else happens."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda _number, _frame: None)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})  # blocked until here
    return wake


def _spawn(command: list[str], output: int) -> int:
    return os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setpgroup=0,
        setsigmask=[],
        setsigdef=RESET,
    )


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none gets away. Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _copy_until_exit(log: "_Log", output: int, wake: int, container: int) -> int:
    """Copy the output until the container and all its descendants are gone; returns its wait status."""
    open_output = True
    while not _ended(container):
        ready, _, _ = select.select([wake, output] if open_output else [wake], [], [])
        if output in ready:
            open_output = log.copy(output)
        if wake in ready:
            for number in os.read(wake, 4096):
                _pass_on(number, container)
    status = _bury(container)
    os.set_blocking(output, False)
    while open_output:
        open_output = log.copy(output)
    log.end()
    return status


def _pass_on(number: int, container: int) -> None:
    if number == signal.SIGTERM:
        os.kill(container, signal.SIGTERM)
    elif number == signal.SIGUSR1:
        os.kill(container, signal.SIGKILL)  # its end is the end of all the others


def _ended(container: int) -> bool:
    """Whether the container has ended. It is not waited for yet, so that its id stays its own."""
    while child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if child.si_pid == container:
            return True
        os.waitpid(child.si_pid, 0)
    return False


def _bury(container: int) -> int:
    """Kill its process group and every adopted orphan, as the end of PID 1 does; returns its wait status."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in it; macOS says so with EPERM
        os.killpg(container, signal.SIGKILL)
    result = 0
    while True:
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return result
        if pid == container:
            result = status


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []  # no such file on this system: the process group was all we can reach


class _Log:
    """Writes whole lines, each with the time at which it was read, until the log is large enough."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._partial = b""
        self._room = MAX_LOG

    def copy(self, output: int) -> bool:
        """Copy what there is to read; False when there will be no more."""
        try:
            data = os.read(output, 65536)
        except BlockingIOError:
            return False
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        if len(self._partial) > MAX_LINE:
            lines.append(self._partial)
            self._partial = b""
        self._write(lines)
        return bool(data)

    def end(self) -> None:
        """Write the last line if it has no end."""
        if self._partial:
            self._write([self._partial])

    def _write(self, lines: list[bytes]) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z "
        if self._room <= 0:
            return
        data = b"".join(b"%s%s\n" % (stamp.encode(), line) for line in lines)
        self._room -= len(data)
        if self._room <= 0:
            data += b"%sthe log has %d MiB: the rest is not kept\n" % (stamp.encode(), MAX_LOG >> 20)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            return  # a full disk costs the container its log, not its life


def _leave(folder: str, result: dict[str, object]) -> int:
    temporary = os.path.join(folder, ".exit.json")
    with open(temporary, "w") as file:
        json.dump(result, file)
    os.replace(temporary, os.path.join(folder, "exit.json"))
    return int(str(result["code"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
