"""A headless Chromium, driven over a pipe by its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
KEYS = {
    "ArrowDown": 40,
    "ArrowUp": 38,
    "Enter": 13,
    "End": 35,
    "Home": 36,
    "/": 191,
    "ArrowRight": 39,
    "Tab": 9,
}


class Browser:
    """One page. `messages` holds everything it had to say: errors, refusals of its policy."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def connect() -> None:  # the browser reads from 3 and writes to 4
            ends = os.dup(to_child), os.dup(from_child)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [
                str(BROWSER),
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe"),
                *(f"--window-size={width},{height}", f"--user-data-dir={profile}"),
            ],
            pass_fds=(3, 4),
            preexec_fn=connect,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.messages: list[str] = []
        self._requests: list[str] = []
        self._session: str | None = None
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for since the last `open`."""
        self.run("0")  # what happened before has been told when this is answered
        return self._requests

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is there."""
        self._requests = []
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression is worth; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < end, f"not within {seconds} s: {condition}"
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return self.run(f"Boolean({condition})")
        except AssertionError as error:
            if "navigated" not in str(error):  # a page that is on its way to another holds nothing
                raise
            return False

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            values = {"key": key, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
            self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse to a place of the window, and click there."""
        kinds = ["mouseMoved", *(["mousePressed", "mouseReleased"] if click else [])]
        for kind in kinds:
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        self.send("Input.insertText", text=text)

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command, and return its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self._requests.append(values["request"]["url"])
        elif event["method"] == "Log.entryAdded":
            self.messages.append(values["entry"]["text"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.messages.append(str(values["exceptionDetails"].get("exception")))
        elif event["method"] == "Runtime.consoleAPICalled":
            self.messages.append(str(values["args"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 2**16)
            assert part, "the browser ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
