"""Likelihoods of labels behind prompts, held against one row at a time."""

import pytest
import torch
from tiny import EOT, MARK, random_ids, tiny_model, tiny_tokenizer

from minigpt.inference.label_likelihood import label_logprobs, prompt_room
from model import VirtualTokens

pytestmark = pytest.mark.numeric

PROMPTS = [random_ids(n, seed=n).tolist() for n in (3, 9, 20, 1, 9)]
LABELS = [random_ids(n, seed=50 + n).tolist() for n in (1, 2, 1, 3, 6)]


class FixedVirtualTokens(torch.nn.Module):
    """Two virtual tokens before each row, with keys and values of noise."""

    embeddings = (0, 0)  # as many as there are tokens

    def forward(self, model):
        generator = torch.Generator().manual_seed(3)
        shape = model.config.n_kv_head, len(self.embeddings), model.config.head_dim
        noise = [torch.randn(shape, generator=generator) for _ in range(2 * model.config.n_layer)]
        return VirtualTokens(noise[::2], noise[1::2])


def plain_logprob(model, prompt, label):
    """log p(label | prompt) by the losses of a row that has them alone."""
    row = torch.tensor([prompt + label])
    mask = torch.zeros(1, row.shape[1] - 1, dtype=torch.bool)
    mask[0, len(prompt) - 1 :] = True
    return -model.token_losses(row[:, :-1], row[:, 1:], mask).sum().item()


@torch.no_grad()
def plain_masked_logprob(model, prompt, label):
    """The sum over the masks behind a prompt, in a row of their own."""
    log_p = model(torch.tensor([[*prompt, *[MARK] * len(label), EOT]]))[0].log_softmax(dim=-1)
    return sum(log_p[len(prompt) + i, token].item() for i, token in enumerate(label))


@pytest.mark.parametrize("case", ["causal", "virtual tokens", "masked"])
@pytest.mark.parametrize("block_size", [40, 27])  # behind the longest prompt all labels fit together, or not
def test_likelihoods_of_a_batch_are_those_of_one_row_for_each_label(architecture, case, block_size):
    model = tiny_model(architecture=architecture, block_size=block_size)
    model.config.causal = case != "masked"
    if case == "virtual tokens":
        model.virtual = FixedVirtualTokens()
    prompts = [prompt for prompt in PROMPTS if len(prompt) <= prompt_room(model, LABELS)]
    assert len(prompts) >= 4
    done = []
    found = label_logprobs(model, prompts, LABELS, tiny_tokenizer(), done.append)
    plain = plain_masked_logprob if case == "masked" else plain_logprob
    expected = [[plain(model, prompt, label) for label in LABELS] for prompt in prompts]
    assert found.tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
    assert sum(done) == len(prompts)


def test_labels_of_one_token_take_one_pass_over_the_prompts_alone(monkeypatch):
    model, widths = tiny_model(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda idx, *more: widths.append(idx.shape) or hidden(idx, *more))
    label_logprobs(model, PROMPTS, [[1], [2], [3]], tiny_tokenizer())
    assert widths == [(len(PROMPTS), max(map(len, PROMPTS)))]
