"""What the probes of the experiments measure, on a tiny run, against plain ways to the same figures."""

from types import SimpleNamespace

import numpy as np
import pytest
from corpora import byte_tokenizer, made_up_articles, made_up_questions
from runs import TINY, finish_run

from data_utils import make_batch, open_rows
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.corpus.row_files import RowWriter
from minigpt.experiments import measure
from minigpt.experiments.curves import bits_by_class
from minigpt.inference.likelihood import likelihood

PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan with rows of articles and of questions; {"plain", "questions_1.0": folder of a run on them}."""
    folder, tokenizer = tmp_path_factory.mktemp("plan"), byte_tokenizer()
    articles = [tokenizer.encode(row["text"])[:90] for row in made_up_articles(16)]
    questions = [
        [*tokenizer.encode(qa["question"]), tokenizer.answer_id, *tokenizer.encode(qa["answer"])]
        for qa in made_up_questions(16)
    ]
    places = {}
    for name, stage, rows in (("plain", "pretrain", articles), ("questions_1.0", "sft", questions)):
        with RowWriter(folder / "rows" / name, PARTS, TINY["block_size"], tokenizer) as writer:
            for i, ids in enumerate(rows):
                writer.add(PARTS[min(2, i % 6)], ids, len(ids))
            writer.finish({"stage": stage})
        places[name] = folder / name
        given = {"max_iters": 6, "eval_interval": 2, "keep_every": 2, "n_layer": 1, "n_embd": 16}
        finish_run(**{**TINY, **given, "data_dir": str(folder / "rows" / name), "out_dir": str(places[name])})
    return SimpleNamespace(folder=folder, settings=SimpleNamespace(block_size=8)), places


def test_the_same_texts_have_the_loss_that_the_likelihood_gives(made):
    plan, places = made
    for place in places.values():
        figures = measure.probe_texts(plan, None, place)
        model, _ = load_model(load_checkpoint(place / "last.pt"))
        for key, name, part in (("articles", "plain", "val"), ("answers", "questions_1.0", "test")):
            rows, meta = open_rows(plan.folder / "rows" / name, part)
            measured = likelihood(model, rows, meta, 1)
            assert figures[key] == pytest.approx(measured.loss, abs=1e-5)
        assert figures["answer_tokens"] == measured.tokens / len(rows)
        # Of articles, as many of the first targets as an answer has.
        rows, meta = open_rows(plan.folder / "rows" / "plain", "val")
        x, y, _ = make_batch(rows, meta)
        count = round(figures["answer_tokens"])
        mask = y.new_zeros(y.shape, dtype=bool)
        mask[:, :count] = True
        assert figures["starts"] == pytest.approx(model.token_losses(x, y, mask).mean().item(), abs=1e-5)


def test_bits_by_kind_of_character_add_up_to_the_likelihood_of_the_text(made):
    plan, places = made
    run = SimpleNamespace(rows="plain")
    figures = measure.probe_characters(plan, run, places["plain"])
    model, tokenizer = load_model(load_checkpoint(places["plain"] / "last.pt"))
    for part in ("train", "val"):
        assert [line["step"] for line in figures[part]] == [0, 2, 4, 6]
        rows, meta = open_rows(plan.folder / "rows" / "plain", part)
        batch = make_batch(rows, meta)
        classes = list(measure.classes_of_batch(*batch, tokenizer))
        nats = model.token_losses(*batch).detach().double().numpy()
        measured = likelihood(model, rows, meta, 8, tokenizer)
        # The first byte of a row is no target, so its character begins before the targets: `likelihood` counts it.
        characters = sum(known[1] for known in classes if known)
        assert 0 <= measured.characters - characters <= len(rows)
        bits = sum(loss for loss, known in zip(nats, classes, strict=True) if known) / np.log(2)
        assert bits == pytest.approx(measured.text_nats / np.log(2), rel=1e-5)
        last = {name: value for name, value in figures[part][-1].items() if name != "step"}
        assert last == pytest.approx(bits_by_class(classes, nats), rel=1e-5)
        assert {"digits", "han", "punctuation"} <= set(last)
        assert set(figures["learned"][part]) == set(last)


def test_repetition_is_that_of_the_articles_and_of_continuations_no_longer_than_they(made, monkeypatch):
    plan, places = made
    monkeypatch.setattr(
        measure.TextGenerator, "generate", lambda self, prompts, params: ["一二三四一二三四" * 99] * len(prompts)
    )
    figures = measure.probe_repetition(plan, SimpleNamespace(rows="plain"), places["plain"])
    assert set(figures) == {"articles", "t01", "t04"}
    assert 0 <= figures["articles"]["repeated"] < 0.2 < figures["t01"]["repeated"] < 1
    assert figures["t01"] == figures["t04"]


def test_wrong_answers_are_compared_with_their_reference_and_with_another_answer():
    references = ["羊侃的字是公祖。", "镇有三座桥。", "河在东边。"]
    figures = measure.score_wrong(["羊侃的字是祖。", "镇有三座桥。", "河在西边。"], references)
    assert figures["wrong"] == pytest.approx(2 / 3)
    assert figures["wrong_rouge_l"] == pytest.approx((14 / 15 + 8 / 10) / 2)
    assert figures["other_rouge_l"] < figures["wrong_rouge_l"]
    assert measure.score_wrong(references, references) == {"wrong": 0, "wrong_rouge_l": None, "other_rouge_l": None}
