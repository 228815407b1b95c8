"""Models of masked language modelling in use: they fill the masked tokens of a text."""

import re
from typing import NamedTuple

import torch

from minigpt.common.errors import UserError
from minigpt.inference.engine import open_converted
from minigpt.tokenizer import ANSWER_TEXT

MASK = "[MASK]"
MASK_PATTERN = re.compile(rf"{re.escape(MASK)}|{re.escape(ANSWER_TEXT)}")  # the mask's id is that of the answer mark


class FilledText(NamedTuple):
    """text: with all masks filled; tokens: [(text of the likeliest token, its probability)] of each mask."""

    text: str
    tokens: list


class MaskFiller:
    """A GPT of stage "mlm" and its tokenizer. about: as `TextGenerator.about`."""

    stage = "mlm"
    about = ""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def fill(self, text):
        """The `FilledText` of a text, in which each [MASK] (or ##) stands for one token.

        All masks are filled at once, each as if the others stayed. Raises UserError where there is none, or where the
        text does not fit into the model's block.
        """
        tokenizer, first, *rest = self.tokenizer, *MASK_PATTERN.split(text)
        if not rest:
            raise UserError(f"this model finds masked tokens: write {MASK} where one is to be found")
        ids = tokenizer.encode(first)
        for part in rest:
            ids += [tokenizer.answer_id, *tokenizer.encode(part)]
        return self.fill_ids(ids)

    @torch.no_grad()
    def fill_ids(self, ids):
        """As `fill`, of the ids of a text, in which the mask is the answer mark's id."""
        tokenizer, block_size = self.tokenizer, self.model.config.block_size
        ids = [*ids, tokenizer.eot_id]
        if len(ids) > block_size:
            raise UserError(f"a text of {len(ids)} tokens does not fit into the model's {block_size}; shorten it")
        places = [i for i, token_id in enumerate(ids) if token_id == tokenizer.answer_id]
        idx = torch.tensor([ids], device=self.model.wte.weight.device)
        logits = self.model(idx)[0, places, : tokenizer.n_vocab].float()
        logits[:, [tokenizer.eot_id, tokenizer.pad_id, tokenizer.answer_id]] = -torch.inf  # none of them is text
        best = logits.softmax(dim=-1).max(dim=-1)
        for place, token_id in zip(places, best.indices.tolist(), strict=True):
            ids[place] = token_id
        tokens = [(tokenizer.decode([ids[place]]), p) for place, p in zip(places, best.values.tolist(), strict=True)]
        return FilledText(tokenizer.decode(ids), tokens)


def filled_line(filled):
    """A `FilledText` in one line: the text, and its new tokens with their probabilities."""
    return f"{filled.text}  ({', '.join(f'{text} {p:.3f}' for text, p in filled.tokens)})"


def open_mask_filler(ckpt, settings):
    """(path, checkpoint's dict, `MaskFiller`) of a checkpoint of stage "mlm"; arguments as of `open_generator`."""
    path, content, model, tokenizer, about = open_converted(ckpt, settings)
    filler = MaskFiller(model, tokenizer)
    filler.about = about
    return path, content, filler
