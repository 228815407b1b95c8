"""Minimal pairs: scores held against values by hand and against one sentence at a time; forms of rows; the script."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpora import byte_tokenizer, write_jsonl
from evaluation_fakes import load_script, make_project, run_here
from tiny import ARCHITECTURE_FIELDS, tiny_model, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.evaluation.checkpoint_plots import read_curves, runs_of
from minigpt.evaluation.grammar import (
    MinimalPair,
    PairScores,
    compare_grammar,
    draw_grammar,
    grammar_figures,
    pair_of,
    read_minimal_pairs,
    score_pairs_of,
)
from minigpt.formats.huggingface import write_huggingface

SCRIPT = load_script("evaluations-grammar.py")
PAIRS = [
    MinimalPair("第1镇有一条河。", "第1镇有一位河。", "classifier", "river"),
    MinimalPair("桥在河上。", "河在桥上的的。", "order", "place"),
    MinimalPair("山很高。", "山高很。", "order", "adverb"),
]


# Probabilities of a token after another; of all that are not here: OTHER.
BIGRAMS = {"ab": 0.5, "ac": 0.125, "bc": 0.25, "cb": 0.25, "bb": 0.5}
OTHER = 0.0625


class Bigrams(torch.nn.Module):
    """A model whose likelihoods are known: those of BIGRAMS."""

    config = SimpleNamespace(causal=True, block_size=16, n_embd=1)
    row_positions = 16

    def __init__(self):
        super().__init__()
        self.wte = torch.nn.Embedding(1, 1)

    def token_losses(self, x, y, mask):
        pairs = zip(x[mask].tolist(), y[mask].tolist(), strict=True)
        return torch.tensor([-math.log(BIGRAMS.get(chr(a) + chr(b), OTHER)) for a, b in pairs])


def pairs_like(*texts, phenomenon="p"):
    return [MinimalPair(*pair.split(), phenomenon, phenomenon) for pair in texts]


def test_scores_of_a_model_whose_likelihoods_are_known():
    pairs = pairs_like("ab ac", "ac ab", "abc acb", "abb ab", "a ab", "ab " + "b" * 17)
    scores = score_pairs_of(Bigrams(), tiny_tokenizer(), pairs)
    bits = scores.nats / math.log(2)
    assert bits[:4] == pytest.approx(np.array([[1, 3], [3, 1], [3, 5], [2, 1]]))
    assert scores.tokens[:4].tolist() == [[1, 1], [1, 1], [2, 2], [2, 1]]
    # "abb" against "ab": less likely by the sum, equal by the mean (a half each). What has a single token, or more than
    # fit the block, is not judged.
    assert scores.rights()[:4].tolist() == [1, 0, 1, 0]
    assert scores.rights(per_token=True)[:4].tolist() == [1, 0, 1, 0.5]
    assert np.isnan(scores.rights()[4:]).all() and np.isnan(scores.rights(per_token=True)[4:]).all()
    figures = grammar_figures(pairs, scores)
    assert (figures["grammar"], figures["grammar_per_token"]) == (0.5, 0.625)
    assert figures["fewer_tokens"] == (0.5 + 0.5 + 0.5 + 0) / 4
    assert (figures["pairs"], figures["ties"], figures["left_out"]) == (4, 0, 2)
    tied = score_pairs_of(Bigrams(), tiny_tokenizer(), pairs_like("bc cb", "ab ac"))
    assert tied.rights().tolist() == [0.5, 1] and grammar_figures(PAIRS[:2], tied)["ties"] == 1


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", ARCHITECTURE_FIELDS)
@pytest.mark.parametrize("batch_size", [0, 1, 4])
def test_scores_in_batches_are_those_of_one_sentence_at_a_time(architecture, batch_size):
    model, encode, done = tiny_model(architecture=architecture), tiny_tokenizer().encode, []
    scores = score_pairs_of(model, tiny_tokenizer(), PAIRS, batch_size, done.append)
    for pair, nats, tokens in zip(PAIRS, scores.nats, scores.tokens, strict=True):
        for text, found, count in zip((pair.good, pair.bad), nats, tokens, strict=True):
            ids = torch.tensor([encode(text)])
            with torch.inference_mode():
                logprobs = model(ids[:, :-1])[0].double().log_softmax(dim=-1)
            alone = -logprobs.gather(1, ids[0, 1:, None]).sum().item()
            assert found == pytest.approx(alone, rel=1e-5) and count == ids.shape[1] - 1
    assert sum(done) == 2 * len(PAIRS)


def test_a_masked_model_gives_no_likelihood():
    with pytest.raises(UserError, match="masked language model"):
        score_pairs_of(tiny_model(causal=False), tiny_tokenizer(), PAIRS)


def known_scores(rights):
    """`PairScores` of which the rights are these."""
    return PairScores(np.array([[1.0, 1 + 2 * right - 1] for right in rights]), np.ones((len(rights), 2), dtype=int))


def test_the_interval_of_all_pairs_is_over_paradigms_where_they_are_many():
    # In each paradigm all pairs are right or all are wrong: over pairs the interval would be far too narrow.
    pairs = [MinimalPair("a", "b", "p", f"{i}") for i in range(20) for _ in range(30)]
    rights = [i % 2 for i in range(20) for _ in range(30)]
    figures = grammar_figures(pairs, known_scores(rights))
    low, high = figures["intervals"]["grammar"]
    assert figures["grammar"] == 0.5 and figures["resampled"] == "paradigms" and high - low > 0.3
    low, high = figures["phenomena"]["p"]["interval"]
    assert 0.04 < high - low < 0.12
    fewer = grammar_figures(pairs[: 19 * 30], known_scores(rights[: 19 * 30]))
    low, high = fewer["intervals"]["grammar"]
    assert fewer["resampled"] == "pairs" and high - low < 0.12
    assert grammar_figures(pairs[:19], known_scores(rights[:19]))["intervals"]["grammar"] is None
    assert figures["paradigms"]["p/1"] == {
        "accuracy": 1.0,
        "per_token": 1.0,
        "fewer_tokens": 0.5,
        "pairs": 30,
        "interval": [1.0, 1.0],
    }

    # Two models that differ in one paradigm of twenty; they are equal in no resample without it.
    better = compare_grammar(pairs, known_scores(rights), known_scores([0] * 60 + rights[60:]))
    assert better["difference"] == pytest.approx(30 / 600) and better["rows"] == 20 and better["low"] == 0


def test_the_forms_of_sling_zhoblimp_blimp_and_our_own():
    texts = {"sentence_good": "好。", "sentence_bad": "坏。"}
    for row, about in [
        ({"good": "好。", "bad": "坏。", "phenomenon": "p", "paradigm": "q"}, ("p", "q")),
        (
            {**texts, "phenomenon": "Aspect", "paradigm": "zai_le", "pair_ID": 0, "field": "syntax"},
            ("Aspect", "zai_le"),
        ),
        ({**texts, "phenomenon": "x", "Phenomenon": "Reflexive", "Paradigm": "animacy"}, ("Reflexive", "animacy")),
        ({"UID": "BA_deletion", "phenomenon": "BA", **texts, "pairID": 1}, ("BA", "BA_deletion")),
        ({**texts, "field": "syntax", "linguistics_term": "island", "UID": "adjunct"}, ("island", "adjunct")),
        ({"good": "好。", "bad": "坏。"}, ("–", "–")),
    ]:
        assert pair_of(row) == (MinimalPair("好。", "坏。", *about), None)


def test_rows_that_cannot_be_used_are_shown_with_file_and_line(tmp_path, capsys):
    good = {"good": "好。", "bad": "坏。", "phenomenon": "p", "paradigm": "q"}
    write_jsonl(tmp_path / "pairs/a/one.jsonl", [good, {**good, "bad": "好。"}, {"good": "好。"}, {**good, "good": ""}])
    write_jsonl(tmp_path / "pairs/two.jsonl", [good])
    with open(tmp_path / "pairs/two.jsonl", "a", encoding="utf-8") as file:
        file.write("{broken\n")
    assert len(read_minimal_pairs([str(tmp_path / "pairs")])) == 2
    said = capsys.readouterr().out
    assert "one.jsonl, line 2: both sentences are the same" in said and 'one.jsonl, line 3: no "bad"' in said
    assert 'one.jsonl, line 4: "good" is empty' in said and "two.jsonl, line 2: " in said
    assert "1 both sentences are the same" in said
    with pytest.raises(UserError, match="not there"):
        read_minimal_pairs([str(tmp_path / "no")])
    write_jsonl(tmp_path / "none.jsonl", [{"question": "x"}])
    with pytest.raises(UserError, match="no minimal pair"):
        read_minimal_pairs([str(tmp_path / "none.jsonl")])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("grammar"))
    rows = [
        {"good": f"第{i}镇有河。", "bad": f"第{i}镇河有。", "phenomenon": f"p{i % 2}", "paradigm": "q"}
        for i in range(40)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def test_the_script_over_a_runs_checkpoints_and_a_hugging_face_folder(project, monkeypatch, capsys):
    model = tiny_model(architecture="qwen3", vocab_size=byte_tokenizer().n_vocab, block_size=96)
    (project / "qwen").mkdir()
    write_huggingface(project / "qwen", model, byte_tokenizer(), "pretrain", "float32", "")
    flags = ["--ckpt=out/tuned,qwen", "--grammar_files=pairs.jsonl", "--json=g.json", "--csv=g.csv", "--resamples=100"]
    run_here(monkeypatch, project, SCRIPT, *flags)
    said = capsys.readouterr().out
    assert "40 minimal pairs: p0 20, p1 20" in said and "by phenomenon" in said and "drawn: g.png" in said
    models = json.loads((project / "g.json").read_text(encoding="utf-8"))["models"]
    assert [model["name"] for model in models] == ["tuned/step_10", "tuned", "qwen"]
    for model in models:
        low, high = model["intervals"]["grammar"]
        assert low <= model["grammar"] <= high and set(model["phenomena"]) == {"p0", "p1"}
    rows = list(csv.DictReader((project / "g.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert len(rows) == 120 and {row["model"] for row in rows} == {model["name"] for model in models}
    mine = [float(row["right"]) for row in rows if row["model"] == "tuned"]
    assert sum(mine) / 40 == pytest.approx(models[1]["grammar"])
    assert all((float(row["good_nats"]) < float(row["bad_nats"])) == (row["right"] == "1.0") for row in rows)
    assert "tuned" in runs_of(read_curves(project / "g.json"))  # visualize.py --figures=g.json draws them, too


def test_the_script_refuses_an_address_and_draws_one_checkpoint(project, monkeypatch):
    with pytest.raises(UserError, match="gives no likelihoods"):
        run_here(monkeypatch, project, SCRIPT, "--ckpt=x@http://127.0.0.1:1/v1", "--grammar_files=pairs.jsonl")
    run_here(monkeypatch, project, SCRIPT, "--ckpt=out/base/ckpt.pt", "--grammar_files=pairs.jsonl", "--plot=one.png")
    assert (project / "one.png").stat().st_size > 1000


def test_curves_have_a_line_for_each_phenomenon_and_one_for_all():
    entries = [{"step": step, **grammar_figures(PAIRS, known_scores([1, step % 20 // 10, 0]))} for step in (10, 20)]
    (panel,) = draw_grammar(entries).axes
    lines = {line.get_label(): line.get_ydata() for line in panel.lines}
    assert list(lines) == ["classifier", "order", "all", "chance", "fewer tokens"]
    assert list(lines["order"]) == [0.5, 0.0] and list(lines["all"]) == pytest.approx([2 / 3, 1 / 3])
