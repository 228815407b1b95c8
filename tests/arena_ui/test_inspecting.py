"""The functions of the tab that looks inside a checkpoint, called with gradio_client. The models are tiny real ones."""

import html
import json
import re

import pytest
from arena_fakes import write_checkpoint
from arena_visitors import visitor
from tiny import tiny_model, tiny_tokenizer

from minigpt.arena.arena import Arena
from minigpt.arena.problems import Problem
from minigpt.arena_ui.i18n import TEXTS
from minigpt.arena_ui.inspecting import escape
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.inference.inspect import read_text, subjects_of_fields, surprise_bits
from minigpt.settings.stages import ArenaSettings
from minigpt.tokenizer import load_tokenizer

SAMPLING = [0.1, 20, 1]
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{constructor}}`'\""


@pytest.fixture(scope="module")
def client(arena):
    client = visitor(arena)
    yield client
    client.close()


def look(client, name="alpha", other=None, text="东河的##河", sampling=SAMPLING):
    """(status line, tokens, table, bars, lens, neighbours, attention map) of a text."""
    state, tokens, table, bars, lens, near, _, _, attention = client.predict(
        name, other, text, *sampling, api_name="/look"
    )
    return state, tokens, table, bars, lens, near, attention


def buttons(tokens):
    return re.findall(r'data-bits="([^"]*)"[^>]*>(.*?)</button>', tokens)


def test_a_text_is_shown_with_the_surprise_of_each_token(client, folder):
    state, tokens, table, bars, lens, near, attention = look(client)
    model, tokenizer = load_model(load_checkpoint(folder / "out" / "alpha" / "ckpt.pt"))
    _, *bits = surprise_bits(model, read_text(model, tokenizer, "东河的##河"))
    shown = buttons(tokens)
    assert [label for _, label in shown] == ["东…", "…东…", "…东", "河", "的", "##", "河"]
    assert [said for said, _ in shown[1:]] == [f"{each:.2f} bit" for each in bits] and "第一个" in shown[0][0]
    assert state.startswith(f"alpha · 7 个 token · 平均 {sum(bits) / len(bits):.2f} bit") and f"{bits[2]:.2f}" in table
    assert "第 2 层后" in lens and "实际的下一个“河”" in lens and near.count("<li>") == 10
    assert json.loads(attention["plot"])["mark"]["type"] == "rect"
    assert "河" in bars["plot"] and len(json.loads(bars["plot"])["layer"]) == 2


def test_two_checkpoints_are_compared_on_the_same_text(client, folder):
    path = folder / "out" / "look_changed" / "ckpt.pt"
    write_checkpoint(path, tiny_model(5), tiny_tokenizer())
    try:
        state, tokens, table, *_ = look(client, "alpha", "look_changed")
        assert state.count("平均") == 2 and tokens.count("look-change ") == 7 and "look_changed（bit）" in table
        assert len(re.findall(r"<td[^>]*>[+-]\d+\.\d\d</td>", table)) == 6
        write_checkpoint(path, tiny_model(5, vocab_size=50304), load_tokenizer(), step=8)
        state, *_ = client.predict("alpha", "look_changed", "河", *SAMPLING, api_name="/look")
        assert state.startswith("⚠") and "tokenizer 不同" in state
    finally:
        path.unlink()
        path.parent.rmdir()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (None, "河", "先选一个模型"),
        ("alpha", " ", "先写点什么"),
        ("alpha", "长" * 40000, "32768"),
        ("gone", "河", "没有模型 gone"),
        ("model @ friend", "河", "在别的机器上"),
        ("classify", "河", "给文本加标签"),
    ],
)
def test_what_cannot_be_looked_into_is_said(client, name, text, said):
    state = client.predict(name, None, text, *SAMPLING, api_name="/look")[0]
    assert state.startswith("⚠") and said in state


def test_long_texts_are_cut_with_a_note_and_one_token_is_enough(client):
    state, tokens, *_ = look(client, text="a" * 40)
    assert "最后 8 个 token 没有读" in state and len(buttons(tokens)) == 32
    state, tokens, _, _, lens, *_ = look(client, text="a")
    assert "1 个 token · 平均 – bit" in state and len(buttons(tokens)) == 1 and "实际的下一个" not in lens


def test_what_a_visitor_writes_is_text(client):
    _, tokens, table, _, lens, near, _ = look(client, text=HOSTILE)
    for part in (tokens, table, lens, near):
        assert "<img" not in part and "${" not in part and "{{" not in part and "`" not in part
    assert "".join(html.unescape(label) for _, label in buttons(tokens)).startswith("<img␣src=x")
    assert html.unescape(escape(HOSTILE)) == HOSTILE


def test_sampling_numbers_are_checked(client):
    arena_sent = [[3, 20, 1], [0.1, -1, 1], [0.1, 20, 1.5]]
    for sampling in arena_sent:
        try:
            state = client.predict("alpha", None, "河", *sampling, api_name="/look")[0]
        except Exception as error:  # Gradio's own check of a slider's range comes first
            assert re.search("value|minimum|maximum", str(error).lower())
        else:
            assert state.startswith("⚠")


def test_neighbours_of_a_subject_and_how_often_they_are_of_its_field(client):
    state, found, plot = client.predict("alpha", "铁", api_name="/look_subject")
    assert "666 个主题" in state and "随机 11.5%" in state and found.count("<li>") == 10
    assert "<b>铁</b>" not in found and len(json.loads(plot["plot"])["layer"]) == 3
    _, found, _ = client.predict("alpha", "不在语料里", api_name="/look_subject")
    assert found.count("<li>") == 10
    assert client.predict("alpha", "长" * 31, api_name="/look_subject")[0].startswith("⚠")


def test_every_field_of_the_corpus_has_a_name_on_the_page(tmp_path):
    settings = ArenaSettings()
    settings.out_root, settings.arena_dir = str(tmp_path), str(tmp_path / "arena")
    arena = Arena(settings)
    assert {f"look_field_{subject.field}" for subject in arena.inspector.subjects()} <= set(TEXTS)
    arena.inspector._subjects = subjects_of_fields([])
    with pytest.raises(Problem, match="look_no_corpus"):
        arena.inspector.subjects()
    arena.close()
