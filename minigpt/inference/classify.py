"""Models with a task's head in use: labels of texts and of pairs of texts, tags of characters, with probabilities."""

import threading
from typing import NamedTuple

import numpy as np
import torch

from data_utils import fill_batches, pad_ids
from minigpt.checkpoint import load_checkpoint, newest_checkpoint, stage_of
from minigpt.common.errors import UserError
from minigpt.corpus.task_rows import encode_characters, encode_texts
from minigpt.corpus.tasks import CLASSIFY, PAIR, TAG
from minigpt.inference.engine import open_converted, open_generator, open_generators
from minigpt.inference.likelihood import starting_batch_tokens
from minigpt.metrics import find_entities
from minigpt.tokenizer import ANSWER_TEXT

OUTSIDE = "O"  # the tag of characters that are part of no entity
WORK_OF_KIND = {CLASSIFY: "labels one text", PAIR: "labels two texts together", TAG: "tags the characters of a text"}


class Classified(NamedTuple):
    """label: the likeliest; probabilities: {label: 0 to 1} of all labels; tokens: how many the model has read.

    cut: whether the text was too long.
    """

    label: str
    probabilities: dict
    tokens: int
    cut: bool


class Tagged(NamedTuple):
    """tags, probabilities: of each character; entities: [{"type", "start", "end", "text"}], end exclusive.

    tokens: how many the model has read. cut: whether the text was too long. The characters at its end then have the tag
    O and the probability None.
    """

    tags: list
    probabilities: list
    entities: list
    tokens: int
    cut: bool


class HeadModel:
    """A GPT with a task's head, its tokenizer, and the task: {"kind", "labels": [names]}.

    Threads may call it at the same time: the model runs for one after the other. about: as `TextGenerator.about`.
    """

    stage = "task"
    about = ""

    def __init__(self, model, tokenizer, task):
        self.model, self.tokenizer = model, tokenizer
        self.kind, self.labels = task["kind"], task["labels"]
        self.block_size = model.row_positions  # tokens of a text, EOT included
        self._lock, self._callers = threading.Lock(), set()

    @property
    def running(self):
        """Number of callers whose texts the model computes now: 0 or 1."""
        return min(1, len(self._callers))

    @property
    def waiting(self):
        """Number of callers that wait for the model."""
        return max(0, len(self._callers) - 1)

    @torch.no_grad()
    def outputs(self, rows, progress=None):
        """[(len(places), labels) float32 tensor on the CPU]: the head's outputs for rows [(ids, places of the tokens
        that have a label)]. progress(n): n more are done."""
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")  # rows of like lengths share a batch, so there is little padding
        found, caller = [None] * len(rows), threading.get_ident()
        self._callers.add(caller)
        try:
            for part in fill_batches(lengths[order], 0, starting_batch_tokens(self.model)):
                batch = order[part]
                with self._lock:
                    computed = self._batch_outputs([rows[i] for i in batch])
                for i, output in zip(batch, computed, strict=True):
                    found[i] = output
                if progress:
                    progress(len(batch))
        finally:
            self._callers.discard(caller)
        return found

    def _batch_outputs(self, rows):
        """As `outputs`, by one forward pass."""
        idx = pad_ids([ids for ids, _ in rows])
        outputs = self.model(idx.to(self.model.wte.weight.device)).float().cpu()
        return [row[places] for row, (_, places) in zip(outputs, rows, strict=True)]

    def close(self, grace=0.0):
        """Nothing: requests run in the threads of their callers. (The server closes all its models.)"""


class Classifier(HeadModel):
    """A `HeadModel` that labels one text ("classify"), two together ("pair"), or the characters of a text ("tag")."""

    def classify(self, texts, progress=None):
        """[`Classified`] of texts, or of pairs (text_a, text_b). progress(n): n more are done.

        Raises UserError for a model of another kind of task.
        """
        pairs = [not isinstance(text, str) for text in texts]
        if self.kind == TAG or any(is_pair != (self.kind == PAIR) for is_pair in pairs):
            raise UserError(f"this model {WORK_OF_KIND[self.kind]}")
        encoded = [encode_texts(self.tokenizer, self.block_size, *([t] if isinstance(t, str) else t)) for t in texts]
        found = self._probabilities([(ids, [len(ids) - 1]) for ids, _ in encoded], progress)
        results = []
        for (p,), (ids, left_out) in zip(found, encoded, strict=True):
            probabilities = dict(zip(self.labels, p.tolist(), strict=True))
            results.append(Classified(self.labels[p.argmax()], probabilities, len(ids), left_out > 0))
        return results

    def tag(self, texts, progress=None):
        """[`Tagged`] of texts. progress(n): n more are done. Raises UserError for a model of another kind of task."""
        if self.kind != TAG:
            raise UserError(f"this model {WORK_OF_KIND[self.kind]}")
        encoded = [encode_characters(self.tokenizer, self.block_size, text) for text in texts]
        results = []
        found = self._probabilities(encoded, progress)
        for text, (ids, _), p in zip(texts, encoded, found, strict=True):
            unread = len(text) - len(p)
            tags = [self.labels[i] for i in p.argmax(axis=1)] + [OUTSIDE] * unread
            entities = [
                {"type": kind, "start": start, "end": end, "text": text[start:end]}
                for kind, start, end in find_entities(tags)
            ]
            results.append(Tagged(tags, [*p.max(axis=1).tolist(), *[None] * unread], entities, len(ids), unread > 0))
        return results

    def _probabilities(self, rows, progress):
        """As `outputs`, as probabilities in arrays."""
        return [output.softmax(dim=-1).numpy() for output in self.outputs(rows, progress)]


def label_line(classifier, text):
    """The label of a text in one line with its probability, or its entities.

    Two texts are a pair, or one text with `##` between them. Raises UserError where the model labels two, and one is
    given.
    """
    if classifier.kind == TAG:
        (found,) = classifier.tag([text])
        line = "  ".join(f"{entity['type']}: {entity['text']}" for entity in found.entities) or "no entity"
    else:
        if classifier.kind == PAIR and isinstance(text, str):
            text = tuple(text.split(ANSWER_TEXT, 1))
            if len(text) < 2:
                raise UserError(f"this model {WORK_OF_KIND[PAIR]}: write them as text{ANSWER_TEXT}text")
        (found,) = classifier.classify([text])
        line = f"{found.label} ({found.probabilities[found.label]:.3f})"
    return line + (" (the text is too long for the model, and was cut)" if found.cut else "")


def find_stage(ckpt, out_root):
    """(path, its `stage_of`) of a checkpoint, without its weights; ckpt "": the newest under out_root. Raises
    UserError."""
    path = ckpt or newest_checkpoint(out_root)
    return path, stage_of(load_checkpoint(path, mmap=True))


def open_served(ckpts, settings):
    """Checkpoints for a server: what `open_classifier` returns for those with a task's head, else `open_generators`."""
    found = [find_stage(ckpt, settings.out_root) for ckpt in ckpts]
    generators = iter(open_generators([path for path, stage in found if stage != "task"], settings))
    return [open_classifier(path, settings) if stage == "task" else next(generators) for path, stage in found]


def open_labeller_or_generator(ckpt, settings):
    """(path, checkpoint's dict, model) of one checkpoint, as in `open_served`."""
    path, stage = find_stage(ckpt, settings.out_root)
    return open_classifier(path, settings) if stage == "task" else open_generator(path, settings)


def open_classifier(ckpt, settings, exact=False):
    """(path, checkpoint's dict, `Classifier`) of a checkpoint of stage "task"; arguments as of `open_converted`.

    Raises UserError where there is no such checkpoint, or for one without a task.
    """
    path, stage = find_stage(ckpt, settings.out_root)
    if stage != "task":
        raise UserError(f"{path} is of stage {stage} and has no task's head; train one on a task's rows")
    path, content, model, tokenizer, about = open_converted(path, settings, exact)
    classifier = Classifier(model, tokenizer, content["task"])
    classifier.about = f"{about}; {classifier.kind}, {len(classifier.labels)} labels"
    return path, content, classifier
