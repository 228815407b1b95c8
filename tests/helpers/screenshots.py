"""Takes the pictures for the README and docs/arena.md, and measures the page's response time.

    python sample_gradio.py        (with the demo's two checkpoints, and a peer for the last tab)
    python tests/helpers/screenshots.py http://127.0.0.1:7860 docs/arena

Needs Chromium and a font for Chinese (Debian: apt install chromium fonts-noto-cjk).
"""

import statistics
import sys
import time
from pathlib import Path

from page_in_browser import (
    BOARD,
    CHROMIUM,
    DUEL,
    LOOK,
    MATCH,
    MODELS,
    PEERS,
    SINGLE,
    TRAINING,
    ask,
    choose,
    go,
    last_answer,
    state,
    wait_for,
    with_streams,
)
from playwright.sync_api import sync_playwright

PROMPTS = [
    "铁的元素符号是什么？",
    "曹操是谁？",
    "新加坡的国土在哪个地区？",
    "大熊猫是哪个目的动物？",
    "金星绕太阳一圈要多久？",
]
SIZE = {"width": 1120, "height": 900}


def first_character(page, prompt):
    """Seconds from pressing the button to the first character of the answer, by the browser's clock."""
    page.click("#clear")
    wait_for(page, lambda: not last_answer(page))
    page.fill("#prompt textarea", prompt)
    page.wait_for_timeout(300)
    return page.evaluate(
        """() => new Promise((resolve) => {
          const begun = performance.now();
          const look = () => [...document.querySelectorAll("#chat .bot")].at(-1)?.innerText.trim()
            ? resolve((performance.now() - begun) / 1000) : requestAnimationFrame(look);
          document.querySelector("#send").click();
          look();
        })"""
    )


def opened(browser, url, **more):
    page = with_streams(browser.new_context(**{"locale": "zh-CN", "viewport": SIZE, **more}).new_page())
    begun = time.monotonic()
    page.goto(url)
    page.wait_for_selector("#prompt textarea")
    print(f"page opened in {time.monotonic() - begun:.2f} s")
    return page


def single(page, folder):
    """Pictures of the first tab, and times to the first character."""
    page.click("#prompt textarea")  # loads the model
    page.wait_for_timeout(3000)
    times = [first_character(page, prompt) for prompt in PROMPTS * 4]
    shown = f"median {statistics.median(times):.3f} s, longest {max(times):.3f} s of {len(times)}"
    print(f"first character after pressing the button: {shown}")
    page.click("#clear")
    for prompt in PROMPTS[:2]:
        ask(page, prompt)
        wait_for(page, lambda: "token" in state(page, "single") and last_answer(page))
        page.wait_for_timeout(500)
    page.screenshot(path=folder / "single.png")


def duel(page, folder):
    """Pictures of blind battles, before and after the vote."""
    go(page, DUEL)
    for prompt in PROMPTS:
        ask(page, prompt, "duel-")
        page.wait_for_selector("#vote-left:not([disabled])")
        page.wait_for_timeout(300)
        page.screenshot(path=folder / "duel.png")
        left, right = last_answer(page, "left-chat"), last_answer(page, "right-chat")
        best = "tie" if left == right else "left" if left.endswith("。") and len(left) < len(right) else "right"
        page.click(f"#vote-{best}")
        wait_for(page, lambda: "已投票" in state(page, "duel"))
    page.screenshot(path=folder / "voted.png")


def look(page, folder):
    """A picture of the inside of the fine-tuned model, beside the base model."""
    go(page, LOOK)
    choose(page, "look-other", "demo ·")
    page.click("#look-send")
    page.wait_for_selector("#look-attention canvas")
    page.fill("#look-temperature input[type=number]", "1")
    page.locator(".look-token").nth(6).click()
    page.wait_for_timeout(2000)
    page.set_viewport_size({"width": SIZE["width"], "height": 2100})
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "look.png")
    page.set_viewport_size(SIZE)


def rest(page, folder):
    """Pictures of the other tabs."""
    go(page, MATCH)
    page.click("#match-start")
    wait_for(page, lambda: "20 题" in state(page, "match"))
    page.screenshot(path=folder / "match.png")
    for tab, name in ((MODELS, "models"), (BOARD, "board"), (TRAINING, "training"), (PEERS, "peers")):
        go(page, tab)
        page.wait_for_timeout(4000)
        page.screenshot(path=folder / f"{name}.png")
    go(page, SINGLE)


def main(url, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = opened(browser, url)
        single(page, folder)
        duel(page, folder)
        look(page, folder)
        rest(page, folder)
        telephone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "locale": "en-US"}
        page = opened(browser, url, **telephone)
        ask(page, PROMPTS[0])
        wait_for(page, lambda: "token" in state(page, "single") and last_answer(page))
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=folder / "telephone.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
