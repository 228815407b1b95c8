"""The cards of models as HTML; the page of an arena that has nothing yet; the language that a visitor has chosen."""

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from arena_fakes import arena_settings, open_fake

from minigpt.arena.arena import Arena, ModelChoice
from minigpt.arena.cards import CARD_FIGURES, Figure, ModelCard
from minigpt.arena.models import CheckpointInfo
from minigpt.arena_ui import create_page
from minigpt.arena_ui.i18n import COOKIE, language_for
from minigpt.arena_ui.models import card_html, remote_html, sparkline

HOSTILE = "<img src=x onerror=alert(1)>\"'&${value}{{value}}"


class Reader(HTMLParser):
    """The tags, links and text of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.text += data


def info(name="demo_sft", **more):
    return CheckpointInfo(name, Path("ckpt.pt"), "sft", 420, 1_700_000, 0.257, 0.0, **more)


def test_a_card_has_size_stage_chain_curve_and_figures_with_their_intervals():
    figures = {**dict.fromkeys(CARD_FIGURES, Figure(1.0859)), "exact_match": Figure(0.882, 0.86, 0.902, 830, True)}
    card = ModelCard(
        info(is_adapter=True), ("demo/last", "demo_sft"), ((70, 0.9), (140, 0.5), (210, 0.257)), figures, True
    )
    text = Reader(card_html(None, card)).text
    for part in (
        "demo_sft", "fine-tuned", "adapter", "training", "demo/last → demo_sft", "1.7M", "0.257", "88.2%",
        "86.0% – 90.2%", "830 questions", "1.086", "trained on them, or not checked", "0.900 → 0.257", "step 420",
    ):  # fmt: skip
        assert part in text, part


def test_names_of_models_are_text_in_cards_and_links():
    card = card_html(None, ModelCard(info(HOSTILE), ("<b>x</b>", HOSTILE), (), {}, False))
    remote = remote_html(None, ModelChoice(f"{HOSTILE} @ x", None, "x", 0.02))
    for shown in map(Reader, (card, remote)):
        assert "img" not in shown.tags and "b" not in shown.tags and HOSTILE in shown.text
        assert all(link.startswith("?model=%3Cimg") for link in shown.links) and shown.links


@pytest.mark.parametrize("curve", [(), ((7, 1.0),)])
def test_one_point_makes_no_curve(curve):
    assert sparkline(None, curve) == ""


def test_a_curve_falls_from_the_left_top_to_the_right_bottom_and_a_flat_one_is_a_line():
    written = sparkline(None, ((0, 3.0), (10, 1.0))).split('points="')[1].split('"')[0]
    points = [tuple(map(float, point.split(","))) for point in written.split()]
    assert points == [(0.0, 4.0), (240.0, 40.0)]
    assert "nan" not in sparkline(None, ((0, 1.0), (10, 1.0)))


def test_an_arena_with_nothing_says_which_commands_come_next(tmp_path):
    arena = Arena(arena_settings(tmp_path), open_fake)
    config = create_page(arena).get_config_file()
    arena.close()
    shown = {
        each["props"].get("elem_id"): json.dumps(each["props"]["value"], default=str)
        for each in config["components"]
        if each["type"] == "markdown" and each["props"]["visible"]
    }
    assert {"no-models", "no-tasks", "no-peers"} <= set(shown)


def request(cookies, header="zh-CN"):
    return SimpleNamespace(cookies=cookies, headers={"accept-language": header})


def test_the_chosen_language_comes_before_the_browsers():
    assert language_for(request({COOKIE: "en"})) == "en" and language_for(request({COOKIE: "zh"}, "en-GB")) == "zh"
    assert language_for(request({COOKIE: "<x>"})) == language_for(request({})) == "zh" and language_for(None) == "en"
