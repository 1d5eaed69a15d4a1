"""A real headless Chromium, spoken to in its DevTools protocol over two pipes: no driver and no further package needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DEEP = """
const all = (root, selector) => [...root.querySelectorAll(selector)];
const roots = (root) => [root, ...all(root, '*').filter((e) => e.shadowRoot).flatMap((e) => roots(e.shadowRoot))];
const deep = (selector) => roots(document).flatMap((root) => all(root, selector));
"""
"""JavaScript at the service of every script: ``deep`` selects elements inside shadow roots, too."""


class Browser:
    """
    One page of a headless browser, closed at the end of the ``with`` block.

    :param profile: an empty folder for the browser's profile
    """

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        self._profile, self._last_id = profile, 0
        self._session: dict[str, str] = {}

    def __enter__(self) -> "Browser":
        assert CHROMIUM is not None
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            "--window-size=1400,1000",
        ]
        # The browser reads commands from file descriptor 3 and answers on 4; bash, since sh may know one-digit numbers only.
        redirect = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", CHROMIUM, *options, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._received = os.fdopen(self._read, "rb")
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._write)
        self._received.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """
        :param method: of the DevTools protocol
        :return: its result
        """
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": params} | self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> bytes:
        message = bytearray()
        while (byte := self._received.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return bytes(message)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # a change of the fragment alone would load nothing anew
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """
        :param script: a JavaScript expression, which may use :data:`DEEP`
        """
        result = self.call("Runtime.evaluate", expression=f"(() => {{ {DEEP} return {script}; }})()", returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 90.0) -> Any:
        """
        :return: the expression's value, as soon as it is true
        :raises AssertionError: if it stays untrue
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.evaluate(script):
                return value
            time.sleep(0.25)
        raise AssertionError(f"after {seconds} s still untrue: {script}")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
