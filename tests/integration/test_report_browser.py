"""The report in a real browser: it loads without errors or network requests, and fits wide and narrow screens.

Chromium is driven over its DevTools protocol through a pipe, so no port is opened and no driver is needed.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import SECTIONS, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
SAMPLES = runpy.run_path(str(Path(__file__).parents[1] / "report" / "sample_run.py"))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: install Debian's package chromium"),
]


class Browser:
    """A headless Chromium with one tab. Messages are JSON objects, each ended by a zero byte (DevTools protocol)."""

    def __init__(self, profile: Path):
        commands_out, self.commands = os.pipe()
        self.replies, replies_in = os.pipe()
        # The protocol's pipe is at the file descriptors 3 (read) and 4 (written) of the browser.
        wiring = f'exec "$@" 3<&{commands_out} 4>&{replies_in}'
        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            ["bash", "-c", wiring, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands_out, replies_in),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(replies_in)
        self.buffer, self.number, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.replies, 1 << 16)
            assert data, "the browser has gone away"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result. Events that arrive meanwhile are kept."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        command = {"id": self.number, "method": method, "params": parameters, **session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while (message := self.receive()).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a page afresh in a window of this width and wait until all of it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def faults(self) -> list[Any]:
        """What the page has put on the console."""
        kinds = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> set[str]:
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {event["request"]["url"].split(":", 1)[0] for event in sent}

    def screenshot(self, path: Path) -> bytes:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path.read_bytes()

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.commands)
        os.close(self.replies)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(SAMPLES["build_run"](tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(SAMPLES["build_unfinished_run"](tmp_path_factory.mktemp("unfinished")))


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["finished", "unfinished"])
def test_the_page_loads_whole_and_fits(
    browser: Browser, name: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page: Path = request.getfixturevalue(name)
    browser.open(page, width)
    assert browser.faults() == []
    assert browser.requests() <= {"file", "data"}
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    wide, tall = browser.evaluate(
        "[...document.querySelectorAll('svg.graph')].map(g => g.getBoundingClientRect().width)"
    )
    assert (wide > 0, tall > 0) == (width > 760, width <= 760)
    assert len(browser.screenshot(tmp_path / "page.png")) > 20_000
    dump = browser.evaluate("document.documentElement.outerHTML")
    assert all(f'<section id="{section}"' in dump for section in SECTIONS)


def test_a_finished_run_shows_pictures_of_every_kind(browser: Browser, finished: Path) -> None:
    browser.open(finished, 1280)
    drawn = "document.querySelectorAll('#{} {}').length"
    assert browser.evaluate(drawn.format("curves", "figure.chart svg")) == 21
    assert browser.evaluate(drawn.format("evaluation", "figure.chart svg")) == 4
    assert browser.evaluate(drawn.format("positions", "figure.chart svg")) == 7
    assert browser.evaluate(drawn.format("attention", "figure.glance")) == 24
    lines = (
        "[...document.querySelectorAll('#curves svg')].every(s => s.getBBox().width > 100 && s.querySelector('path'))"
    )
    assert browser.evaluate(lines)


def test_a_reader_s_dark_scheme_is_followed_in_the_charts_too(browser: Browser, finished: Path) -> None:
    ink = "getComputedStyle(document.querySelector('#curves svg text')).fill"
    background = "getComputedStyle(document.body).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        browser.open(finished, 1280, scheme)
        found = (browser.evaluate(ink), browser.evaluate(background))
        shades[scheme] = [sum(map(int, color.removeprefix("rgb(").rstrip(")").split(","))) for color in found]
    assert shades["light"][0] < shades["light"][1]
    assert shades["dark"][0] > shades["dark"][1]
