"""Headless Chromium, driven over its debugging pipe: JSON messages that end in a zero byte."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium")
#: Seconds that a page has for anything.
PATIENCE = 20.0
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)
#: Finds a visible element by its selector and what its name or text begins with.
_FIND = """(selector, name) => [...document.querySelectorAll(selector)].find((element) =>
    element.checkVisibility() && (element.ariaLabel ?? element.innerText).trim().startsWith(name))"""


class Chromium:
    """One window of a browser with a profile of its own.

    Attributes:
        problems: Errors of scripts and refusals of the content policy so far; answers of a service are none.
    """

    def __init__(self, profile: Path) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser[0], from_browser[1])]
        actions = [(os.POSIX_SPAWN_DUP2, end, place) for place, end in enumerate(theirs, start=3)]
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        command = [str(PATH), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(command[0], command, os.environ, file_actions=[*actions, quiet], setsid=True)
        for end in (to_browser[0], from_browser[1], *theirs):
            os.close(end)
        self._in, self._out = from_browser[0], to_browser[1]
        self._rest = b""
        self._sent = 0
        self._session: str | None = None
        self.problems: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._sent += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._sent, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has stopped"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(message["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["level"] == "error" and entry["source"] != "network":
                    self.problems.append(entry["text"])
        return message

    def show(self, width: int = 1360, height: int = 900, scale: float = 1, scheme: str = "light") -> None:
        """Set size and colour scheme of the window; narrower than 500 pixels, it is a phone."""
        phone = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Load a page from its beginning, also where only the part after ``#`` differs."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Value of an expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.02)
        shown = self.evaluate("document.body.innerText")
        raise AssertionError(f"never true: {expression}\n{self.problems}\n{shown}")

    def click(self, selector: str, name: str = "") -> None:
        """Click an element as a mouse does, once it is there, rests, and nothing covers it."""
        arguments = f"{json.dumps(selector)}, {json.dumps(name)}"
        x, y = self.until(f"""(async () => {{
            const element = ({_FIND})({arguments});
            if (!element) return null;
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const before = element.getBoundingClientRect();
            await new Promise((done) => setTimeout(done, 50));
            const box = element.getBoundingClientRect();
            if (box.x !== before.x || box.y !== before.y) return null;
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            const hit = document.elementFromPoint(x, y);
            return element.contains(hit) || hit?.contains(element) ? [x, y] : null;
        }})()""")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key, given with its Windows key code."""
        text = {"text": {"Enter": "\r"}.get(key, key)} if len(key) == 1 or key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def choose(self, selector: str, label: str) -> None:
        """Choose an option of a field by its text."""
        self.until(f"!!document.querySelector({json.dumps(selector)})")
        self.evaluate(f"""(() => {{
            const field = document.querySelector({json.dumps(selector)});
            field.focus();
            field.selectedIndex = [...field.options].findIndex((option) => option.text === {json.dumps(label)});
            field.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG or, by the ending of the path, as WebP."""
        form = {"format": "webp", "quality": 75} if path.suffix == ".webp" else {}
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **form)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """Stop the browser and its helpers."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
