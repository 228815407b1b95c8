"""Figures against figures worked out by hand or by plain loops."""

import math
import random

import numpy as np
import pytest
import torch
from tiny import EOT, MARK, PAD, padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer

from metrics import Likelihood, exact_match, likelihood, rouge_l, score_pairs
from tokenizer import load_tokenizer


def test_rouge_l_of_the_reports_pair():
    assert rouge_l("羊侃的字是公祖。", "羊侃的字是祖忻。") == (0.875, 0.875, 0.875)


def plain_lcs(a, b):
    """Length of the longest common subsequence, a row of the table at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        left_above = 0
        for j, y in enumerate(b, start=1):
            left_above, row[j] = row[j], left_above + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@pytest.mark.parametrize("alphabet", ["天地", "天地玄黄宇宙", "天地。！？”’“….?,ab1"])
def test_rouge_l_is_the_longest_common_subsequence_of_characters(alphabet):
    rng = random.Random(0)
    for _ in range(60):
        prediction, reference = ("".join(rng.choices(alphabet, k=rng.randint(1, 25))) for _ in range(2))
        common = plain_lcs(prediction, reference)
        expected = (common / len(reference), common / len(prediction), 2 * common / len(prediction + reference))
        assert rouge_l(prediction, reference) == pytest.approx(expected, abs=2e-6)


def test_rouge_l_names_recall_and_precision_rightly():
    assert rouge_l("天地玄黄", "天地") == pytest.approx((1.0, 0.5, 2 / 3), abs=2e-6)
    assert rouge_l("天地。", "地。天地玄。") == pytest.approx((0.5, 1.0, 2 / 3), abs=2e-6)


def test_rouge_l_leaves_spaces_out_and_counts_every_repetition():
    assert rouge_l(" 天 地\n", "天地") == (1.0, 1.0, 1.0)
    assert rouge_l("天天天天", "天")[:2] == (1.0, 0.25)


@pytest.mark.parametrize(("prediction", "reference"), [("", "天"), ("天", ""), ("", ""), (" \n", "天"), ("地", "天")])
def test_rouge_l_of_nothing_in_common_is_zero(prediction, reference):
    assert rouge_l(prediction, reference) == (0.0, 0.0, 0.0)


def test_exact_match_ignores_space_around_and_nothing_else():
    assert exact_match(" 东河。\n", "东河。")
    for other in ("东河", "东 河。", "东河。。", "", "東河。"):
        assert not exact_match(other, "东河。")


def test_scores_are_means_over_the_pairs():
    scores = score_pairs(["天地", "天地玄黄", "宇"], ["天地", "天地", "天"])
    assert scores.pop("pairs") == 3
    means = {"rouge_l_recall": 2 / 3, "rouge_l_precision": 0.5, "rouge_l_f": 5 / 9, "exact_match": 1 / 3}
    assert scores == pytest.approx(means, abs=2e-6)


def plain_likelihood(model, lists, first_target):
    """(nats, tokens, nats without EOT) of lists of ids, each alone; `first_target(ids)`: where its loss begins."""
    nats, tokens, text_nats = 0.0, 0, 0.0
    for ids in lists:
        log_probs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=-1)
        for t in range(first_target(ids), len(ids)):
            nat = -log_probs[t - 1, ids[t]].item()
            nats, tokens, text_nats = nats + nat, tokens + 1, text_nats + nat * (ids[t] != EOT)
    return nats, tokens, text_nats


def lists_of(stage):
    """Texts of unlike length, with EOT; questions and answers in stage sft."""
    lists = [random_ids(n, below=200, seed=n).tolist() for n in (5, 31, 12, 2, 20, 20, 8)]
    if stage == "sft":
        lists = [[*ids[: len(ids) // 2], MARK, *ids[len(ids) // 2 + 1 :]] for ids in lists]
    return [[*ids, EOT] for ids in lists]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@torch.inference_mode()
def test_likelihood_equals_a_plain_loop_at_any_batch_size(stage, batch_size):
    model, lists, done = tiny_model(), lists_of(stage), []
    expected = plain_likelihood(model, lists, lambda ids: ids.index(MARK) + 1 if stage == "sft" else 1)
    rows = padded_rows(lists, 32)
    figures = likelihood(model, rows, tiny_meta(stage), batch_size, tiny_tokenizer(), progress=done.append)
    assert (figures.nats, figures.tokens, figures.text_nats) == pytest.approx(expected, rel=1e-5)
    assert figures.loss == pytest.approx(expected[0] / expected[1], rel=1e-5)
    assert figures.perplexity == pytest.approx(math.exp(expected[0] / expected[1]), rel=1e-4)
    assert sum(done) == len(lists)
    one_by_one = likelihood(model, rows, tiny_meta(stage), 1, tiny_tokenizer())
    assert figures.characters == one_by_one.characters > 0


@torch.inference_mode()
def test_likelihood_without_eot_as_a_target_leaves_it_out():
    model, rows = tiny_model(), padded_rows(lists_of("pretrain"), 32)
    whole = likelihood(model, rows, tiny_meta("pretrain"), 4)
    without = likelihood(model, rows, tiny_meta("pretrain"), 4, train_on_eot=False)
    assert without.tokens == whole.tokens - len(rows)
    assert without.nats == pytest.approx(whole.text_nats, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)  # every id is as likely as another
    text = "河a的b桥c"  # 1 + 1 + 1 + 1 + 3 + 1 tokens, of which the first has no loss
    rows = padded_rows([[*tiny_tokenizer().encode(text), EOT]], 32)
    figures = likelihood(model, rows, tiny_meta("pretrain"), 1, tiny_tokenizer())
    assert figures.perplexity == pytest.approx(320, rel=1e-4)
    assert (figures.tokens, figures.characters) == (8, 5)
    assert figures.bits_per_char == pytest.approx(7 * math.log2(320) / 5, rel=1e-4)


def test_bits_per_char_is_nats_of_text_over_ln2_and_characters():
    figures = Likelihood(nats=99.0, tokens=3, text_nats=10 * math.log(2), characters=4)
    assert figures.bits_per_char == pytest.approx(2.5)


TEXTS = {
    "rare characters, each of several tokens": ("魑魅魍魉。", 5),
    "emoji and characters beyond the basic plane": ("😀𠮷氏。👍🏽", 6),
    "a first character of one token, which has no loss": ("A魑魅", 2),
    "Latin letters": ("hello 世界", 3),
    "one token alone": ("A", 0),
}


@pytest.mark.parametrize("name", TEXTS)
def test_characters_are_counted_where_gpt2s_tokens_are_parts_of_them(name):
    text, expected = TEXTS[name]
    gpt2 = load_tokenizer()
    special, ids = gpt2.special_ids(), gpt2.encode(text)
    model = tiny_model(vocab_size=50304)

    def characters(stage, rows):
        rows = np.array([[*r, *[gpt2.pad_id] * (32 - len(r))] for r in rows], dtype=np.uint16)
        return likelihood(model, rows, {"stage": stage, "special_ids": special}, 2, gpt2).characters

    row = [*ids, gpt2.eot_id]
    assert characters("pretrain", [row]) == expected
    assert characters("pretrain", [row, [*gpt2.encode("魑。"), gpt2.eot_id]]) == expected + 2
    assert characters("sft", [[*gpt2.encode("谁？"), gpt2.answer_id, *row]]) == len(text)  # an answer's all count


def test_padding_and_row_order_leave_the_figures_as_they_are():
    model, lists = tiny_model(), lists_of("pretrain")
    narrow = likelihood(model, padded_rows(lists, 32), tiny_meta("pretrain"), 2, tiny_tokenizer())
    reverse = likelihood(model, padded_rows(lists[::-1], 33), tiny_meta("pretrain"), 5, tiny_tokenizer())
    assert (narrow.tokens, narrow.characters) == (reverse.tokens, reverse.characters)
    assert narrow.nats == pytest.approx(reverse.nats, rel=1e-5)
    assert (padded_rows(lists, 32) == PAD).any()
