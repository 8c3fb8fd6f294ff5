"""Headless Chromium, driven by the DevTools protocol: what a page requests, its errors, its picture.

https://chromedevtools.github.io/devtools-protocol/: messages are JSON that ends in a zero byte, through two pipes, file
3 of the browser for its input and 4 for its output.
"""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars"),
    *("disable-background-networking", "disable-component-update", "disable-sync", "remote-debugging-pipe"),
)
WAIT_S = 60


class Chromium:
    """A browser with one page; `requests` are addresses it requested, `complaints` its errors and console messages."""

    def __init__(self, program: str, profile: Path) -> None:
        browser_in, self._out = os.pipe()
        self._in, browser_out = os.pipe()

        # Files 3 and 4 become the pipes in the child alone.
        command = f'exec "$@" 3<&{browser_in} 4>&{browser_out}'
        flags = [f"--{flag}" for flag in FLAGS]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", program, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(browser_in, browser_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_in)
        os.close(browser_out)
        self._number, self._read, self._session = 0, b"", ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._events: list[str] = []

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Show a page, and wait until it is loaded and drawn."""
        self.requests.clear()
        self.complaints.clear()
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + WAIT_S
        while "Page.loadEventFired" not in self._events:
            self._receive(deadline)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press Tab or Enter, and wait until the page is drawn."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def picture(self) -> bytes:
        """The whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + WAIT_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; requests and complaints are kept."""
        while b"\0" not in self._read:
            readable, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"Chromium sends nothing for {WAIT_S} s"
            data = os.read(self._in, 1 << 20)
            assert data, "Chromium has ended"
            self._read += data
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(parameters))
        return message
