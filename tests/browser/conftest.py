"""A real Chromium, driven by Playwright. Its pages may only talk to this machine; every other attempt is recorded.

`make browser` runs these tests. They need Chromium and the extra `browser`, so a run over all of tests/ leaves them
out.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOCAL = {"127.0.0.1", "localhost", ""}  # the last: file:, data: and blob: addresses have no host


def pytest_ignore_collect(collection_path, config):
    """Collect these tests only if the command line names this folder, or a file in it."""
    named = [Path(str(argument).split("::")[0]).resolve() for argument in config.args]
    here = Path(__file__).parent
    return None if any(path == here or here in path.parents for path in named) else True


@dataclass
class Noted:
    """What should not have happened on a page, each as a line of text."""

    foreign: list[str] = field(default_factory=list)  # requests (which are stopped) and web sockets to other machines
    missing: list[str] = field(default_factory=list)  # requests to this machine that failed
    errors: list[str] = field(default_factory=list)  # errors on the console, and exceptions that nothing caught

    def assert_nothing(self) -> None:
        assert not self.foreign, "the page asked another machine for:\n" + "\n".join(self.foreign)
        assert not self.missing, "not to be had:\n" + "\n".join(self.missing)
        assert not self.errors, "on the console:\n" + "\n".join(self.errors)


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert program, "no Chromium was found: make browser installs it"
    with sync_playwright() as playwright:
        # Chromium has no sandbox as root; /dev/shm is small in containers.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def failures_folder():
    """The folder for pictures of pages whose test failed."""
    return Path(tempfile.mkdtemp(prefix="qtutor-browser-"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    setattr(item, f"report_{report.when}", report)  # so that a fixture can see the result of its test
    return report


@pytest.fixture
def open_page(chromium, failures_folder, request):
    """open_page(width=..., dark=...) -> a new page and what was noted on it."""
    opened = []

    def open_one(width: int = 1280, height: int = 900, dark: bool = False):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page, noted = context.new_page(), Noted()
        context.route(lambda url: urlsplit(url).hostname not in LOCAL | {None}, lambda route: _refuse(route, noted))
        page.on("websocket", lambda socket: _note_socket(socket, noted))
        page.on("console", lambda message: noted.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: noted.errors.append(str(error)))
        page.on("response", lambda answer: _note_status(answer, noted))
        page.on("requestfailed", lambda asked: _note_failed(asked, noted))
        opened.append(page)
        return page, noted

    yield open_one
    report = getattr(request.node, "report_call", None)
    for number, page in enumerate(opened):
        if report is not None and report.failed:
            picture = failures_folder / f"{request.node.name.replace('/', '_')}-{number}.png"
            page.screenshot(path=picture)
            print(f"A picture of the page where it failed: {picture}")
        page.context.close()


def _refuse(route, noted: Noted) -> None:
    noted.foreign.append(route.request.url)
    route.abort()


def _note_socket(socket, noted: Noted) -> None:
    if urlsplit(socket.url).hostname not in LOCAL:
        noted.foreign.append(socket.url)


def _note_status(answer, noted: Noted) -> None:
    if answer.status >= 400:
        noted.missing.append(f"{answer.status} {answer.url}")


def _note_failed(asked, noted: Noted) -> None:
    """Note a missing file, or a server that hangs up. A request that the page itself cancelled is not an error."""
    if asked.failure != "net::ERR_ABORTED" and asked.url not in noted.foreign:
        noted.missing.append(f"{asked.failure} {asked.url}")
