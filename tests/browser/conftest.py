"""A Chromium of this machine; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

# The broker of the integration tests, and workers on it.
from tests.integration.conftest import broker as broker
from tests.integration.conftest import send as send
from tests.integration.conftest import start_worker as start_worker
from tests.integration.conftest import start_workers as start_workers
from tests.integration.test_flower import start_flower as start_flower

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where it is. Without one the tests are skipped, unless PROJ_REQUIRE lists `browser`."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    missing = f"no browser: none of {', '.join(NAMES)} is on PATH"
    if "browser" in os.environ.get("PROJ_REQUIRE", "").split(","):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser.new_page()
        browser.close()
