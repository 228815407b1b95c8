"""Looking inside the arena's checkpoints. All that is returned are plain values, as the page loads no torch."""

import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass

from minigpt.arena.problems import Problem, validate_number
from minigpt.common.files import PROJECT
from minigpt.inference.inspect import (
    attention_weights,
    check_position,
    compare_readings,
    field_agreement,
    logit_lens,
    nearest_subjects,
    nearest_tokens,
    next_tokens,
    read_text,
    subject_vectors,
    subjects_of_fields,
    surprise_bits,
    token_labels,
)
from minigpt.inference.params import SamplingParams

MAX_READ_TOKENS = 128  # of a text; an attention map of more cannot be read
MAX_SUBJECT_CHARS = 30
KEPT_READINGS = 16  # texts' states that are kept, so that a click on a token computes little
KEPT_VECTORS = 16  # checkpoints whose subjects' vectors are kept: 2 MB each for a width of 768
FIELDS_FOLDER = PROJECT / "data" / "wiki_sample"
LOOK_RANGES = {"temperature": (0.0, 2.0), "top_k": (0, 100_000), "top_p": (0.0, 1.0)}


@dataclass
class ReadTokens:
    """A text as a model has read it. labels: of `token_labels`; bits: of `surprise_bits`; left_out: as of `Reading`;
    layers, heads: numbers of the model's."""

    labels: list
    bits: list
    left_out: int
    layers: int
    heads: int


class Inspector:
    """Looks inside the checkpoints of a `ModelCache`. check_prompt: as `Arena.check_prompt`.

    Readings are computed one at a time, so that visitors cannot take the machine from those who generate text. So are
    the vectors of subjects, which can take a minute, but readings do not wait for them. All methods raise Problem or
    UserError.
    """

    def __init__(self, models, check_prompt):
        self.models, self.check_prompt = models, check_prompt
        self._reading_lock, self._subjects_lock = threading.Lock(), threading.Lock()
        self._readings, self._vectors = OrderedDict(), OrderedDict()  # the least recently used first
        self._subjects = None

    @contextmanager
    def opened(self, name, lock):
        """Context manager of a checkpoint: (generator, `CheckpointInfo`), while this thread holds a lock."""
        if not name:
            raise Problem("no_model_chosen")
        generator, checkpoint = self.models.acquire(name)
        try:
            if checkpoint.stage == "task":
                raise Problem("labels_only", name=name)
            with lock:
                yield generator, checkpoint
        finally:
            self.models.release(name)

    @contextmanager
    def _read(self, name, text):
        """Context manager of (generator, `Reading`) of a text."""
        text = self.check_prompt(text)
        with self.opened(name, self._reading_lock) as (generator, checkpoint):

            def read():
                return read_text(generator.model, generator.tokenizer, text, MAX_READ_TOKENS)

            yield generator, remember(self._readings, (checkpoint, text), read, KEPT_READINGS)

    def tokens(self, name, text):
        """The `ReadTokens` of a text."""
        with self._read(name, text) as (generator, reading):
            labels = token_labels(generator.tokenizer, reading.ids)
            config = generator.model.config
            bits = surprise_bits(generator.model, reading)
            return ReadTokens(labels, bits, reading.left_out, config.n_layer, config.n_head)

    def compared(self, name, other, text):
        """[`ComparedToken`] of a text under two checkpoints with the same tokenizer."""
        with self._read(name, text) as (first, reading):
            model, tokenizer = first.model, first.tokenizer
        with self._read(other, text) as (second, other_reading):
            if tokenizer.sha256 != second.tokenizer.sha256:
                raise Problem("look_tokenizers", first=tokenizer.name, second=second.tokenizer.name)
            return compare_readings((model, second.model), (reading, other_reading), tokenizer)

    def candidates(self, name, text, position, temperature, top_k, top_p):
        """[`NextToken`] after the token at a position, the ten likeliest."""
        values = dict(zip(LOOK_RANGES, (temperature, top_k, top_p), strict=True))
        params = SamplingParams(**{key: validate_number(key, values[key], *LOOK_RANGES[key]) for key in values})
        with self._read(name, text) as (generator, reading):
            forbidden = generator.member.forbidden
            return next_tokens(
                generator.model, generator.tokenizer, reading, position, params, forbidden=forbidden
            )  # fmt: skip

    def attention(self, name, text, layer, head):
        """Attention weights of a layer (from 0) as lists: a row for each token, with the weights of the tokens up to
        it. head: its number from 0, None for the mean of all. Virtual tokens come first."""
        with self._read(name, text) as (generator, reading):
            weights = attention_weights(generator.model, reading, layer)
            if head is not None and not 0 <= head < len(weights):
                raise Problem("look_head", head=head + 1, heads=len(weights))
            chosen, n = weights.mean(dim=0) if head is None else weights[head], generator.model.n_virtual
            return [row[: n + i + 1] for i, row in enumerate(chosen.tolist())]

    def lens(self, name, text, position):
        """[`LensRow`] at a position."""
        with self._read(name, text) as (generator, reading):
            return logit_lens(generator.model, generator.tokenizer, reading, position)

    def near_tokens(self, name, text, position):
        """[(label, cosine)] of the tokens nearest to that at a position."""
        with self._read(name, text) as (generator, reading):
            found = nearest_tokens(generator.model, generator.tokenizer, reading.ids[check_position(reading, position)])
            return [(label, cosine) for _, label, cosine in found]

    def subjects(self):
        """[`FieldSubject`] of the embedded corpus. Raises Problem where it is not there."""
        if self._subjects is None:
            self._subjects = subjects_of_fields(sorted(FIELDS_FOLDER.glob("*.jsonl")))
        if not self._subjects:
            raise Problem("look_no_corpus", path=str(FIELDS_FOLDER))
        return self._subjects

    def near_subjects(self, name, subject):
        """([`FieldAgreement` of each layer, 0 to L], [(subject, field, cosine)] of the subjects nearest to `subject`
        after the last layer)."""
        subject, known = self.check_prompt(subject).strip(), self.subjects()
        if len(subject) > MAX_SUBJECT_CHARS:
            raise Problem("long_prompt", length=len(subject), most=MAX_SUBJECT_CHARS)
        names, fields = zip(*known, strict=True)
        with self.opened(name, self._subjects_lock) as (generator, checkpoint):
            model, tokenizer = generator.model, generator.tokenizer

            def compute():
                vectors = subject_vectors(model, tokenizer, names)
                return vectors[-1].clone(), [field_agreement(each, fields) for each in vectors]

            vectors, agreement = remember(self._vectors, checkpoint, compute, KEPT_VECTORS)
            own = [names.index(subject)] if subject in names else []
            vector = vectors[own[0]] if own else subject_vectors(model, tokenizer, [subject])[-1, 0]
            return agreement, [(*known[place], cosine) for place, cosine in nearest_subjects(vectors, vector, 10, own)]


def remember(cache, key, compute, most):
    """The value of a key in an OrderedDict of at most `most` values, by compute() where it has none."""
    if key not in cache:
        cache[key] = compute()
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
    return cache[key]
