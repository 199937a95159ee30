"""A headless Chromium, driven over its own pipe: the DevTools protocol without a web socket, and without a package."""

from __future__ import annotations

import base64
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 120
"""Seconds for an answer: a shared machine may be slow, a browser that hangs must not hang the tests."""
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")


def program() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab. asked: the addresses of all requests; said: messages and errors of its console; blocked: requests elsewhere than `home`."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._number, self._session = read, write, b"", 0, None
        self.asked: list[str] = []
        self.said: list[str] = []
        self.blocked: list[str] = []
        self.home = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", patterns=[{"urlPattern": "*"}])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; events that come meanwhile are noted."""
        number = self._send(method, params)
        until = time.monotonic() + PATIENCE
        while True:
            message = self._next(until)
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            self._event(message)

    def open(self, address: str) -> None:
        """Load a page; requests to other servers are blocked from now on."""
        self.home = address[: address.index("/", 8) + 1]
        self.call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", str(found["exceptionDetails"])))
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression once it is true."""
        until = time.monotonic() + PATIENCE
        while not (found := self.ask(expression)):
            assert time.monotonic() < until, f"never true: {expression}; the console said {self.said}"
            time.sleep(0.02)
        return found

    def choose(self, selector: str, file: Path) -> None:
        """Put a file into a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def press(self, key: str, text: str = "", code: int = 0, modifiers: int = 0) -> None:
        """One key, down and up. code: the old key code, which moves the focus and clicks buttons. modifiers: 2 is Control, 8 Shift."""
        more = {"text": text} if text else {}
        key_of = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **key_of, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key_of)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: mousePressed, mouseMoved or mouseReleased."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=int(kind != "mouseReleased"), clickCount=1)

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, in CSS pixels, and whether its user likes it dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0")
        return self._number

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            got = os.read(self._read, 1 << 20) if ready else b""
            if not got:
                raise RuntimeError("the browser gives no answer")
            self._rest += got
        one, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(one))

    def _event(self, message: dict[str, Any]) -> None:
        name, found = message.get("method"), message.get("params", {})
        if name == "Network.requestWillBeSent":
            self.asked.append(found["request"]["url"])
        elif name == "Fetch.requestPaused":
            address = found["request"]["url"]
            if address.startswith((self.home, "data:", "blob:")):
                self._send("Fetch.continueRequest", {"requestId": found["requestId"]})
            else:
                self.blocked.append(address)
                self._send("Fetch.failRequest", {"requestId": found["requestId"], "errorReason": "BlockedByClient"})
        elif name == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in found["args"]))
        elif name == "Runtime.exceptionThrown":
            self.said.append(found["exceptionDetails"].get("exception", {}).get("description", found["exceptionDetails"]["text"]))
        elif name == "Log.entryAdded":
            self.said.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")


@contextmanager
def browser(*flags: str) -> Iterator[Page]:
    """A page of a browser that is gone afterwards, with all that it started."""
    found = program()
    assert found is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in (theirs_in, theirs_out)]  # it reads 3 and writes 4, which may be ours
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    with tempfile.TemporaryDirectory(prefix="understudy-browser-", ignore_cleanup_errors=True) as folder:
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # the sandbox refuses to run as root
        process = os.posix_spawn(
            found, [found, *FLAGS, *root, *flags, f"--user-data-dir={folder}"], {**os.environ, "HOME": folder}, setpgroup=0,
            file_actions=[*nothing, (os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)])
        for one in (theirs_in, theirs_out, *high):
            os.close(one)
        try:
            yield Page(ours_in, ours_out)
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(ours_in)
            os.close(ours_out)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """(address, stop) of what `python -m http.server` does, on the loopback alone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stopped = threading.Event()

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            server.shutdown()
            server.server_close()
            thread.join()

    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", stop
    finally:
        stop()
