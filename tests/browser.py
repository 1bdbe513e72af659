"""Chromium without a screen, driven by its own protocol through two pipes: what a person would see and type."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120.0
"""Seconds for an answer, on a machine that is busy."""
INHERIT = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 1003); os.dup2(w, 1004); os.dup2(1003, 3); os.dup2(1004, 4); os.execv(sys.argv[3], sys.argv[3:])"
"""The protocol's pipes are the file descriptors 3 and 4."""


class Browser:
    """One page. asked: every address that it wanted; said: lines of its console, errors and dialogs among them."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self._session: str | None = None
        self.asked: list[str] = []
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its answer; what happens meanwhile is noted."""
        self._number += 1
        number = self._number
        told = {"id": number, "method": method, "params": params}
        os.write(
            self._write, json.dumps(told | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0], "chromium is silent"
            piece = os.read(self._read, 1 << 20)
            assert piece, "chromium is gone"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if method in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        ):
            self.said.append(json.dumps(params))

    def go(self, address: str) -> None:
        """Open a page, by way of an empty one, so that it is loaded also where only what stands behind # differs."""
        for url in ("about:blank", address):
            assert "errorText" not in self.call("Page.navigate", url=url)
            self.until("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What an expression is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.01)

    def type(self, text: str) -> None:
        """On the keyboard, into what has the focus."""
        self.call("Input.insertText", text=text)

    def key(self, name: str, code: int, text: str = "") -> None:
        """A key, pressed and released."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)

    def window(self, width: int, height: int, *, dark: bool = False, scripts: bool = True) -> None:
        """Size in pixels, colours, and whether scripts run."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def picture(self) -> bytes:
        """What is seen, a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own. Skips the test where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None or os.name == "nt":
        pytest.skip("needs the Debian package chromium")
    theirs, write = os.pipe()
    read, ours = os.pipe()
    command = [sys.executable, "-c", INHERIT, str(theirs), str(ours), program, "--headless", "--no-sandbox", "--disable-gpu",
               "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
               f"--user-data-dir={profile}"]  # fmt: skip
    with subprocess.Popen(
        command, pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        os.close(ours)
        try:
            browser = Browser(read, write)
            yield browser
            browser._session = None
            browser.call("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
            os.close(read)
            os.close(write)
