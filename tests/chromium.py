"""A page as Chromium shows it, asked through its debugging pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
_QUIET = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --remote-debugging-pipe
    --hide-scrollbars
""".split()  # noqa: SIM905


class Page:
    """One tab of a Chromium, without network unless it may use that of this machine.

    Attributes:
        complaints: What its console and log have told.
        requests: Addresses that were asked for, data URIs aside.
    """

    def __init__(self, profile: Path, *, offline: bool = True) -> None:
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        self._begin(from_us, to_us, profile)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=offline, latency=0,
                  downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip

    def _begin(self, from_us: int, to_us: int, profile: Path) -> None:
        command = [FOUND, *_QUIET, f"--user-data-dir={profile}"]
        # Chromium reads from descriptor 3 and writes to 4.
        redirected = f'exec "$@" 3<&{from_us} 4>&{to_us}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        os.close(self._from)
        self._process.kill()
        self._process.wait()

    def open(self, page: Path | str, width: int, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[scheme_feature])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self._until("Page.loadEventFired")

    def value(self, script: str) -> object:
        """What a piece of JavaScript, or the promise that it gives, comes to."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def until(self, condition: str) -> None:
        """Wait for at most 30 seconds until a piece of JavaScript is true."""
        poll = f"const poll = () => {condition} ? yes(true) : setTimeout(poll, 20); poll();"
        late = "setTimeout(() => yes(false), 30000);"
        assert self.value(f"new Promise(yes => {{ {poll} {late} }})"), condition

    def accessibility_findings(self) -> object:
        """Return the rules of axe-core that the page breaks; none without its `PINMEM_AXE`."""
        if not (axe := os.environ.get("PINMEM_AXE")):
            return []
        self.value(f"{Path(axe).read_text()};0")
        return self.value("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))")

    def screenshot(self, path: Path) -> None:
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def call(self, method: str, **params: object) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, params: dict) -> None:
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(params)[:500])
        if event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self.requests += [url] if not url.startswith("data:") else []
