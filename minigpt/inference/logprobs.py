"""Log probabilities of tokens under the model itself: over the whole vocabulary of its output layer, and before
penalties, temperature and the selection of candidates."""

from dataclasses import dataclass

import torch

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
    chosen = log_p.gather(1, torch.tensor(ids, device=log_p.device)[:, None]).squeeze(1).tolist()
    values, top = (part.tolist() for part in log_p[:, :n_vocab].topk(min(max(counts), n_vocab), dim=1))
    return [
        (logprob, list(zip(top[i][:count], values[i][:count], strict=True)))
        for i, (logprob, count) in enumerate(zip(chosen, counts, strict=True))
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
