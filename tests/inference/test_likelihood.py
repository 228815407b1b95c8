"""Likelihood compared with plain loops and with values computed by hand."""

import math

import numpy as np
import pytest
import torch
from tiny import EOT, MARK, PAD, padded_rows, random_ids, tiny_meta, tiny_model, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.inference.likelihood import Likelihood, likelihood, likelihood_of_rows
from minigpt.tokenizer import load_tokenizer

pytestmark = pytest.mark.numeric


def plain_likelihood(model, lists, first_target):
    """(nats, tokens, nats without EOT) of lists of ids, one at a time. first_target(ids): index of the first target."""
    nats, tokens, text_nats = 0.0, 0, 0.0
    for ids in lists:
        log_probs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=-1)
        for t in range(first_target(ids), len(ids)):
            nat = -log_probs[t - 1, ids[t]].item()
            nats, tokens, text_nats = nats + nat, tokens + 1, text_nats + nat * (ids[t] != EOT)
    return nats, tokens, text_nats


def first_target_of(stage):
    return lambda ids: ids.index(MARK) + 1 if stage == "sft" else 1


def lists_of(stage):
    """Texts of different lengths with EOT; in stage sft, questions and answers."""
    lists = [random_ids(n, below=200, seed=n).tolist() for n in (5, 31, 12, 2, 20, 20, 8)]
    if stage == "sft":
        lists = [[*ids[: len(ids) // 2], MARK, *ids[len(ids) // 2 + 1 :]] for ids in lists]
    return [[*ids, EOT] for ids in lists]


@pytest.mark.parametrize("batch_size", [1, 3, 64, 0])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@torch.inference_mode()
def test_likelihood_equals_a_plain_loop_at_any_batch_size(stage, batch_size, architecture):
    model, lists, done = tiny_model(architecture=architecture), lists_of(stage), []
    expected = plain_likelihood(model, lists, first_target_of(stage))
    rows = padded_rows(lists, 32)
    figures = likelihood(model, rows, tiny_meta(stage), batch_size, tiny_tokenizer(), progress=done.append)
    assert (figures.nats, figures.tokens, figures.text_nats) == pytest.approx(expected, rel=1e-5)
    assert figures.loss == pytest.approx(expected[0] / expected[1], rel=1e-5)
    assert figures.perplexity == pytest.approx(math.exp(expected[0] / expected[1]), rel=1e-4)
    assert sum(done) == len(lists)
    one_by_one = likelihood(model, rows, tiny_meta(stage), 1, tiny_tokenizer())
    assert figures.characters == one_by_one.characters > 0


@pytest.mark.parametrize("batch_size", [1, 3, 64, 0])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_figures_of_each_row_are_in_the_order_of_the_rows(stage, batch_size):
    model, lists = tiny_model(), lists_of(stage)
    found = likelihood_of_rows(model, padded_rows(lists, 32), tiny_meta(stage), batch_size, tiny_tokenizer())
    for i, ids in enumerate(lists):
        with torch.no_grad():
            expected = plain_likelihood(model, [ids], first_target_of(stage))
        assert (found.nats[i], found.tokens[i], found.text_nats[i]) == pytest.approx(expected, rel=1e-5)
        alone = likelihood(model, padded_rows([ids], 32), tiny_meta(stage), 1, tiny_tokenizer())
        assert found.characters[i] == alone.characters
    assert found.total().nats == pytest.approx(found.nats.sum())


def test_processes_that_share_a_measurement_measure_every_row_once():
    model, rows, meta = tiny_model(), padded_rows(lists_of("pretrain"), 32), tiny_meta("pretrain")
    whole = likelihood_of_rows(model, rows, meta, 3)
    parts = [likelihood_of_rows(model, rows, meta, 3, rank=rank, count=4) for rank in range(4)]
    assert sum(part.nats for part in parts) == pytest.approx(whole.nats, rel=1e-5)
    assert (sum(part.tokens for part in parts) == whole.tokens).all()


def short_of_memory(most, kind=torch.OutOfMemoryError):
    """(a tiny model that runs out of memory for batches of over `most` tokens, a list of the shapes of its batches)."""
    model, sizes = tiny_model(), []
    plain = model.token_losses

    def token_losses(x, y, mask):
        sizes.append(tuple(x.shape))
        if x.numel() > most:
            raise kind("out of memory")
        return plain(x, y, mask)

    model.token_losses = token_losses
    return model, sizes


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_an_automatic_batch_size_is_halved_when_memory_runs_out(kind):
    lists, done = lists_of("pretrain") * 4, []
    rows, meta = padded_rows(lists, 32), tiny_meta("pretrain")
    model, sizes = short_of_memory(150, kind)
    found = likelihood_of_rows(model, rows, meta, 0, tiny_tokenizer(), progress=done.append)
    whole = likelihood_of_rows(tiny_model(), rows, meta, 4, tiny_tokenizer())
    assert found.nats == pytest.approx(whole.nats, rel=1e-5)
    assert (found.characters == whole.characters).all()
    refused = [shape for shape in sizes if shape[0] * shape[1] > 150]
    assert [rows for rows, _ in refused] == [28, 14, 7] and sizes[: len(refused)] == refused
    assert sum(rows for rows, _ in sizes[len(refused) :]) == sum(done) == 28  # no row is measured twice


def test_running_out_of_memory_for_one_row_or_a_given_batch_size_is_an_error():
    rows, meta = padded_rows(lists_of("pretrain"), 32), tiny_meta("pretrain")
    with pytest.raises(UserError, match="out of memory"):
        likelihood_of_rows(short_of_memory(16)[0], rows, meta, 0)
    with pytest.raises(UserError, match="batch_size"):
        likelihood_of_rows(short_of_memory(150)[0], rows, meta, 7)


def test_an_error_other_than_out_of_memory_is_not_changed():
    model, rows = tiny_model(), padded_rows(lists_of("pretrain"), 32)
    model.token_losses = lambda *batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        likelihood_of_rows(model, rows, tiny_meta("pretrain"), 0)


@torch.inference_mode()
def test_likelihood_without_eot_as_a_target_leaves_it_out():
    model, rows = tiny_model(), padded_rows(lists_of("pretrain"), 32)
    whole = likelihood(model, rows, tiny_meta("pretrain"), 4)
    without = likelihood(model, rows, tiny_meta("pretrain"), 4, train_on_eot=False)
    assert without.tokens == whole.tokens - len(rows)
    assert without.nats == pytest.approx(whole.text_nats, rel=1e-5)


def test_the_perplexity_of_a_uniform_model_is_its_vocab_size():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)  # all ids are equally likely
    text = "河a的b桥c"  # 1 + 1 + 1 + 1 + 3 + 1 tokens; the first has no loss
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
    assert characters("sft", [[*gpt2.encode("谁？"), gpt2.answer_id, *row]]) == len(text)  # of an answer, all


def test_padding_and_row_order_leave_the_figures_as_they_are(architecture):
    model, lists = tiny_model(architecture=architecture), lists_of("pretrain")
    narrow = likelihood(model, padded_rows(lists, 32), tiny_meta("pretrain"), 2, tiny_tokenizer())
    reverse = likelihood(model, padded_rows(lists[::-1], 33), tiny_meta("pretrain"), 5, tiny_tokenizer())
    assert (narrow.tokens, narrow.characters) == (reverse.tokens, reverse.characters)
    assert narrow.nats == pytest.approx(reverse.nats, rel=1e-5)
    assert (padded_rows(lists, 32) == PAD).any()
