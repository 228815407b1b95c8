"""Log probabilities of tokens under the model itself: over the whole vocabulary of its output layer, and before
penalties, temperature and the selection of candidates."""

from dataclasses import dataclass

import torch

from minigpt.device import to_device
from minigpt.tokenizer import StreamDecoder
from model import MAX_LOGIT_ROWS


@dataclass
class TokenLogprob:
    """A token of a prompt or of an answer.

    logprob: in nats; None for a prompt's first token, which has no distribution. top: the most likely tokens at its
    place, [(id, logprob)], the likeliest first. start: number of characters of the text that are complete before it.
    """

    token_id: int
    logprob: float | None
    top: list
    start: int


def pick_logprobs(logits, ids, counts, n_vocab):
    """[(logprob, top)] of n tokens, as in `TokenLogprob`.

    logits (n, V): before any change; ids: the n tokens; counts: how many alternatives each gets, of the ids below
    n_vocab.
    """
    log_p = logits.log_softmax(dim=1, dtype=torch.float32)
    chosen = log_p.gather(1, to_device(ids, log_p.device)[:, None])
    values, top = log_p[:, :n_vocab].topk(min(max(counts), n_vocab), dim=1)
    # All is read at once, since a GPU is waited for at each reading. Ids below 2**24 are exact in float32.
    picked, n = torch.cat((chosen, values, top.float()), dim=1).tolist(), values.shape[1]
    return [
        (row[0], [(int(token_id), logprob) for token_id, logprob in zip(row[1 + n :], row[1:], strict=False)][:count])
        for row, count in zip(picked, counts, strict=True)
    ]


def prompt_logprobs(model, states, ids, count, tokenizer):
    """The `TokenLogprob`s of a prompt (a list of ids), each with `count` alternatives.

    states (len(ids), C): before the output layer. As in `GPT.token_losses`, only MAX_LOGIT_ROWS positions have logits
    at a time.
    """
    picked = [(None, [])]
    for first in range(0, len(ids) - 1, MAX_LOGIT_ROWS):
        targets = ids[1:][first : first + MAX_LOGIT_ROWS]
        logits = model.lm_head(states[first : first + len(targets)])
        picked += pick_logprobs(logits, targets, [count] * len(targets), tokenizer.n_vocab)
    tokens, decoder, start = [], StreamDecoder(tokenizer), 0
    for token_id, pair in zip(ids, picked, strict=True):
        tokens.append(TokenLogprob(token_id, *pair, start))
        start += len(decoder.feed(token_id))
    return tokens
