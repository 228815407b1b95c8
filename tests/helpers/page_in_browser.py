"""The arena's page in headless Chromium: what a person does there, and waits for."""

import os
import shutil
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SINGLE, DUEL, BOARD, MATCH, TRAINING, PEERS = range(6)
HANG_SECONDS = 240  # after which a wait is given up: a page takes half a minute to open on a busy machine


def with_streams(page):
    """The page, whose `streams` has from now on the requests of Gradio's streams of events that are open."""
    page.streams = set()
    page.on("request", lambda r: page.streams.add(r) if "/gradio_api/queue/data" in r.url else None)
    page.on("requestfinished", lambda r: page.streams.discard(r))
    page.on("requestfailed", lambda r: page.streams.discard(r))
    return page


@contextmanager
def opened(browser, arena, locale="zh-CN", **more):
    """A page of a new visitor; `alien` has the requests that it made to other machines."""
    context = browser.new_context(locale=locale, **more)
    page = with_streams(context.new_page())
    page.alien, page.dialogs = [], []
    page.on("request", lambda r: None if r.url.startswith((arena.url, "data:", "blob:")) else page.alien.append(r.url))
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.set_default_timeout(1000 * HANG_SECONDS)
    page.goto(arena.url)
    page.wait_for_selector("#prompt textarea")
    try:
        yield page
    finally:
        context.close()


def go(page, tab):
    """Open a tab."""
    page.locator("button[role=tab]").nth(tab).click()


def ask(page, prompt, prefix=""):
    """Ask, once Gradio's stream of the answer before is closed.

    An event that joins in the moment in which the stream closes would wait for its news for ever.
    """
    wait_for(page, lambda: not page.streams)
    page.fill(f"#{prefix}prompt textarea", prompt)
    page.click(f"#{prefix}send")


def said(page, chat="chat"):
    """What a chatbot shows as the last answer, "" before there is one."""
    return page.evaluate(
        f"[...document.querySelectorAll('#{chat} .bot .message-content, #{chat} .message.bot')].at(-1)?.innerText ?? ''"
    ).strip()


def wait_for(page, condition):
    """Wait until condition() holds; returns the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < HANG_SECONDS, page.inner_text("body")[:2000]
        page.wait_for_timeout(20)
    return time.monotonic() - begun


def state(page, name):
    return page.input_value(f"#state-{name} textarea")


def choose(page, dropdown, text):
    """Choose what contains a text in a drop-down."""
    page.click(f"#{dropdown} input")
    page.locator(f"#{dropdown} [role=option]", has_text=text).first.click()


def by_name(page):
    """Leave the blind mode."""
    if page.is_checked("#blind input"):
        page.click("#blind input")
    page.wait_for_selector("#left-model input", state="visible")
