"""Headless Chromium, driven over its DevTools protocol with the WebSocket client that is there anyway."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waiting import wait_until
from websockets.sync.client import ClientConnection, connect

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0", "about:blank"),
]


def executable() -> str | None:
    """Where Chromium is; None if it is not installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str) -> None:
        self._browser = browser
        self.target = target
        attached = browser.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **parameters)

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a raised error's text as AssertionError."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", "?"))
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Until an expression is truthy."""
        wait_until(lambda: self._holds(script), script, seconds)

    def _holds(self, script: str) -> bool:
        try:
            return bool(self.run(f"Boolean({script})"))
        except (AssertionError, RuntimeError):
            return False  # the document is just being replaced

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path

    def complaints(self) -> list[str]:
        """What the console has of errors, refused loads and broken policies in this tab."""
        return self._browser.complaints(self._session)


class Browser:
    """One browser with a profile of its own."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result.

        :raises RuntimeError: the browser refused it.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer: dict[str, Any] = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") != number:
                self._events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            return dict(answer["result"])

    def open(self, url: str, cookies: dict[str, str] | None = None) -> Page:
        """A new tab; given cookies, in a context of its own that has no others."""
        context = {} if cookies is None else self.send("Target.createBrowserContext")
        page = Page(self, self.send("Target.createTarget", url="about:blank", **context)["targetId"])
        for name, value in (cookies or {}).items():
            page.send("Network.setCookie", url=url, name=name, value=value)
        page.go(url)
        return page

    def pages(self) -> dict[str, str]:
        """Target id → address of every tab."""
        found = self.send("Target.getTargets")["targetInfos"]
        return {each["targetId"]: each["url"] for each in found if each["type"] == "page"}

    def opened(self, action: Callable[[], Any]) -> Page:
        """The tab that an action opens."""
        before = set(self.pages())
        action()
        new = wait_until(lambda: sorted(set(self.pages()) - before), "a new tab")
        return Page(self, new[0])

    def complaints(self, session: str) -> list[str]:
        found = []
        for event in self._events:
            if event.get("sessionId") != session:
                continue
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
        return found


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium, and end it with everything it started."""
    command = [str(executable()), f"--user-data-dir={profile}", *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        port, path = wait_until(lambda: told.exists() and told.read_text().split(), "Chromium's port", 60)
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as connection:
            made = Browser(connection)
            yield made
            made.send("Browser.close")
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
