"""Tasks told in words: the instruction, the form of an example and of its answer, and prompts with examples in context.

The wordings are in task_prompts.toml. The answer to a text or a pair is the word of its label. The answer to a tagged
text lists its entities in order, `类型：文字；类型：文字`, or is 无.
"""

import random
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.corpus.task_rows import cut_middle
from minigpt.corpus.tasks import TAG
from minigpt.inference.classify import OUTSIDE
from minigpt.metrics import find_entities

TASK_WORDINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NO_ENTITY = "无"
UNNAMED_TYPE = "名称"  # the word of the type of the tags B and I, which name none
ENTITY_END = re.compile(r"[；;\n]")
TYPE_END = re.compile(r"[：:]")


@dataclass(frozen=True)
class WordedTask:
    """A task as it is told in words.

    kind: of minigpt/corpus/tasks.py. words: {label: word}; of a tagging task, {type of the tags: word}.
    instructions: wordings of what is asked; question, cue: as in task_prompts.toml.
    """

    kind: str
    words: dict
    instructions: list
    question: str
    cue: str

    def ask(self, example):
        """The question about an example, without the instruction."""
        return self.question.format(text=example.text, text_b=example.text_b)

    def answer(self, example):
        """The right answer to an example."""
        if self.kind != TAG:
            return self.words[example.label]
        entities = find_entities(example.tags)
        return "；".join(f"{self.words[kind]}：{example.text[a:b]}" for kind, a, b in entities) or NO_ENTITY

    def parse(self, answer, example):
        """The label that an answer names, None if it names none; of a tagged text, the tags of its characters."""
        if self.kind == TAG:
            return self.parse_entities(answer, example.text)
        # Where several words stand in the answer: the first of them, and the longest that begins there.
        found = [(answer.find(word), -len(word), label) for label, word in self.words.items() if word in answer]
        return min(found)[2] if found else None

    def parse_entities(self, answer, text):
        """The tags of a text's characters. Each entity of the answer is sought behind the one before it in the answer,
        else from the text's beginning; what is not in the text, or overlaps another entity, is left out."""
        types = {word: kind for kind, word in self.words.items()}
        tags, end = [OUTSIDE] * len(text), 0
        for part in ENTITY_END.split(answer):
            word, *entity = TYPE_END.split(part.strip(), maxsplit=1)
            entity = entity[0].strip() if entity else ""
            if not entity or word.strip() not in types:
                continue
            kind = types[word.strip()]
            start = text.find(entity, end)
            start = text.find(entity) if start < 0 else start
            stop = start + len(entity)
            if start < 0 or set(tags[start:stop]) != {OUTSIDE}:
                continue
            suffix = f"-{kind}" if kind else ""
            tags[start:stop] = ["B" + suffix] + ["I" + suffix] * (len(entity) - 1)
            end = stop
        return tags


def parse_label_words(settings):
    """{label: word} of the setting `label_words`, whose items are `label:word`. Raises UserError."""
    words = {}
    for item in settings:
        label, colon, word = item.partition(":")
        if not (label.strip() and colon and word.strip()):
            raise UserError(f"label_words: {item!r} is not of the form label:word, such as 0:差评,1:好评")
        words[label.strip()] = word.strip()
    return words


def check_label_words(label_words, tasks):
    """Raise UserError unless each label of {label: word} is one of some of the `WordedTask`s."""
    known = [label for task in tasks for label in task.words]
    if unknown := sorted(set(label_words) - set(known)):
        raise UserError(f"label_words: {', '.join(unknown)} is no label; the labels are {', '.join(map(repr, known))}")


def task_name(folder):
    """The name of a task, by which its wordings are found: its data folder's, without "processed_"."""
    return Path(folder).name.removeprefix("processed_")


def word_task(name, kind, labels, label_words=None):
    """The `WordedTask` of a task. name: as `task_name` has it; labels: all labels; label_words: {label: word}.

    Words of other labels are left out. Raises UserError for two labels of one word.
    """
    wording = {**TASK_WORDINGS[kind], **TASK_WORDINGS.get(name, {})}
    types = sorted({label[2:] for label in labels if label != OUTSIDE}) if kind == TAG else labels
    words = {label: label or UNNAMED_TYPE for label in types} | wording.get("words", {}) | (label_words or {})
    words = {label: words[label] for label in types}
    if twice := [word for word, count in Counter(words.values()).items() if count > 1]:
        raise UserError(f"label_words: two labels of {name} have the word {twice[0]}; give each its own")
    listed = "、".join(words.values())
    instructions = [text.format(labels=listed) for text in wording["instructions"]]
    return WordedTask(kind, words, instructions, wording["question"], wording["cue"])


class TaskShots:
    """Draws examples in context from the training examples, balanced over the labels, by the seed.

    Of tagged texts, those with an entity and those without one count as two labels.
    """

    def __init__(self, training, seed):
        self.seed, self.groups = seed, {}
        for example in training:
            group = example.label if example.tags is None else set(example.tags) != {OUTSIDE}
            self.groups.setdefault(group, []).append(example)

    def draw(self, example, count):
        """`count` training examples for an example, always the same; none has its texts. Raises UserError."""
        rng = random.Random(f"{self.seed}:{example.key}")
        drawn = [rng.sample(group, min(len(group), count + 1)) for group in self.groups.values()]
        others = [[shot for shot in group if shot.key != example.key] for group in drawn]
        rng.shuffle(others)
        shots = list(islice((shot for turn in zip_longest(*others) for shot in turn if shot), count))
        if len(shots) < count:
            raise UserError(f"{count} examples are wanted, and the train part has only {len(shots)}; use fewer --shots")
        return shots


def build_task_chat(task, example, system="", shots=(), stage="sft"):
    """The messages of a prompt: a system prompt, examples with their answers as turns, and the question.

    A base model (stage "pretrain") reads a message as a line; its last one is the cue of the answer.
    """
    cue = task.cue if stage == "pretrain" else ""
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages.append({"role": "user", "content": task.ask(shot)})
        messages.append({"role": "assistant", "content": cue + task.answer(shot)})
    messages.append({"role": "user", "content": task.ask(example)})
    return [*messages, {"role": "assistant", "content": cue}] if cue else messages


class TaskPrompter:
    """Builds the prompts of a task for a model, none longer than `room` tokens.

    ids_of(messages): their token ids; None for a model behind an API, whose block is not known.
    with_fewer: number of prompts with fewer examples than wanted, because no more fit; with_cut: those whose text lost
    its middle.
    """

    def __init__(self, task, shots, count, system="", stage="sft", ids_of=None, room=0):
        self.task, self.shots, self.count, self.system, self.stage = task, shots, count, system, stage
        self.ids_of, self.room = ids_of, room
        self.with_fewer = self.with_cut = 0

    def build(self, example):
        """(messages, the examples in them) of the prompt of an example. Raises UserError if not even the form fits."""
        shots = self.shots.draw(example, self.count)
        if self.ids_of is None:
            return self.messages(example, shots), shots
        while shots and self.excess(example, shots) > 0:
            shots = shots[:-1]
        self.with_fewer += len(shots) < self.count
        shortened = example
        while (excess := self.excess(shortened, shots)) > 0:
            shortened = self.shorten(shortened, excess)
        self.with_cut += shortened is not example
        return self.messages(shortened, shots), shots

    def messages(self, example, shots):
        return build_task_chat(self.task, example, self.system, shots, self.stage)

    def excess(self, example, shots):
        """Number of tokens by which a prompt is too long; below 0 if there is room left."""
        return len(self.ids_of(self.messages(example, shots))) - self.room

    def shorten(self, example, excess):
        """The example without some characters in the middle of its longer text: at most half of the excess at a time,
        since a character may be several tokens."""
        texts = {"text": example.text, "text_b": example.text_b or ""}
        name = max(texts, key=lambda name: len(texts[name]))
        text = texts[name]
        if not text:
            raise UserError(f"the prompt of a task does not fit into the model's block of {self.room} tokens")
        return replace(example, **{name: cut_middle(text, max(0, len(text) - -(-excess // 2)))})

    def blank(self, example, shots):
        """The messages of the content-free prompt: the same one with empty texts."""
        empty = replace(example, text="", text_b=None if example.text_b is None else "")
        return self.messages(empty, shots)
