"""Generation as a plain loop: one full forward pass per token, without cache or batch."""

import torch
from tiny import EOT, PAD, VOCAB, random_ids, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FORBIDDEN = [PAD, *range(263, VOCAB)]


@torch.inference_mode()
def plain_greedy(model, prompt, n_new, forbidden=FORBIDDEN, frequency=0.0, repetition=1.0):
    """The ids that continue a prompt, by greedy decoding: a pass over all ids for each new one."""
    ids = list(prompt)
    n_virtual = 0 if model.virtual is None else model.virtual(model).n
    for _ in range(n_new):
        if n_virtual + len(ids) == model.config.block_size:
            break
        logits = model(torch.tensor([ids]))[0, -1]
        for token in set(ids):
            logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
            logits[token] -= frequency * ids.count(token)
        logits[forbidden] = -torch.inf
        token = logits.argmax().item()
        if token == EOT:
            break
        ids.append(token)
    return ids[len(prompt) :]


def text_of(ids):
    return b"".join(map(TOKENIZER.token_bytes, ids)).decode("utf-8", errors="ignore")


def assert_steps_are_those_of_whole_passes(runner, model):
    """Sequences come and go while the cache grows: five rows, of which some leave, up to 27 positions."""
    rows = []
    for t in range(27):
        if t % 5 == 0 and t < 25:
            rows.append(random_ids(1 + t // 5, seed=t).tolist())
            runner.prefill(rows[-1:])
        if t in (7, 13):
            runner.drop(0, len(rows[-1]))
            rows[0] = rows.pop()
        ids = random_ids(len(rows), seed=100 + t).tolist()
        logits = runner.step(ids, [len(row) for row in rows])
        for row, token, found in zip(rows, ids, logits, strict=True):
            row.append(token)
            torch.testing.assert_close(found, model(torch.tensor([row]))[0, -1], atol=1e-5, rtol=0)
