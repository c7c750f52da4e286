"""A headless Chromium from Debian's packages, driven by Playwright's client; and axe, the accessibility rules."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.servers.npm import install

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGE = Path(__file__).parent.parent / "axe"
AXE = PACKAGE / "node_modules" / "axe-core" / "axe.min.js"


def program() -> str | None:
    """Where a Chromium is; None: there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def axe_source() -> str:
    """The script that gives a page `axe`."""
    why = install(PACKAGE, AXE)
    assert why is None, why
    return AXE.read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser; tests open contexts of their own, each with its cookies."""
    path = program()
    if path is None:
        pytest.skip("there is no Chromium here: `make servers` installs Debian's chromium-headless-shell")
    with sync_playwright() as playwright:
        # without its own sandbox, which needs rights that a container does not have; it only sees our own pages
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
