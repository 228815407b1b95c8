"""Actions on the arena's page in headless Chromium."""

import os
import shutil
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SINGLE, DUEL, MODELS, TASKS, LOOK, BOARD, MATCH, TRAINING, PEERS = (
    "single", "duel", "models", "tasks", "look", "board", "match", "training", "peers",
)  # fmt: skip
HANG_SECONDS = 240  # timeout of all waits; opening a page may take half a minute on a busy machine


def with_streams(page):
    """The page, with a set `streams` of the open requests for Gradio's event streams."""
    page.streams = set()
    page.on("request", lambda r: page.streams.add(r) if "/gradio_api/queue/data" in r.url else None)
    page.on("requestfinished", lambda r: page.streams.discard(r))
    page.on("requestfailed", lambda r: page.streams.discard(r))
    return page


@contextmanager
def opened(browser, arena, locale="zh-CN", **more):
    """A page of a new visitor. `alien` lists its requests to other machines, `dialogs` the texts of its dialogs."""
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
    """Select a tab."""
    page.click(f"button[role=tab][data-tab-id={tab}]")


def ask(page, prompt, prefix=""):
    """Send a prompt, after Gradio's event stream of the previous answer has closed.

    An event that is queued while the stream closes would never receive its updates.
    """
    wait_for(page, lambda: not page.streams)
    page.fill(f"#{prefix}prompt textarea", prompt)
    page.click(f"#{prefix}send")


def last_answer(page, chat="chat"):
    """Text of the last answer in a chatbot, "" before the first."""
    return page.evaluate(
        f"[...document.querySelectorAll('#{chat} .bot .message-content, #{chat} .message.bot')].at(-1)?.innerText ?? ''"
    ).strip()


def wait_for(page, condition):
    """Wait until condition() is true."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < HANG_SECONDS, page.inner_text("body")[:2000]
        page.wait_for_timeout(20)


def state(page, name):
    """Text of a status line."""
    return page.input_value(f"#state-{name} textarea")


def choose(page, dropdown, text):
    """Select the first option that contains a text."""
    page.click(f"#{dropdown} input")
    page.locator(f"#{dropdown} [role=option]", has_text=text).first.click()


def set_blind(page, blind):
    """Switch the blind mode on or off."""
    page.set_checked("#blind input", blind)
    page.wait_for_selector("#left-model input", state="hidden" if blind else "visible")
