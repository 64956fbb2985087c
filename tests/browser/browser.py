"""A browser that is told what to do by the DevTools protocol over two pipes; Python's own library is enough."""

import base64
import json
import os
import subprocess
import tempfile
import time

# Seconds that an answer or an event may take.
PATIENCE = 60


class Browser:
    """A headless Chromium with one page; collects its errors."""

    def __init__(self, program):
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()
        self.profile = tempfile.TemporaryDirectory()

        def pipes():
            # First to numbers that the others do not have.
            copies = [os.dup(to_browser), os.dup(from_browser)]
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        words = [
            program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={self.profile.name}",
        ]
        self.process = subprocess.Popen(
            words, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self.out, self.input = ours_out, ours_in
        self.buffer, self.number, self.session = b"", 0, None
        self.errors, self.events = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()

    def read(self):
        """The next message; what is an error on the page is noted."""
        while b"\0" not in self.buffer:
            part = os.read(self.input, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"])
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(params)
        elif method:
            self.events.append(method)
        return message

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, address, width, dark=False):
        """Shows a page at a width of so many pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """The value of an expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (script, answer)
        return answer["result"].get("value")

    def wait(self, condition):
        end = time.time() + PATIENCE
        while not self.run(condition):
            assert time.time() < end, f"never: {condition}"
            time.sleep(0.05)

    def press(self, key, code, number):
        for kind in ["keyDown", "keyUp"]:
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, **text
            )

    def shot(self, path, whole=True):
        """A picture of the page, or of what of it is on the screen."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
