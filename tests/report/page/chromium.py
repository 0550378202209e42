"""A headless Chromium, driven as a person would: its debugging pipe takes keys, the mouse and media settings.

The pipe (JSON messages that end in a zero byte, on descriptors 3 and 4) needs nothing but the standard library.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
SHIFT = 8


class Browser:
    """One browser with one page; use as `with Browser(profile) as browser`. What hangs raises after `patience` s."""

    def __init__(self, profile, patience=120.0):
        self.patience, self._number, self._session, self._left = patience, 0, None, b""
        read_by_browser, self._write = os.pipe()
        self._read, written_by_browser = os.pipe()
        ends = (read_by_browser, written_by_browser)
        shell = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]} 2>/dev/null'
        command = ["bash", "-c", shell, "-", PATH, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL)
        for end in ends:
            os.close(end)

    def __enter__(self):
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Page.enable")
        return self

    def __exit__(self, *_):
        self._session = None
        try:
            self("Browser.close")
            self._process.wait(30)
        finally:
            self._process.kill()
            os.close(self._write)
            os.close(self._read)

    def __call__(self, method, **params):
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        answer = self._until(lambda m: m.get("id") == self._number)
        assert "result" in answer, (method, answer)
        return answer["result"]

    def _until(self, wanted):
        deadline = time.monotonic() + self.patience
        while True:
            while b"\0" in self._left:
                line, self._left = self._left.split(b"\0", 1)
                if wanted(message := json.loads(line)):
                    return message
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"chromium has not answered within {self.patience} s")
            part = os.read(self._read, 1 << 20)
            assert part, "chromium has ended"
            self._left += part

    def open(self, address):
        """Loads a page anew, also where only what follows the # differs from the one before."""
        self("Page.navigate", url="about:blank")
        self._until(lambda m: m.get("method") == "Page.loadEventFired")
        self("Page.navigate", url=address)
        self._until(lambda m: m.get("method") == "Page.loadEventFired")
        self.js("window.$ = id => document.getElementById(id)")  # the page's script is a module and shares nothing
        assert self.waits("document.documentElement.className"), "it unpacks the data first"

    def js(self, expression):
        """The value of an expression in the page; an exception in it is raised."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def waits(self, condition):
        """Whether the condition comes true within ten seconds: the page answers some events a moment later."""
        return self.js(
            f"(async () => {{ for (let i = 0; i < 500; i++) {{ if ({condition}) return true; "
            "await new Promise(r => setTimeout(r, 20)); } return false; })()"
        )

    def key(self, key, shift=False):
        for kind in ("rawKeyDown", "keyUp"):
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=KEYS[key],
                modifiers=SHIFT if shift else 0,
            )

    def text(self, text):
        """Types letters, as into a select that has the focus."""
        for letter in text:
            self("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            self("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def middle(self, selector):
        """Where the first element of a selector is on the screen, after it has been brought there."""
        return self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )

    def hover(self, selector, right=0.0):
        """Moves the mouse to the middle of an element, and `right` pixels on."""
        x, y = self.middle(selector)
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x + right, y=y)
        return x + right, y

    def click(self, selector):
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screen(self, width, height, dark=False, still=False):
        """Size of the window in pixels, and what the system asks for."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" * still}
        self("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])

    def screenshot(self, path, whole=False):
        data = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
