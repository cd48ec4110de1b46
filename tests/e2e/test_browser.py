"""The story in a real browser: Olivia asks, Daniel approves, both watch the message become the report.

DRBOT_SCREENSHOTS=1 writes the pictures of the documentation.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from bot.demo.running import RunningDemo
from tests.e2e.demo_process import DRBOT, ROOT, DemoProcess, remains
from tests.fixtures.needed import chromium

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kill,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("demo"),
    pytest.mark.needs("chromium"),
]

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PICTURES = os.environ.get("DRBOT_SCREENSHOTS") == "1"
MOST_TAPS = 6
COUNT_TAPS = """
    window.taps = 0;
    document.addEventListener("click", (event) => {
        if (event.isTrusted && event.target.closest("button, a, .composer-send")) window.taps += 1;
    }, true);
"""
"""Counts what a person presses; text fields and the demo's choice of an account are no taps."""
SIZE = "small" if PICTURES else "tiny"


@pytest.fixture
def page() -> Iterator[Page]:
    found = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(30_000)
        page.add_init_script(COUNT_TAPS)
        yield page
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return ROOT / "docs" / "images" if PICTURES else tmp_path


def test_two_people_restore_a_database_in_the_browser(page: Page, pictures: Path, run_directory: Path) -> None:
    with DemoProcess("--size", SIZE, within=run_directory) as process:
        demo = process.ready()
        before = users(demo)
        subprocess.run([*DRBOT, "demo", "damage", "--demo", str(demo.directory)], cwd=ROOT, check=True)
        assert users(demo) != before
        page.goto(demo.slack_url)
        page.locator(".sidebar-item", has_text="incidents").click()
        page.evaluate("window.taps = 0")  # people are in the channel; the incident begins

        act_as(page, "Olivia (on-call)")
        say(page, "/dr-incident open Users cannot sign in --scenario database_corruption")
        expect(message(page, "Users cannot sign in")).to_be_visible(timeout=30_000)
        say(page, '/dr-restore superprismora --target superprismora --reason "addresses are scrambled"')
        plan = message(page, "DESTRUCTIVE")
        approve = plan.get_by_role("button", name="Approve")
        expect(approve).to_be_visible(timeout=30_000)
        picture(plan, pictures / "plan.png")

        act_as(page, "Daniel (DBA)")
        approve.click()
        modal = page.locator(".modal")
        fields = modal.locator(".bk-input input, .bk-input textarea")
        expect(fields).to_have_count(2, timeout=30_000)
        fields.nth(0).fill("checked with the team")
        fields.nth(1).fill("superprismora")
        picture(modal, pictures / "approve.png")
        modal.get_by_role("button", name="Sign").click()
        # Two commands, Approve, Sign: from incident to running, by all people.
        assert 4 <= int(page.evaluate("window.taps")) <= MOST_TAPS
        expect(modal).to_contain_text("Your signature is recorded", timeout=30_000)
        modal.get_by_role("button", name="Close").click()

        running = message(page, re.compile("Running: restore.dump|Signed, about to start"))
        expect(running).to_be_visible(timeout=60_000)
        if PICTURES:
            page.wait_for_timeout(5_000)  # so that the picture shows some progress
        picture(running, pictures / "running.png")
        report = message(page, "Succeeded: restore.dump")
        expect(report).to_be_visible(timeout=240_000)
        picture(report, pictures / "report.png")
        incident = message(page, "Users cannot sign in")
        expect(incident).to_contain_text("achieved", timeout=30_000)
        picture(incident, pictures / "incident.png")
        assert users(demo) == before
        # Not even `kill -9` of a demo leaves anything of it.
        process.stop(signal.SIGKILL)
        assert remains(demo.directory, within=40) == []


def users(demo: RunningDemo) -> str:
    """What the users' addresses are now, in one value."""
    with psycopg.connect(demo.production_dsn) as connection:
        row = connection.execute("SELECT md5(string_agg(email, ',' ORDER BY id)) FROM users").fetchone()
    assert row is not None
    return str(row[0])


def act_as(page: Page, name: str) -> None:
    page.locator(".actas select").select_option(label=name)


def say(page: Page, text: str) -> None:
    page.locator(".composer-input").fill(text)
    page.locator(".composer-send").click()


def message(page: Page, words: "str | re.Pattern[str]") -> Locator:
    return page.locator(".msg", has_text=words).last


def picture(what: Locator, path: Path) -> None:
    what.scroll_into_view_if_needed()
    what.screenshot(path=path)
    assert path.stat().st_size > 5_000
