"""Every external effect of a call, seen from outside the code and numbered; a process can die at any of them.

Production code knows nothing of this. In a process of its own an audit hook sees each file that is opened for
writing, renamed, removed or made below ``root``, and each connection to a server; a trace of every SQLite
connection sees each commit; :class:`AuditedTransport` names the requests of httpx, whose kept connections
are opened once.

Two effects have a *gap* between them, in which nothing that anybody else can see happens. Of *n* effects
there are *n + 1* gaps: before the first, right after each, and after the last, where all is done and the
caller never hears of it. To die before an effect is to die right after the one before it.

What lies outside ``root`` (the process's temporary folder) nobody else reads. Times and permissions of files
are no content. Pages that SQLite writes between commits are its own affair.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import pytest

_SECONDS = 300
_OPENED, _COMMIT = "open", "commit"
_REQUEST = "faults.request"  # our own audit event
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_WRITES = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|PRAGMA\s+journal_mode\s*=)", re.IGNORECASE
)
# Names that differ from one run to the next: of temporary files, of MLflow's runs and models.
_RANDOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


@dataclass(frozen=True)
class Death:
    """Where a call dies.

    :param gap: how many effects have happened by then; a call that has fewer dies after its last
    :param torn: the file opened by the last effect is left with half of its bytes
    """

    gap: int
    torn: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    :param effects: those that happened, in order
    :param stopped_at: the effect it died before; None if it died after the last, or did not die
    :param value: what the call returned
    :param error: the type and text of what it raised
    """

    effects: tuple[str, ...]
    died: bool = False
    stopped_at: str | None = None
    value: Any = None
    error: str | None = None


class AuditedTransport(httpx.HTTPTransport):
    """Says what httpx is about to send: it has no audit event of its own."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sys.audit(_REQUEST, request.method, request.url.path)
        return super().handle_request(request)


class FaultKit:
    """Calls functions in processes that are forked from one with the heavy libraries imported already.

    There is one such process in a test session; it ends with the session.

    :param imported: modules to import before forking; imports only, nothing that starts threads
    """

    def __init__(self, imported: tuple[str, ...]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(imported))
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
            # One thread each: the calls are small, and spinning threads starve whatever else runs here.
            environment.setenv("OMP_NUM_THREADS", "1")
            environment.setenv("POLARS_MAX_THREADS", "1")
            forkserver.ensure_running()

    def run(
        self, root: Path, call: Callable[..., Any], *arguments: Any, death: Death | None = None
    ) -> Outcome:
        """Call it, and have it die if it shall; its function and arguments can be pickled."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run, args=(sender, root, death, call, arguments))
        process.start()
        sender.close()
        try:
            assert receiver.poll(_SECONDS), f"{call.__name__} is still running after {_SECONDS} s"
            outcome: Outcome = receiver.recv()
        finally:
            process.join(5)
            process.kill()
            process.join()
            receiver.close()
        assert process.exitcode == (-signal.SIGKILL if outcome.died else 0)
        return outcome


class _Effects:
    """Counts the effects of this process, and ends it when it is time."""

    def __init__(self, sender: Connection, root: Path, death: Death | None) -> None:
        self._sender = sender
        self._root = f"{root}/"
        self._death = death
        self._happened: list[str] = []
        self._opened: str | None = None
        self._over = False

    def watch(self) -> None:
        """From now on every effect is seen."""
        connect = sqlite3.connect

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **{"factory": _TracedConnection, **options})
            connection.effects = self  # type: ignore[attr-defined]
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = traced  # type: ignore[attr-defined]
        sys.addaudithook(self._hear)

    def end(self, value: Any = None, error: str | None = None) -> None:
        """The call is over."""
        if self._death is not None:
            self._die(None)
        self._over = True
        self._sender.send(Outcome(tuple(self._happened), value=value, error=error))

    def about_to(self, effect: str, opens: str | None = None) -> None:
        """Before an effect; a GET repeated until it is answered as wished is one."""
        effect = _RANDOM.sub("<id>", effect.replace(self._root, ""))
        if effect.startswith("GET ") and self._happened[-1:] == [effect]:
            return
        if self._death is not None and len(self._happened) == self._death.gap:
            self._die(effect)
        self._happened.append(effect)
        self._opened = opens

    def _die(self, effect: str | None) -> None:
        self._over = True  # the rest is our own doing
        if self._death is not None and self._death.torn:
            assert self._opened is not None, f"nothing was being written before {effect}"
            os.truncate(self._opened, os.path.getsize(self._opened) // 2)
        self._sender.send(Outcome(tuple(self._happened), died=True, stopped_at=effect))
        os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._over:
            return
        if event == _REQUEST:
            self.about_to("{} {}".format(*arguments))
        elif event == "socket.connect":
            # The one that a request announced just now belongs to it.
            if not (self._happened and self._happened[-1].startswith(("GET ", "POST "))):
                self.about_to(f"connect to {arguments[1]}")
        elif event == "http.client.send":
            self.about_to("send by http.client")
        elif event == "sqlite3.connect/handle":
            assert isinstance(arguments[0], _TracedConnection), "a connection whose commits nobody sees"
        elif event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITING if mode is None else set(mode) & set("wax+")
            if writes and (place := self._inside(path)):
                self.about_to(f"{_OPENED} {place}", opens=place)
        elif event in _ON_PATHS:
            self._change(event, arguments)

    def _change(self, event: str, arguments: tuple[Any, ...]) -> None:
        places = [place for one in arguments[_ON_PATHS[event]] if (place := self._inside(one))]
        # Making what is there, or removing what is not, is none.
        idle = {"os.mkdir": os.path.isdir, "os.remove": lambda place: not os.path.lexists(place)}
        if places and not idle.get(event, lambda place: False)(places[-1]):
            self.about_to(f"{event.removeprefix('os.')} {' to '.join(places)}")

    def _inside(self, path: Any) -> str | None:
        """The path as text, if it is one below the root."""
        if isinstance(path, int):
            return None
        place = os.path.abspath(os.fsdecode(path))
        return place if place.startswith(self._root) else None


# Audit event → which of its arguments are paths that it changes.
_ON_PATHS = {
    "os.rename": slice(0, 2),
    "os.link": slice(1, 2),
    "os.symlink": slice(1, 2),
    "os.remove": slice(0, 1),
    "os.mkdir": slice(0, 1),
    "os.rmdir": slice(0, 1),
    "os.truncate": slice(0, 1),
}


class _TracedConnection(sqlite3.Connection):
    """Tells of its commits, and of statements that commit by themselves."""

    effects: _Effects | None = None

    def __init__(self, database: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(database, *arguments, **options)
        self._name = os.fsdecode(database)
        self._dirty = False
        self.set_trace_callback(self._trace)

    def _trace(self, statement: str) -> None:
        if self.effects is None:
            return
        if _WRITES.match(statement):
            self._dirty = True
            if not self.in_transaction:
                self._commits(" ".join(statement.split()[:3]))
        elif statement.upper().startswith("ROLLBACK") and "TO " not in statement.upper():
            self._dirty = False
        elif statement.upper().startswith(("COMMIT", "END")):
            self._commits("")

    def _commits(self, statement: str) -> None:
        if self._dirty and self.effects is not None:
            self._dirty = False
            self.effects.about_to(f"{_COMMIT} {self._name} {statement}".strip())


def _run(
    sender: Connection, root: Path, death: Death | None, call: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    effects = _Effects(sender, root, death)
    effects.watch()
    try:
        value = call(*arguments)
    except Exception as error:  # noqa: BLE001 - handed to the caller, who knows what is expected
        effects.end(error=f"{type(error).__name__}: {error}")
    else:
        effects.end(value)
