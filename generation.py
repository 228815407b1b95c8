"""From prompts to streams of text: prefill once, then one token a step on a KV cache."""

from collections import Counter
from dataclasses import dataclass

import torch

from model import KVCache
from tokenizer import StreamDecoder


@dataclass
class SamplingParams:
    """temperature: 0 is greedy; top_k: 0 is all; frequency_penalty: taken off a token's logit for each
    time it stands in prompt or answer (OpenAI's, who count the answer only); seed: None is unseeded."""

    temperature: float = 0.1
    top_k: int = 20
    max_new_tokens: int = 225
    frequency_penalty: float = 0.0
    seed: int | None = None

    @classmethod
    def from_settings(cls, settings):
        """The parameters that the settings give."""
        names = ("temperature", "top_k", "max_new_tokens", "frequency_penalty", "seed")
        return cls(**{name: getattr(settings, name) for name in names})


def sample_token(logits, params, counts=None, generator=None):
    """Next ids (B,) from logits (B, V); counts (B, V): how often each token has stood so far."""
    logits = logits.float()
    if params.frequency_penalty and counts is not None:
        logits = logits - params.frequency_penalty * counts
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        top, ids = logits.topk(params.top_k)
        return ids.gather(1, torch.multinomial(top.softmax(dim=-1), 1, generator=generator)).squeeze(1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


@torch.inference_mode()
def generate_ids(model, prompts, params, eot_id, forbidden=()):
    """Yields a list of next ids for each step, one a prompt, None for a prompt that has ended.

    prompts: lists of ids, all of one length, none empty. A prompt ends at EOT (not yielded), after
    max_new_tokens, or at the end of the block. `forbidden` ids (PAD and the unused rest of the
    embedding) are never drawn.
    """
    block_size, device = model.config.block_size, model.wte.weight.device
    idx = torch.tensor(prompts, device=device)
    n_new = min(params.max_new_tokens, block_size - idx.shape[1])
    cache = KVCache(model.config, len(prompts), idx.shape[1] + max(0, n_new), device, model.wte.weight.dtype)
    generator = None
    if params.seed is not None:
        generator = torch.Generator(device=device).manual_seed(params.seed)
    counts = None
    if params.frequency_penalty:
        counts = torch.zeros(len(prompts), model.config.vocab_size, device=device)
        counts.scatter_add_(1, idx, torch.ones_like(idx, dtype=counts.dtype))
    forbidden = torch.tensor(list(forbidden), dtype=torch.long, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(n_new):
        logits = model(idx, cache)[:, -1]
        logits[:, forbidden] = -torch.inf
        ids = sample_token(logits, params, counts, generator)
        alive &= ids != eot_id
        if not alive.any():
            return
        yield [i if a else None for i, a in zip(ids.tolist(), alive.tolist(), strict=True)]
        idx = ids[:, None]
        if counts is not None:
            counts.scatter_add_(1, idx, torch.ones_like(idx, dtype=counts.dtype))


class TextGenerator:
    """A model and its tokenizer, from text to text.

    stage "sft": a prompt is a question, the answer mark is put behind it, and the answer comes back.
    stage "pretrain": a prompt is continued.
    """

    def __init__(self, model, tokenizer, stage):
        self.model, self.tokenizer, self.stage = model, tokenizer, stage
        self.forbidden = [tokenizer.pad_id, *range(tokenizer.n_vocab, model.config.vocab_size)]
        if stage == "sft":  # an answer has no second mark
            self.forbidden.append(tokenizer.answer_id)

    def prompt_ids(self, prompt):
        """(ids of a prompt, whether its start was cut off): one longer than the block keeps its end, with
        room for as many tokens again as a quarter of the block."""
        ids = self.tokenizer.encode_prompt(prompt, answer=self.stage == "sft") or [self.tokenizer.eot_id]
        room = self.model.config.block_size * 3 // 4
        return ids[-room:], len(ids) > room

    def stream(self, prompt, params):
        """Yields pieces of text as they are made; whole characters only."""
        decoder = StreamDecoder(self.tokenizer)
        ids, _ = self.prompt_ids(prompt)
        for (token_id,) in generate_ids(self.model, [ids], params, self.tokenizer.eot_id, self.forbidden):
            if text := decoder.feed(token_id):
                yield text

    def generate(self, prompts, params, batch_size=64, progress=None):
        """List of texts, one a prompt, in their order. Prompts of equal token length share a batch.

        progress(n): called when n more prompts are done.
        """
        encoded = [self.prompt_ids(p)[0] for p in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        lengths = Counter(len(ids) for ids in encoded)
        texts, start = [""] * len(prompts), 0
        for length in sorted(lengths):
            group = by_length[start : start + lengths[length]]
            start += lengths[length]
            for first in range(0, len(group), batch_size):
                batch = group[first : first + batch_size]
                rows = [[] for _ in batch]
                steps = generate_ids(
                    self.model, [encoded[i] for i in batch], params, self.tokenizer.eot_id, self.forbidden
                )
                for step in steps:
                    for row, token_id in zip(rows, step, strict=True):
                        if token_id is not None:
                            row.append(token_id)
                for i, row in zip(batch, rows, strict=True):
                    texts[i] = self.tokenizer.decode(row)
                if progress:
                    progress(len(batch))
        return texts
