"""Likelihoods of the words of a task's labels behind prompts, under a causal or a masked language model."""

import numpy as np
import torch
from torch.nn import functional as F

from data_utils import pad_ids
from minigpt.inference.likelihood import starting_batch_tokens
from model import MAX_LOGIT_ROWS, RowsPass


class LabelsPass(RowsPass):
    """Causal attention over rows of a prompt and, behind it, several labels, which do not attend to each other.

    A label's token j has the position behind the prompt's last token and the j tokens before it, as if the label stood
    there alone. So one pass over a prompt serves all labels.
    """

    def __init__(self, idx, lengths, labels, depths, virtual=None):
        """idx (B, P + L): prompts, padded on the right to P tokens, and the L tokens of the labels.

        lengths (B,): of the prompts. labels, depths (L,): the number of each token's label, and its place there.
        """
        super().__init__(idx, virtual)
        width, device = idx.shape[1] - len(labels), idx.device
        prompt = torch.arange(width, device=device)
        own = (labels[:, None] == labels) & (depths[:, None] >= depths)
        mask = torch.zeros(len(idx), idx.shape[1], idx.shape[1], dtype=torch.bool, device=device)
        mask[:, :width, :width] = prompt[:, None] >= prompt
        mask[:, width:, :width] = (prompt < lengths[:, None])[:, None]
        mask[:, width:, width:] = own
        self.mask = F.pad(mask, (self.n, 0), value=True)[:, None]
        self.at = self.n + torch.cat([prompt.expand(len(idx), -1), lengths[:, None] + depths], dim=1)

    def positions(self, idx):
        """Positions of idx (B, P + L), as (B, P + L)."""
        return self.at


def prompt_room(model, labels):
    """Most tokens of a prompt behind which each of `labels` (lists of ids), and an EOT, fits into the block."""
    return model.row_positions - max(map(len, labels)) - 1


@torch.no_grad()
def label_logprobs(model, prompts, labels, tokenizer, progress=None):
    """Log likelihoods in nats, float64 (number of prompts, number of labels), of labels behind prompts (lists of ids).

    A causal model: log p(label | prompt), the sum over the label's tokens. A masked one (`config.causal` False): behind
    the prompt stand as many masks as the label has tokens, and an EOT; the sum over the masks. Labels of equal length
    share these passes. Each prompt must fit `prompt_room`. progress(n): n more prompts are done.
    """
    found = np.zeros((len(prompts), len(labels)))
    measure = causal_logprobs if model.config.causal else masked_logprobs
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # little padding
    extra = sum(len(ids) - 1 for ids in labels) if model.config.causal else max(map(len, labels)) + 1
    while order:
        width = min(len(prompts[order[0]]) + extra, model.row_positions)
        batch = order[: max(1, starting_batch_tokens(model) // width)]
        found[batch] = measure(model, [prompts[i] for i in batch], labels, tokenizer).double().cpu().numpy()
        order = order[len(batch) :]
        if progress:
            progress(len(batch))
    return found


def causal_logprobs(model, prompts, labels, tokenizer):
    """(B, number of labels) as `label_logprobs` has them, of a batch."""
    room = model.row_positions - max(map(len, prompts))
    groups, used = [[]], 0
    for ids in labels:
        used += len(ids) - 1
        if used > room and groups[-1]:
            groups.append([])
            used = len(ids) - 1
        groups[-1].append(ids)
    return torch.cat([causal_group(model, prompts, group, tokenizer.pad_id) for group in groups], dim=1)


def causal_group(model, prompts, labels, pad_id):
    """(B, number of labels) of labels that fit behind the prompts together, in one pass."""
    device = model.wte.weight.device
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    inputs = [(label, depth, token) for label, ids in enumerate(labels) for depth, token in enumerate(ids[:-1])]
    branch = torch.tensor(inputs, dtype=torch.long, device=device).view(-1, 3)
    width = max(map(len, prompts))
    rows = pad_ids(prompts)
    idx = torch.cat([rows.to(device), branch[:, 2].expand(len(rows), -1)], dim=1)
    virtual = None if model.virtual is None else model.virtual(model)
    states = model.hidden(idx, LabelsPass(idx, lengths, branch[:, 0], branch[:, 1], virtual))

    # The prompt's last token predicts the first token of each label, a label's token the next one of it.
    last = states[torch.arange(len(rows), device=device), lengths - 1]
    firsts = torch.tensor([ids[0] for ids in labels], device=device).expand(len(rows), -1)
    found = candidate_logprobs(model, last, firsts)
    if len(inputs):
        nexts = torch.tensor([token for ids in labels for token in ids[1:]], device=device)
        targets = nexts.expand(len(rows), -1).reshape(-1, 1)
        rest = candidate_logprobs(model, states[:, width:].flatten(0, 1), targets).view(len(rows), -1)
        found.index_add_(1, branch[:, 0], rest)
    return found


def masked_logprobs(model, prompts, labels, tokenizer):
    """(B, number of labels) as `label_logprobs` has them, of a batch: one pass for each length of a label."""
    device = model.wte.weight.device
    found = torch.zeros(len(prompts), len(labels), device=device)
    for length in {len(ids) for ids in labels}:
        rows = [[*ids, *[tokenizer.answer_id] * length, tokenizer.eot_id] for ids in prompts]
        idx = pad_ids(rows)
        starts = torch.tensor([len(ids) for ids in prompts], device=device)
        places = starts[:, None] + torch.arange(length, device=device)
        states = model.hidden(idx.to(device))[torch.arange(len(rows), device=device)[:, None], places]
        mine = [i for i, ids in enumerate(labels) if len(ids) == length]
        targets = torch.tensor([labels[i] for i in mine], device=device).T  # (length, labels of this length)
        each = candidate_logprobs(model, states.flatten(0, 1), targets.repeat(len(rows), 1))
        found[:, mine] = each.view(len(rows), length, -1).sum(dim=1)
    return found


def candidate_logprobs(model, states, targets):
    """Log probabilities (N, k) of targets (N, k) from states (N, C). As in `GPT.token_losses`, only MAX_LOGIT_ROWS
    states have logits at a time."""
    parts = zip(states.split(MAX_LOGIT_ROWS), targets.split(MAX_LOGIT_ROWS), strict=True)
    return torch.cat([model.lm_head(s).log_softmax(dim=1, dtype=torch.float32).gather(1, t) for s, t in parts])
