"""The console in a browser: a headless Chromium that looks at the running server, and chats."""

import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.live_server import LiveServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, and a Chromium: docs/console.md")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: docs/console.md")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_console_shows_the_fleet_and_chats(
    live_server: LiveServer, width: int, height: int, tmp_path: Path
) -> None:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{live_server.url}/console")
        page.locator("#replicas .card").nth(1).wait_for(timeout=30_000)
        assert "2 replicas" in page.locator("#state").inner_text()
        page.locator("#text").fill("Tell me about the sea.")
        page.locator("#send").click()
        page.locator("#speed").filter(has_text="tokens/s").wait_for(timeout=30_000)
        assert len(page.locator("#talk .assistant").inner_text()) > 10
        page.locator("#models .chart .value").first.filter(has_text=re.compile("[1-9]")).wait_for(timeout=15_000)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=tmp_path / "console.png")
        browser.close()
    assert complaints == []
