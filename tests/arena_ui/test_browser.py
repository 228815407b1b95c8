"""The page in a real browser: headless Chromium, as a person presses its buttons. Skipped where there is none."""

import json
import re
import time

import pytest
from arena_fakes import __file__ as fake
from arena_fakes import write_checkpoint, write_checkpoints
from corpora import ROOT
from page_in_browser import (
    BOARD,
    CHROMIUM,
    DUEL,
    HANG_SECONDS,
    MATCH,
    PEERS,
    SINGLE,
    TRAINING,
    ask,
    by_name,
    choose,
    go,
    opened,
    said,
    state,
    wait_for,
)
from peer_fakes import HOSTILE, peer
from serving_fakes import started
from tiny import tiny_model, tiny_tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    write_checkpoints(folder / "out", ["alpha", "beta"])
    return folder


@pytest.fixture(scope="module")
def arena(folder):
    with started(fake, "--port=0", "--peers=peers.json", f"--request_seconds={HANG_SECONDS}", cwd=folder) as server:
        yield server


@pytest.fixture
def page(browser, arena):
    with opened(browser, arena) as page:
        yield page
        assert not page.alien and not page.dialogs


def test_one_model_answers_and_the_clock_is_shown(page):
    ask(page, "full stop 好")
    wait_for(page, lambda: said(page) == "full stop 好")
    wait_for(page, lambda: "首字" in state(page, "single"))
    assert page.input_value("#prompt textarea") == ""


def test_text_appears_as_it_is_made_and_stop_stops_it(page):
    ask(page, "slow" * 60)
    seen = set()
    wait_for(page, lambda: seen.add(len(said(page))) or len(seen) > 5)
    page.click("#stop")
    wait_for(page, lambda: "已停止" in state(page, "single"))
    length = len(said(page))
    page.wait_for_timeout(500)
    assert len(said(page)) == length > 3


def test_what_is_typed_while_an_answer_comes_stays(page):
    for prefix, tab in (("", SINGLE), ("duel-", DUEL)):
        go(page, tab)
        ask(page, "slow" * 5, prefix)
        wait_for(page, lambda prefix=prefix: said(page, "left-chat" if prefix else "chat"))
        page.fill(f"#{prefix}prompt textarea", "full stop 下一题")
        page.wait_for_timeout(300)
        page.click(f"#{prefix}stop")
        page.wait_for_timeout(500)
        assert page.input_value(f"#{prefix}prompt textarea") == "full stop 下一题"


def test_enter_asks_and_clear_empties_and_flag_writes(page, folder):
    page.fill("#prompt textarea", "full stop 标")
    page.press("#prompt textarea", "Enter")
    wait_for(page, lambda: said(page) == "full stop 标" and "首字" in state(page, "single"))
    page.click("#flag")
    wait_for(page, lambda: "flagged.csv" in state(page, "single"))
    assert "full stop 标" in (folder / "arena" / "flagged.csv").read_text(encoding="utf-8-sig")
    page.click("#clear")
    wait_for(page, lambda: said(page) == "")


def test_an_example_is_filled_in_by_a_click(page):
    page.locator("#examples tbody tr").first.click()
    wait_for(page, lambda: page.input_value("#prompt textarea") == "铁的元素符号是什么？")


def test_two_models_stream_at_once_a_vote_reveals_them_and_the_board_has_it(page):
    go(page, DUEL)
    ask(page, "slow" * 8, "duel-")
    wait_for(page, lambda: said(page, "left-chat") and said(page, "right-chat"))  # both, before either has ended
    assert page.is_disabled("#vote-left")
    page.click("#duel-stop")
    page.wait_for_selector("#vote-left:not([disabled])")
    assert not re.search("alpha|beta", page.inner_text("body") + state(page, "left") + state(page, "right"))
    page.click("#vote-left")
    wait_for(page, lambda: "已投票" in state(page, "duel"))
    assert {"alpha", "beta"} <= set(re.findall("alpha|beta", state(page, "duel")))
    assert page.is_disabled("#vote-left")
    go(page, BOARD)
    wait_for(page, lambda: "票" in state(page, "board"))
    wait_for(page, lambda: {"alpha", "beta"} <= set(re.findall("alpha|beta", page.inner_text("#standings"))))
    page.wait_for_selector("#board-plot canvas, #board-plot svg")
    with page.expect_download() as download:
        page.click("#save-board")
    assert download.value.suggested_filename == "leaderboard.csv"
    with page.expect_download() as download:
        page.click("#save-preferences")
    assert download.value.suggested_filename == "preferences.jsonl"


def test_a_real_server_is_a_peer_and_answers_beside_a_checkpoint(page, folder, tmp_path):
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
        by_name(page)
        choose(page, "left-model", "friend @ 朋友")
        choose(page, "right-model", "beta")
        ask(page, "full stop", "duel-")
        page.wait_for_selector("#vote-tie:not([disabled])")
        assert state(page, "left").startswith("friend @ 朋友: 首字") and said(page, "right-chat") == "full stop"
        page.click("#vote-right")
        wait_for(page, lambda: "friend @ 朋友" in state(page, "duel"))
    (folder / "peers.json").unlink()


def write_peers(folder, **addresses):
    entries = [{"name": name, "address": address} for name, address in addresses.items()]
    (folder / "peers.json").write_text(json.dumps(entries), encoding="utf-8")


def test_a_peer_that_dies_in_mid_answer_costs_the_other_side_nothing(page, folder):
    with peer(["dies"]) as other:
        write_peers(folder, bad=other.address)
        page.click("#refresh")
        go(page, DUEL)
        by_name(page)
        wait_for(page, lambda: choose(page, "left-model", "dies @ bad") is None)
        choose(page, "right-model", "beta")
        ask(page, "full stop, 死", "duel-")
        wait_for(page, lambda: state(page, "left").startswith("dies @ bad: ⚠"))
        wait_for(page, lambda: said(page, "right-chat") == "full stop, 死")
        wait_for(page, lambda: "不计票" in state(page, "duel"))  # said when both have ended
        assert said(page, "left-chat") == "ful" and page.is_disabled("#vote-left")
    (folder / "peers.json").unlink()
    ask(page, "full stop, 还活着", "duel-")  # that peer is gone: said, and nothing typed is lost
    wait_for(page, lambda: "⚠" in state(page, "duel"))
    assert page.input_value("#duel-prompt textarea") == "full stop, 还活着"


def shown(text):
    """As innerText gives a text: spaces and line breaks folded, controls that no page shows left out."""
    return re.sub(r"[\s\x00-\x1f]+", "", text)


def test_hostile_prompts_are_shown_as_text(page):
    for text in HOSTILE:
        ask(page, text)
        if len(text) > 32768:
            wait_for(page, lambda: "⚠" in state(page, "single"))
            page.click("#clear")  # once that has come back, nothing writes into the box any more
            wait_for(page, lambda: state(page, "single") == "")
            continue
        answer = (text * 225)[:225]  # said round and round, it ends by itself; to stop it would race with its end
        wait_for(page, lambda text=text: shown(text) in shown(page.inner_text("#chat")))
        wait_for(page, lambda answer=answer: shown(said(page)) == shown(answer))
    assert page.evaluate("window.hacked") is None
    ask(page, "full stop 活")
    wait_for(page, lambda: said(page) == "full stop 活")


def test_hostile_answers_of_a_peer_are_shown_as_text(page, folder):
    with peer(["hostile"]) as other:
        write_peers(folder, evil=other.address)
        page.click("#refresh")
        wait_for(page, lambda: choose(page, "model", "hostile @ evil") is None)
        for text in HOSTILE:
            other.hostile = text
            page.click("#clear")
            wait_for(page, lambda: said(page) == "")
            ask(page, "说")
            wanted = shown(text)[:30000]
            wait_for(page, lambda wanted=wanted: shown(said(page)).startswith(wanted))
            wait_for(page, lambda: "首字" in state(page, "single"))
        wait_for(page, lambda: "截断" in state(page, "single"))  # of the last, a million characters
        assert page.evaluate("window.hacked") is None
    (folder / "peers.json").unlink()


def test_names_of_a_peer_and_of_its_models_are_text_too(page, folder):
    with peer(["<img src=x onerror=window.hacked=1>"]) as other:
        write_peers(folder, **{"<b>x</b>": other.address})
        go(page, PEERS)
        wait_for(page, lambda: "<img src=x onerror=window.hacked=1>" in page.inner_text("#peers"))
        assert "<b>x</b>" in page.inner_text("#peers")
        go(page, SINGLE)
        choose(page, "model", "<b>x</b>")
    (folder / "peers.json").unlink()
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("zh-CN", "双模型对战 发送 停止 排行榜"),
        ("zh-TW", "双模型对战"),
        ("zh-HK", "双模型对战"),
        ("zh", "双模型对战"),
        ("en-US", "Two models Ask Stop Leaderboard"),
        ("fr-FR", "Leaderboard"),
    ],
)
def test_the_page_speaks_the_browsers_language(browser, arena, locale, words):
    with opened(browser, arena, locale) as page:
        wait_for(page, lambda: all(word in page.inner_text("body") for word in words.split()))
        ask(page, " ")
        wait_for(page, lambda: state(page, "single").startswith("⚠"))
        assert ("先写点什么" in state(page, "single")) == locale.startswith("zh")
        assert not re.search("minigpt_|__i18n__", page.inner_text("body"))


def test_a_match_shows_answers_side_by_side(page):
    go(page, MATCH)
    page.fill("#match-count input", "3")
    page.click("#match-start")
    wait_for(page, lambda: "3 题" in state(page, "match"))
    assert "0.000" in page.inner_text("#match-summary") and "alpha" in page.inner_text("#match-answers")


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


def test_a_telephone_and_the_dark_are_served_too(browser, arena):
    with opened(browser, arena, viewport={"width": 360, "height": 740}, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 362
        assert page.evaluate("document.body.classList.contains('dark')")
        ask(page, "full stop" + "长" * 300)
        wait_for(page, lambda: said(page).startswith("full stop长长"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 362


def test_a_closed_tab_frees_the_model(browser, arena, folder):
    with peer(["slow"]) as other:
        write_peers(folder, p=other.address)
        with opened(browser, arena) as page:
            page.click("#refresh")
            wait_for(page, lambda: choose(page, "model", "slow @ p") is None)
            ask(page, "慢" * 400)
            wait_for(page, lambda: said(page))
        begun = time.monotonic()
        while not other.left:  # the peer sees that nobody listens
            assert time.monotonic() - begun < 10
            time.sleep(0.05)
    (folder / "peers.json").unlink()
