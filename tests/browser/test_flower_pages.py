"""Flower's pages as a person sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from proj.processes import Worker
from tests.flower import Flower
from tests.waiting import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.broker]


def test_pages_show_workers_tasks_and_the_queue(
    page: Page,
    start_flower: Callable[[], Flower],
    start_workers: Callable[[int], list[Worker]],
    send: Callable[[str], str],
) -> None:
    flower = start_flower()
    workers = start_workers(2)
    light = send("First message.")
    wait_for(lambda: flower.tasks()[light][1] == "SUCCESS", "the message to be done", log=flower.log)
    heavy = [send(f"Heavy message {number} {20 * '.'}") for number in range(3)]
    wait_for(lambda: len([u for u in heavy if flower.tasks()[u][1] == "STARTED"]) == 2, "both workers to work")

    page.goto(f"{flower.url}/workers")
    expect(page.locator("#workers-online")).to_have_text("2")
    for worker in workers:
        expect(page.locator("#workers-table tbody tr", has_text=worker.name)).to_contain_text("Online")

    page.goto(f"{flower.url}/tasks")
    row = page.locator(f"tr[id='{light}']")
    expect(row).to_contain_text("('First message.',)")
    expect(row).to_contain_text("SUCCESS")
    assert any(worker.name in row.inner_text() for worker in workers)
    expect(page.locator("#tasks-table tbody tr", has_text="STARTED")).to_have_count(2)

    # A quorum queue's counts lag, and the page does not refresh itself.
    def queue() -> list[str]:
        page.goto(f"{flower.url}/broker")
        return page.locator("tr#task_queue td").all_inner_texts()

    wait_for(lambda: queue()[:5] == ["task_queue", "3", "2", "1", "2"], "one message ready, two unacknowledged", 20)
