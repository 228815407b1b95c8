"""Masks that a model of masked language modelling fills."""

import pytest
import torch
from tiny import EOT, MARK, PAD, tiny_model, tiny_tokenizer

from minigpt.common.errors import UserError
from minigpt.inference.masks import MaskFiller, filled_line


@pytest.fixture
def filler():
    return MaskFiller(tiny_model(causal=False), tiny_tokenizer())


@pytest.mark.numeric
@pytest.mark.parametrize("text", ["a[MASK]的", "a##的", "[MASK]b[MASK]"])
def test_each_mask_gets_the_likeliest_token_of_the_text_around_it(filler, text):
    tokenizer, ids = filler.tokenizer, []
    for i, part in enumerate(text.replace("[MASK]", "##").split("##")):
        ids += [MARK] * (i > 0) + tokenizer.encode(part)
    with torch.no_grad():
        logits = filler.model(torch.tensor([[*ids, EOT]]))[0, :, : tokenizer.n_vocab]
    logits[:, [EOT, PAD, MARK]] = -torch.inf
    best = [logits[i].softmax(0).max(0) for i, token_id in enumerate(ids) if token_id == MARK]
    filled = filler.fill(text)
    assert [p for _, p in filled.tokens] == pytest.approx([p.item() for p, _ in best], abs=1e-5)
    chosen = iter([token_id.item() for _, token_id in best])
    assert filled.text == tokenizer.decode([next(chosen) if token_id == MARK else token_id for token_id in ids])
    assert filled_line(filled).startswith(filled.text)


@pytest.mark.parametrize(("text", "message"), [("abc", r"write \[MASK\]"), ("[MASK]" + "a" * 40, "does not fit")])
def test_a_text_without_a_mask_or_too_long_is_refused(filler, text, message):
    with pytest.raises(UserError, match=message):
        filler.fill(text)
