"""A model and a tokenizer small enough to check against plain loops."""

import numpy as np
import torch

from minigpt.corpus.row_files import RowWriter
from minigpt.inference.classify import Classifier
from minigpt.tokenizer import Tokenizer, format_vocabulary
from model import GPT, GPTConfig

torch.set_num_threads(1)  # more threads only slow down models of this size

EOT, PAD, MARK = 260, 261, 262  # special ids of the tiny tokenizer
VOCAB = 320  # vocab_size of the tiny model: larger than the tokenizer's 263 ids, as with a padded embedding

# Fields of GPTConfig, which are settings too, by architecture. The qwen3 has everything that gpt2 has not.
ARCHITECTURE_FIELDS = {"gpt2": {}, "qwen3": {"architecture": "qwen3", "n_head": 4, "n_kv_head": 2, "tied": False}}


def tiny_tokenizer(name="tiny.tiktoken"):
    """A tokenizer of the 256 bytes, 的 and 河. Every other Chinese character takes three tokens."""
    ranks = {bytes([b]): b for b in range(256)}
    for rank, token in enumerate(("的".encode()[:2], "的".encode(), "河".encode()[:2], "河".encode()), start=256):
        ranks[token] = rank
    return Tokenizer(name, format_vocabulary(ranks, {"eot": EOT, "pad": PAD, "answer": MARK}, r"\p{Han}+|\P{Han}+"))


def tiny_model(seed=0, vocab_size=VOCAB, block_size=32, bias=False, dropout=0.0, architecture="gpt2", **more):
    """A GPT of 2 layers and width 32 in eval mode. Its weights are so large that every part affects the logits.

    more: further fields of GPTConfig.
    """
    torch.manual_seed(seed)
    fields = ARCHITECTURE_FIELDS.get(architecture, {"architecture": architecture})
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, **fields, **more}
    model = GPT(GPTConfig(block_size, vocab_size, **shape, dropout=dropout, bias=bias))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.2)
    return model.eval()


TAGS = ["B-人", "I-人", "B-地", "O"]


def tiny_classifier(kind="classify", labels=("正", "反", "无"), **more):
    """A `Classifier` of a tiny model, whose labels depend on all of a text. more: arguments of `tiny_model`."""
    labels = TAGS if kind == "tag" else list(labels)
    model = tiny_model(n_labels=len(labels), **more)
    return Classifier(model, tiny_tokenizer(), {"kind": kind, "labels": labels})


def random_ids(*shape, below=256, seed=1):
    """Random ids of plain text, int64 tensor of shape `shape`."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def padded_rows(lists, block_size):
    """Lists of ids as rows, uint16 (len(lists), block_size), padded with PAD."""
    rows = np.full((len(lists), block_size), PAD, dtype=np.uint16)
    for row, ids in zip(rows, lists, strict=True):
        row[: len(ids)] = ids
    return rows


def tiny_meta(stage):
    """The fields that `make_batch` reads from meta.json, for the tiny tokenizer."""
    return {"stage": stage, "special_ids": {"eot": EOT, "pad": PAD, "answer": MARK}}


def write_rows(folder, parts, block_size=16, stage="pretrain", tokenizer=None):
    """Write {part: [ids, …]} as row files, as data/prepare.py does; returns the content of meta.json."""
    with RowWriter(folder, list(parts), block_size, tokenizer or tiny_tokenizer()) as writer:
        for part, rows in parts.items():
            for ids in rows:
                writer.add(part, ids, n_chars=len(ids))
        return writer.finish({"stage": stage})


def confident_model(architecture, tied=True, **shape):
    """A GPT in eval mode whose likeliest tokens stand out, and are printable ASCII: text, whole characters."""
    torch.manual_seed(0)
    shape = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 64, **shape}
    model = GPT(GPTConfig(vocab_size=VOCAB, architecture=architecture, tied=tied, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 1.6 * model.config.n_embd**-0.5)
        model.lm_head.weight[:32] *= 0.3
        model.lm_head.weight[127:PAD] *= 0.3
        model.lm_head.weight[PAD:] = 0.0  # their logits are 0, which is never the largest
    return model.eval()
