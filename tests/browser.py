"""A headless Chromium that opens pages at a width, and says what does not fit. It needs nothing but the browser."""

import base64
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome") if os.name == "posix" else ()
#: The browser's path, or None if there is none; on Windows it can't be given pipes in this way.
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
#: A phone's width and a desk's, in pixels.
WIDTHS = 390, 1280
#: Seconds until a page has to be there.
PATIENCE = 60
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
# A list of what is wider than the window, or broken: the page itself, elements of its main part that reach beyond the
# right edge and are neither in a box that scrolls or cuts nor in a drawer beside the page, pictures, and equations that
# MathJax can't read. What is folded is opened first.
MISFITS = """
(() => {
  const found = [], width = innerWidth;
  document.querySelectorAll("main details").forEach(each => each.open = true);
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth}`);
  const wide = each => each.getBoundingClientRect().right > width + 1;
  const boxed = each => {
    for (let box = each; box && box !== document.body; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.position === "fixed" || (box !== each && style.overflowX !== "visible" && !wide(box))) return true;
    }
    return false;
  };
  for (const each of document.querySelectorAll("main *"))
    if (wide(each) && each.getClientRects().length && !boxed(each))
      found.push(`${each.tagName} ${each.textContent.replace(/\\s+/g, " ").trim().slice(0, 40)}`.trim());
  for (const image of document.images)
    if (image.loading !== "lazy" && !(image.complete && image.naturalWidth)) found.push(`no picture ${image.alt}`);
  for (const each of document.querySelectorAll("mjx-merror")) found.push(`no equation ${each.textContent}`);
  return found;
})()
"""

# What moves into its place, such as a drawer, is there at once.
STILL = """
document.head.appendChild(document.createElement("style")).textContent =
  "* { transition: none !important; animation: none !important; }";
"""
# Without a network there is no MathJax, but its settings alone. It may wait for a file of its own that never comes.
TYPESET = """
Promise.race([window.MathJax?.startup?.promise, new Promise(done => setTimeout(done, 10000))]).then(() => null)
"""


class Browser:
    """One Chromium with one page; close it by leaving the context. Commands go through pipes, by its own protocol."""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory()
        pairs = os.pipe(), os.pipe()
        # Numbers that are neither 3 nor 4, where Chromium expects its ends.
        import fcntl  # Windows has none

        theirs = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (pairs[0][0], pairs[1][1])]
        ours = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (pairs[0][1], pairs[1][0])]
        for each in (*pairs[0], *pairs[1]):
            os.close(each)
        quiet = os.open(os.devnull, os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in zip((3, 4, 2), (*theirs, quiet), strict=True)]
        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
        for each in (*theirs, quiet):
            os.close(each)
        self._to, self._from = os.fdopen(ours[0], "wb", 0), os.fdopen(ours[1], "rb", 0)
        self._rest, self._number, self._session, self._happened = b"", 0, None, set()
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")
        return self

    def __exit__(self, *_) -> None:
        self._to.close()
        self._from.close()
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Open a file in a window of this size, and wait until all that it loads is there and equations are set."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._happened.clear()
        error = self._ask("Page.navigate", url=page.resolve().as_uri()).get("errorText")
        if error:
            raise OSError(f"{page}: {error}")
        deadline = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self._happened:
            self._read()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{page} was not loaded in {PATIENCE} s")
        self.evaluate(STILL)
        self.evaluate(TYPESET)

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript on the page."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "an error"))
        return found["result"].get("value")

    def misfits(self) -> list[str]:
        """What on the page is wider than the window, or a broken picture."""
        return self.evaluate(MISFITS)

    def screenshot(self, path: Path, most: int = 4000) -> None:
        """Save the page, from its top to at most this many pixels, as PNG."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most), "scale": 1}
        found = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _ask(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._from.fileno(), 1 << 20)
            if not part:
                raise RuntimeError(f"{CHROMIUM} ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        self._happened.add(found.get("method"))
        return found
