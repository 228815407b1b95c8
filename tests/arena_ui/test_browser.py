"""The page in headless Chromium, used as a person uses it. Skipped without Chromium.

One page serves most tests, since opening one takes seconds: each test begins by setting what it relies on.
"""

import json
import re
import shutil
import time

import pytest
from arena_fakes import write_checkpoint, write_checkpoints, write_votes
from corpora import ROOT
from page_in_browser import (
    BOARD,
    CHROMIUM,
    DUEL,
    HANG_SECONDS,
    LOOK,
    MATCH,
    MODELS,
    PEERS,
    SINGLE,
    TASKS,
    TRAINING,
    ask,
    choose,
    go,
    last_answer,
    opened,
    set_blind,
    state,
    wait_for,
)
from peer_fakes import HOSTILE, peer
from serving_fakes import started
from tiny import tiny_model, tiny_tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt install chromium)")
NAMES = "alpha|beta|base"
TABS = (SINGLE, DUEL, MODELS, TASKS, LOOK, BOARD, MATCH, TRAINING, PEERS)
MAX_LAYOUT_SHIFT = 0.02  # 0.1 counts as good (https://web.dev/articles/cls)
# What axe finds in Gradio's own components, which we cannot change: (rule, part of the element's HTML): reason.
GRADIO_FINDINGS = {
    ("landmark-unique", "placeholder-content"): "the placeholders of two empty chatbots are landmarks without names",
    ("aria-prohibited-attr", "Empty value"): "a gr.Plot without a plot has a label on a div (training without a run)",
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_page(browser, arena):
    with opened(browser, arena) as page:
        yield page


@pytest.fixture
def page(shared_page):
    """The shared page, on its first tab, with the model alpha and an empty chat."""
    go(shared_page, SINGLE)
    if not shared_page.input_value("#model input").startswith("alpha"):
        choose(shared_page, "model", "alpha")
    shared_page.click("#clear")
    wait_for(shared_page, lambda: last_answer(shared_page) == "" and state(shared_page, "single") == "")
    yield shared_page
    assert not shared_page.alien and not shared_page.dialogs


def write_peers(path, **addresses):
    entries = [{"name": name, "address": address} for name, address in addresses.items()]
    path.write_text(json.dumps(entries), encoding="utf-8")


def refresh(page, model):
    """Update the lists of models, and choose one on the first tab once it is there."""
    page.click("#refresh")
    choose(page, "model", model)


def test_one_model_answers_an_example_with_its_times_and_flag_writes(page, folder):
    page.get_by_role("button", name="铁的元素符号是什么？").first.click()
    wait_for(page, lambda: page.input_value("#prompt textarea") == "铁的元素符号是什么？")
    page.fill("#prompt textarea", "full stop 好")
    page.press("#prompt textarea", "Enter")
    wait_for(page, lambda: last_answer(page) == "full stop 好" and "首字" in state(page, "single"))
    assert page.input_value("#prompt textarea") == ""
    page.click("#flag")
    wait_for(page, lambda: "flagged.csv" in state(page, "single"))
    assert "full stop 好" in (folder / "arena" / "flagged.csv").read_text(encoding="utf-8-sig")


def test_text_appears_while_it_is_generated_and_what_is_typed_meanwhile_stays(page):
    ask(page, "slowly" * 60)
    lengths = set()
    wait_for(page, lambda: lengths.add(len(last_answer(page))) or len(lengths) > 3)
    page.fill("#prompt textarea", "full stop 下一题")
    length = len(last_answer(page))
    wait_for(page, lambda: len(last_answer(page)) > length + 1)
    page.click("#stop")
    wait_for(page, lambda: "首字" in state(page, "single") and "已停止" in state(page, "single"))
    assert len(last_answer(page)) < 225 and page.input_value("#prompt textarea") == "full stop 下一题"


def test_two_models_stream_at_once_a_vote_reveals_them_and_the_board_has_it(page):
    go(page, DUEL)
    set_blind(page, True)
    ask(page, "slowly" * 50, "duel-")
    wait_for(page, lambda: last_answer(page, "left-chat") and last_answer(page, "right-chat"))
    assert page.is_disabled("#vote-left")  # neither has ended
    page.fill("#duel-prompt textarea", "full stop 下一题")
    page.click("#duel-stop")
    page.wait_for_selector("#vote-left:not([disabled])")
    assert page.input_value("#duel-prompt textarea") == "full stop 下一题"
    assert not re.search(NAMES, "".join(state(page, name) for name in ("left", "right", "duel")))
    page.click("#vote-left")
    wait_for(page, lambda: "已投票" in state(page, "duel"))
    models = re.findall(NAMES, state(page, "duel"))
    assert len(set(models)) == 2 and page.is_disabled("#vote-left")
    go(page, BOARD)
    wait_for(page, lambda: "票" in state(page, "board"))
    wait_for(page, lambda: set(models) <= set(re.findall(NAMES, page.inner_text("#standings"))))
    page.wait_for_selector("#board-plot canvas, #board-plot svg")
    for button, name in (("#save-board", "leaderboard.csv"), ("#save-preferences", "preferences.jsonl")):
        with page.expect_download() as download:
            page.click(button)
        assert download.value.suggested_filename == name


def test_the_way_from_votes_to_a_model_is_on_the_page_and_a_tuned_model_can_be_asked_after_refresh(page, folder):
    write_votes(folder / "arena", ["浏览器里的问题"])
    go(page, BOARD)
    page.wait_for_selector("#votes-to-model", state="visible")
    wait_for(page, lambda: "成对" in state(page, "preferences"))
    assert "DPO" in page.inner_text("#votes-to-model") and "至少要有 60 对" in state(page, "preferences")
    choose(page, "preferences-model", "beta")
    page.click("#write-preferences")
    wait_for(page, lambda: "已写入" in state(page, "preferences"))
    command = page.inner_text("#preferences-command .cm-content")
    assert "config/dpo.py" in command and "--init_from=out/beta/ckpt.pt --out_dir=out/beta_votes" in command
    assert (folder / re.search(r"--preferences=(\S+)", command)[1]).exists()
    write_checkpoints(folder / "out", ["beta_votes"])  # as train.py does
    go(page, SINGLE)
    refresh(page, "beta_votes")
    ask(page, "full stop")
    wait_for(page, lambda: last_answer(page) == "full stop" and "首字" in state(page, "single"))
    shutil.rmtree(folder / "out" / "beta_votes")
    refresh(page, "alpha")


def test_texts_and_pairs_get_bars_of_labels_and_tagged_texts_show_their_entities(page):
    go(page, TASKS)
    choose(page, "task-model", "classify")
    page.wait_for_selector("#task-second", state="hidden")
    page.fill("#task-text textarea", "河")
    page.click("#task-send")
    wait_for(page, lambda: "classify" in state(page, "tasks"))
    bars = page.inner_text("#task-labels")
    assert "单" in bars and "75%" in bars and "双" in bars and "25%" in bars
    choose(page, "task-model", "pair")
    page.wait_for_selector("#task-labels", state="hidden")
    page.fill("#task-second textarea", "的")
    page.click("#task-send")
    wait_for(page, lambda: "双" in page.inner_text("#task-labels") and "pair" in state(page, "tasks"))
    choose(page, "task-model", "tag")
    page.fill("#task-text textarea", "<b>黄河</b>")
    page.click("#task-send")
    page.wait_for_selector("#task-entities", state="visible")
    shown = page.inner_text("#task-entities")
    assert "<b>黄" in shown and "河" in shown and "地" in shown
    page.fill("#task-text textarea", "")
    page.click("#task-send")
    wait_for(page, lambda: state(page, "tasks").startswith("⚠ 先写点什么"))
    go(page, SINGLE)
    page.click("#model input")
    offered = page.inner_text("#model [role=listbox], ul[role=listbox]")
    assert "alpha" in offered and "classify" not in offered
    page.keyboard.press("Escape")


def test_a_real_server_is_a_peer_and_answers_beside_a_checkpoint(page, peers_file, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "friend" / "ckpt.pt", tiny_model(), tiny_tokenizer())
    with started(ROOT / "server.py", "--port=0", "--compile=off", f"--ckpt={checkpoint}", key="geheim") as other:
        go(page, PEERS)
        page.fill("#peer-name input, #peer-name textarea", "朋友")
        page.fill("#peer-address input, #peer-address textarea", f"127.0.0.1:{other.port}")
        page.fill("#peer-key input", "geheim")
        page.click("#peer-add")
        wait_for(page, lambda: "ms" in page.inner_text("#peers") and "friend" in page.inner_text("#peers"))
        assert "geheim" not in page.content()
        go(page, DUEL)
        set_blind(page, False)
        choose(page, "left-model", "friend @ 朋友")
        choose(page, "right-model", "beta")
        ask(page, "full stop", "duel-")
        page.wait_for_selector("#vote-tie:not([disabled])")
        assert state(page, "left").startswith("friend @ 朋友: 首字") and last_answer(page, "right-chat") == "full stop"
        page.click("#vote-right")
        wait_for(page, lambda: "friend @ 朋友" in state(page, "duel"))


def test_a_peer_that_dies_in_mid_answer_costs_the_other_side_nothing(page, peers_file):
    with peer(["dies"]) as other:
        write_peers(peers_file, bad=other.address)
        refresh(page, "dies @ bad")
        go(page, DUEL)
        set_blind(page, False)
        choose(page, "left-model", "dies @ bad")
        choose(page, "right-model", "beta")
        ask(page, "full stop, 死", "duel-")
        wait_for(page, lambda: state(page, "left").startswith("dies @ bad: ⚠"))
        wait_for(page, lambda: last_answer(page, "right-chat") == "full stop, 死")
        wait_for(page, lambda: "不计票" in state(page, "duel"))  # once both have ended
        assert last_answer(page, "left-chat") == "ful" and page.is_disabled("#vote-left")
    peers_file.unlink()
    ask(page, "full stop, 还活着", "duel-")  # the peer is gone: an error, and the prompt stays
    wait_for(page, lambda: "⚠" in state(page, "duel"))
    assert page.input_value("#duel-prompt textarea") == "full stop, 还活着"


def without_spaces(text):
    """A text without white space and control characters, which innerText does not keep."""
    return re.sub(r"[\s\x00-\x1f]+", "", text)


def test_hostile_prompts_answers_and_names_are_shown_as_text(page, peers_file):
    *texts, long = HOSTILE
    text, tag = "\n".join(texts), "<img src=x onerror=window.hacked=1>"
    with peer(["hostile", tag]) as other:
        write_peers(peers_file, **{"<b>x</b>": other.address})
        go(page, PEERS)
        wait_for(page, lambda: f"hostile, {tag}" in page.inner_text("#peers"))
        assert "<b>x</b>" in page.inner_text("#peers")
        go(page, SINGLE)
        choose(page, "model", tag)
        choose(page, "model", "hostile @ <b>x</b>")
        other.hostile = text
        ask(page, text)
        wait_for(page, lambda: without_spaces(last_answer(page)) == without_spaces(text))
        assert page.inner_text("#chat").count("<iframe srcdoc=") == 2  # in the prompt and in the answer
        wait_for(page, lambda: "首字" in state(page, "single"))
        other.hostile = long
        ask(page, "说")
        wait_for(page, lambda: "截断" in state(page, "single"))
        assert without_spaces(last_answer(page)) == long[:32768]
    assert page.evaluate("window.hacked") is None


def test_a_match_shows_answers_side_by_side(page):
    go(page, MATCH)
    page.fill("#match-count input", "3")
    page.click("#match-start")
    wait_for(page, lambda: "3 题" in state(page, "match"))
    assert "0.000" in page.inner_text("#match-summary") and "(step 7)" in page.inner_text("#match-answers")


def look_inside(page, text):
    """Read a text on the tab that looks inside, and wait for its tokens."""
    page.fill("#look-text textarea", text)
    page.click("#look-send")
    wait_for(page, lambda: "".join(page.locator(".look-token").all_inner_texts()).replace("…", "") == text)
    page.wait_for_selector("#look-attention canvas, #look-attention svg")


def test_a_model_is_looked_into_by_mouse_and_keyboard(page):
    go(page, LOOK)
    assert "按“看里面”" in page.inner_text("#look-tokens")
    choose(page, "look-model", "base")
    look_inside(page, "的河的河的")
    lens = page.inner_text("#look-lens")
    assert page.locator(".look-token[aria-pressed=true]").count() == 1 and "第 2 层后" in lens
    # By mouse, and from there by keyboard: the focus stays where it was.
    page.locator(".look-token").first.click()
    wait_for(page, lambda: "“的”之后" in page.inner_text("#look-lens") != lens)
    lens = page.inner_text("#look-lens")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.activeElement, '::after').content").endswith('bit"')
    page.keyboard.press("Enter")
    wait_for(page, lambda: "“河”之后" in page.inner_text("#look-lens") != lens)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    # The sliders change the bars, and the lists the map.
    bars, attention = page.locator("#look-next canvas"), page.locator("#look-attention canvas")
    for picture, change in (
        (bars, lambda: page.fill("#look-temperature input[type=number]", "2")),
        (attention, lambda: choose(page, "look-layer", "1")),
        (attention, lambda: choose(page, "look-head", "3")),
    ):
        before = picture.evaluate("canvas => canvas.toDataURL()")
        change()
        wait_for(page, lambda: picture.count() and picture.evaluate("canvas => canvas.toDataURL()") != before)  # noqa: B023
    choose(page, "look-other", "alpha")
    page.click("#look-send")
    page.wait_for_selector("#look-compared")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 2") and page.evaluate("!window.hacked")
    hostile = "<img␣src=x␣onerror=window.hacked=1>${window.hacked=1}"
    page.fill("#look-text textarea", hostile.replace("␣", " "))
    page.click("#look-send")
    wait_for(page, lambda: "".join(page.locator(".look-token").all_inner_texts()) == hostile[:32])
    assert page.evaluate("window.hacked") is None


def test_curves_grow_while_a_run_is_going_on(page, folder):
    log = folder / "out" / "beta" / "log.jsonl"
    lines = [json.dumps({"step": i, "train_loss": 5 - i / 10, "val_loss": None}) + "\n" for i in range(20)]
    log.write_text("".join(lines[:10]), encoding="utf-8")
    go(page, TRAINING)
    wait_for(page, lambda: "第 9 步" in state(page, "training"))
    page.wait_for_selector("#loss-plot canvas, #loss-plot svg")
    log.write_text("".join(lines), encoding="utf-8")
    wait_for(page, lambda: "第 19 步" in state(page, "training"))
    log.unlink()


def test_a_card_tells_each_model_and_opens_it(page, folder):
    log = folder / "out" / "alpha" / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "val_loss": 3 - i}) + "\n" for i in range(3)), encoding="utf-8")
    go(page, MODELS)
    card = page.locator("#model-cards li", has=page.get_by_role("heading", name="alpha", exact=True))
    wait_for(page, lambda: "3.000 → 1.000" in card.inner_text())
    assert "微调" in card.inner_text() and "1.500" in card.inner_text() and card.locator("svg polyline").count() == 1
    link = page.get_by_role("link", name="问 base", exact=True)
    assert link.get_attribute("href") == "?model=base"
    log.unlink()


def copied(page):
    """The text of the clipboard, once a message says that something was copied."""
    page.wait_for_selector("#note.shown")
    return page.evaluate("navigator.clipboard.readText()")


def test_an_answer_is_copied_as_plain_text_and_a_copied_link_reopens_the_prompt_without_sending_it(page, arena):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = "full stop <b>a&amp;b</b> &lt;\n第二行"
    page.fill("#prompt textarea", "full stop <b>a&amp;b</b> &lt;")
    page.press("#prompt textarea", "Control+Enter")
    page.locator("#prompt textarea").press_sequentially("第二行")
    assert page.input_value("#prompt textarea") == text and last_answer(page) == ""  # nothing was sent
    page.press("#prompt textarea", "Enter")
    wait_for(page, lambda: "首字" in state(page, "single"))
    page.click("#copy-answer")
    assert copied(page) == text
    page.click("#copy-link")
    wait_for(page, lambda: page.evaluate("navigator.clipboard.readText()") != text)
    link = copied(page)
    assert link.startswith(arena.url) and "<" not in link
    page.goto(f"{link}&temperature=7&top_k=nan&model=gone")  # of two values, the first counts
    wait_for(page, lambda: page.input_value("#prompt textarea") == text)
    assert page.input_value("#model input").startswith("alpha") and "top_k 20" in state(page, "single")
    page.goto(f"{arena.url}/?prompt=%3Cimg%20src=x%20onerror=hacked=1%3E&temperature=7&top_k=nan&model=gone&seed=1e99")
    wait_for(page, lambda: page.input_value("#prompt textarea") == "<img src=x onerror=hacked=1>")
    assert state(page, "single").startswith("已按链接填入（temperature 2, seed 9")
    assert last_answer(page) == "" and page.evaluate("window.hacked") is None


def test_arrow_keys_vote_unless_a_text_is_being_written(page, folder):
    go(page, DUEL)
    set_blind(page, True)
    ask(page, "full stop 键", "duel-")
    page.wait_for_selector("#vote-left:not([disabled])")
    page.focus("#duel-prompt textarea")
    page.keyboard.press("ArrowLeft")  # moves the cursor
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    wait_for(page, lambda: "已投票" in state(page, "duel"))
    vote = json.loads((folder / "arena" / "votes.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (vote["prompt"], vote["result"]) == ("full stop 键", "right")


def test_nothing_moves_while_an_answer_streams(page):
    size = page.viewport_size
    page.set_viewport_size({"width": 1280, "height": 1600})  # so that all below the chat is in sight
    ask(page, "slow\n" + "行\n" * 24)
    wait_for(page, lambda: last_answer(page))  # the prompt, which was high, has been emptied
    page.evaluate(
        """() => {
          window.shift = 0;
          const add = (list) => list.getEntries().forEach((entry) => { window.shift += entry.value; });
          new PerformanceObserver(add).observe({type: "layout-shift"});
        }"""
    )
    wait_for(page, lambda: last_answer(page).count("行") == 24 and "首字" in state(page, "single"))
    shift = page.evaluate("window.shift")
    page.set_viewport_size(size)
    assert shift < MAX_LAYOUT_SHIFT


def axe_findings(page, *rules):
    """{(rule, HTML)} of what axe finds on the page now; rules: these alone."""
    only = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    result = axe.Axe().run(page, options={"resultTypes": ["violations"], **only}).response
    return {(each["id"], node["html"]) for each in result["violations"] for node in each["nodes"]}


def test_axe_finds_nothing_but_what_is_gradios_on_any_tab_light_or_dark(page):
    found = set()
    for rules in ([], ["color-contrast"]):  # then the same page in its other colours
        for tab in TABS:
            go(page, tab)
            page.wait_for_timeout(300)  # for transitions of colours
            found |= axe_findings(page, *rules)
        page.click("#switch-theme")
    assert not page.evaluate("document.body.classList.contains('dark')")
    known = {
        finding for finding in found for rule, part in GRADIO_FINDINGS if finding[0] == rule and part in finding[1]
    }
    assert found - known == set()


def check_language(page, words, mistake):
    """The labels, and the message of a handler, are in a language."""
    wait_for(page, lambda: all(word in page.inner_text("body") for word in words.split()))
    ask(page, " ")
    wait_for(page, lambda: state(page, "single") == mistake)
    assert not re.search("minigpt_|__i18n__", page.inner_text("body"))


def test_every_form_of_chinese_gets_the_chinese_page(browser, arena):
    with opened(browser, arena, "zh-HK") as page:
        check_language(page, "双模型对战 发送 停止 排行榜", "⚠ 先写点什么再发送")


def test_a_telephone_in_english_and_dark_whose_closed_tab_frees_the_model(browser, arena, peers_file):
    look = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    with peer(["slow"]) as other:
        write_peers(peers_file, p=other.address)
        with opened(browser, arena, "en-US", **look) as page:
            check_language(page, "Refresh Send Stop", "⚠ write something first")
            assert page.evaluate("document.body.classList.contains('dark')")
            refresh(page, "slow @ p")
            ask(page, "慢" * 400)
            wait_for(page, lambda: len(last_answer(page)) > 40)  # more than a line
            for tab in (*TABS, SINGLE):
                go(page, tab)
                assert page.evaluate("document.documentElement.scrollWidth") <= 362, tab
            page.click("#switch-theme")
            page.click("#switch-language")
            page.wait_for_selector("#prompt textarea")
            wait_for(page, lambda: "双模型对战" in page.inner_text("body"))
            assert not page.evaluate("document.body.classList.contains('dark')")
            wait_for(page, lambda: page.locator("#model input").count() == 1)
            refresh(page, "slow @ p")
            ask(page, "慢" * 400)
            wait_for(page, lambda: len(last_answer(page)) > 2)
        begun = time.monotonic()
        while not other.left:  # the peer notices that the connection is closed
            assert time.monotonic() - begun < HANG_SECONDS
            time.sleep(0.05)
