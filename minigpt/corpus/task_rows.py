"""Rows of labelled texts: the token ids that a model with a task's head reads, and where its labels stand.

A row has two lines of `block_size` numbers:
    tokens   `text EOT PAD …`, of a pair `text_a EOT text_b EOT PAD …`
    labels   0 where there is none, else 1 + index of the label
The label of a text or a pair stands at the last EOT, the first token that a causal model reads the whole row before.
Of a tagged text each character is encoded by itself, and its label stands at its last token.
"""

import numpy as np

from minigpt.huggingface_tokenizer import id_type


def encode_texts(tokenizer, block_size, text, text_b=None):
    """(ids of a text or a pair with their EOTs, at most block_size; number of tokens that were left out).

    A text that is too long loses its middle: both its beginning and its end tell much (Sun et al. 2019, "How to
    Fine-Tune BERT for Text Classification?"). Each text of a pair has at least half of the room; what one does not
    need, the other has.
    """
    parts = [tokenizer.encode(part) for part in ([text] if text_b is None else [text, text_b])]
    room = block_size - len(parts)
    ids, left_out = [], 0
    for i, part in enumerate(parts):
        others = sum(len(other) for k, other in enumerate(parts) if k != i)
        kept = cut_middle(part, max(room // len(parts), room - others))
        left_out += len(part) - len(kept)
        ids += [*kept, tokenizer.eot_id]
    return ids, left_out


def cut_middle(ids, length):
    """A list of ids without its middle, where it is longer than `length`."""
    head = -(-length // 2)
    return ids if len(ids) <= length else ids[:head] + ids[len(ids) - (length - head) :]


def encode_characters(tokenizer, block_size, text):
    """(ids of a text's characters, each encoded by itself, and EOT; index of each character's last token).

    A text that is too long loses its end: there are fewer indices than characters then.
    """
    ids_of = {character: tokenizer.encode(character) for character in set(text)}
    ids, ends = [], []
    for character in text:
        if len(ids) + len(ids_of[character]) >= block_size:
            break
        ids += ids_of[character]
        ends.append(len(ids) - 1)
    return [*ids, tokenizer.eot_id], ends


def make_task_row(tokenizer, block_size, example, indices):
    """(row, (2, block_size), of type `id_type`; characters in it) of a `LabelledExample`.

    indices: {name of a label: its index}.
    """
    row = np.zeros((2, block_size), dtype=id_type(tokenizer))
    row[0] = tokenizer.pad_id
    if example.tags is not None:
        ids, ends = encode_characters(tokenizer, block_size, example.text)
        row[1, ends] = [1 + indices[tag] for tag in example.tags[: len(ends)]]
        n_chars = len(ends)
    else:
        ids, left_out = encode_texts(tokenizer, block_size, example.text, example.text_b)
        row[1, len(ids) - 1] = 1 + indices[example.label]
        n_chars = len(tokenizer.decode(ids)) if left_out else example.n_chars
    row[0, : len(ids)] = ids
    return row, n_chars
