"""Contamination check: was a model trained on the text that it is evaluated on?

The text under evaluation is compared with the training rows of the checkpoint's data folder, and with those of the
checkpoints that it was initialized from. What counts as trained on:
  article                              at least 80% of its n-grams of 16 characters occur in training rows; for an
                                       article that is shorter, a training row is identical
  question, against fine-tuning rows   a row has the same question and answer, or the same answer if that has 16
                                       characters or more. The same question alone does not count: "X的首都是哪里？" is
                                       asked about every X. Nor does a short answer: 北京 answers many questions
  question, against articles           the question occurs word for word. Its answer may: models learn it there
Parts that are split by subject should contain none of these. Texts are compared as token ids of the training rows'
tokenizer. Lengths in characters are converted by the folder's average of tokens per character.
"""

import os
from dataclasses import asdict, dataclass, field

import numpy as np
from tqdm import tqdm

from data_utils import answer_mark, load_row_tokenizer, open_rows, read_meta, split_row, turn_places
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.evaluation.prompts import last_question

NGRAM_CHARS = 16
QUESTION_NGRAM_CHARS = 8
MIN_NGRAM_TOKENS = 4
MIN_ANSWER_CHARS = 16  # an answer of this length is not repeated by coincidence
MIN_ROW_SHARE = 0.8  # of an article's n-grams
LEAKED_ROWS_SHARE = 0.02  # from this share of rows that were trained on, the verdict is "leaked" …
LEAKED_NGRAMS_SHARE = 0.2  # … and for articles also from this share of all their n-grams
MAX_NGRAMS = 1 << 18  # of texts with more, a sample of about this size is searched for
CHUNK_TOKENS = 1 << 18  # training tokens that are hashed at a time
MAX_CHAIN = 8  # checkpoints that are followed from one that was initialized from another
# As the JSON has them, from the one that weighs most against the figures.
VERDICTS_BY_WEIGHT = LEAKED, TRAINED_ON, NOT_CHECKED, CLEAN = "leaked", "trained on", "not checked", "clean"


@dataclass
class Contamination:
    """Result of a check.

    checked: training folders that were searched. share: of the texts' n-grams, those that occur in training rows (0 to
    1, the highest over the folders; None if none was searched). leaked_rows: how many of the `rows` texts were trained
    on. verdict: "trained on" means that a training part was evaluated on purpose. notes: what could not be checked.
    """

    checked: list = field(default_factory=list)
    share: float | None = None
    leaked_rows: int = 0
    rows: int = 0
    verdict: str = NOT_CHECKED
    notes: list = field(default_factory=list)

    def line(self):
        """One line to print."""
        if self.verdict == TRAINED_ON:
            return f"contamination check: these rows were trained on (the train part of {', '.join(self.checked)})"
        text = "WARNING: contaminated" if self.verdict == LEAKED else self.verdict
        if self.checked:
            text += f": {self.leaked_rows} of {self.rows} rows under evaluation were trained on; {self.share:.1%} of "
            text += f"their n-grams of {NGRAM_CHARS} characters occur in training rows ({', '.join(self.checked)})"
        if self.verdict == LEAKED:
            text += "; figures over these rows say little about new text"
        return "contamination check: " + "; ".join([text, *self.notes])


def check_models(models, pairs=None, source=None):
    """Check the models under evaluation, once for all checkpoints of a run; print a line for each run.

    models: `EvaluatedModel`s, whose `contamination` is set. pairs, source: as in `check_contamination`.
    """
    results = {}
    for model in models:
        run = repr((model.content or {}).get("settings", model.path))
        if run not in results:
            results[run] = check_contamination(model.content, pairs, source)
            print(f"{model.name}: {results[run].line()}" if len(models) > 1 else results[run].line())
        model.contamination = asdict(results[run])


def check_contamination(content, pairs=None, source=None):
    """`Contamination` of pairs [(prompt, reference)], or, without pairs, of all rows of the source.

    content: the checkpoint's dict (weights are not needed); None for a model behind an API, whose verdict is "not
    checked". source: (data folder, part) that the texts come from, if it is known: a part that the model was trained on
    is evaluated on purpose, and gives no warning. Raises UserError if the source cannot be read.
    """
    if content is None:
        return Contamination(rows=len(pairs), notes=["the training data of a model behind an API is not known"])
    is_sft = (read_meta(source[0]) if pairs is None else content)["stage"] == "sft"
    texts = texts_of_rows(*source) if pairs is None else texts_of_pairs(pairs, is_sft)
    result = Contamination(rows=len(texts))
    trained_on = np.zeros(len(texts), dtype=bool)
    folders, result.notes = training_folders(content)
    for folder in folders:
        if source and source[1] == "train" and is_same_folder(folder, source[0]):
            return Contamination([str(folder)], 1.0, len(texts), len(texts), TRAINED_ON)
        try:
            found, share = search_folder(texts, is_sft, folder)
        except UserError as error:
            result.notes.append(f"not checked: {error}")
            continue
        result.checked.append(str(folder))
        result.share = max(share, result.share or 0.0)
        trained_on |= found
    result.leaked_rows = int(trained_on.sum())
    if result.checked:
        many_rows = result.leaked_rows >= max(1, LEAKED_ROWS_SHARE * result.rows)
        many_ngrams = not is_sft and result.share >= LEAKED_NGRAMS_SHARE
        result.verdict = LEAKED if many_rows or many_ngrams else CLEAN
    return result


def is_same_folder(a, b):
    return os.path.realpath(a) == os.path.realpath(b)


def training_folders(content):
    """([data folders that a checkpoint and those it was initialized from were trained on], notes)."""
    folders, notes = [], []
    for _ in range(MAX_CHAIN):
        settings = content.get("settings") or {}
        folder, base = settings.get("data_dir"), settings.get("init_from", "scratch")
        if not folder:
            notes.append("the checkpoint does not record what it was trained on")
        elif not any(is_same_folder(folder, known) for known in folders):
            folders.append(folder)
        if base == "resume" and content["stage"] == "sft":
            notes.append("the pretraining data is not known, because the run was resumed")
        if base in ("scratch", "resume"):
            break
        try:
            content = load_checkpoint(base, mmap=True)
        except UserError:
            notes.append(f"the training data of {base}, which the run started from, could not be checked")
            break
    return folders, notes


def texts_of_pairs(pairs, is_sft):
    """[(question, answer)], or [(article,)] of pairs that are articles cut in two. Of a chat, the last question."""
    if is_sft:
        return [(last_question(prompt).strip(), reference.strip()) for prompt, reference in pairs]
    return [("".join(pair).strip(),) for pair in pairs]


def texts_of_rows(folder, part):
    """[(question, answer)] of each turn, or [(article,)], of the rows of a data folder's part."""
    rows, meta = open_rows(folder, part)
    decode, special = load_row_tokenizer(folder, meta).decode, meta["special_ids"]
    if meta["stage"] == "sft":
        return [tuple(map(decode, turn)) for row in rows for turn in split_row(row, special)]
    return [(decode(row[(row != special["eot"]) & (row != special["pad"])].tolist()),) for row in rows]


def search_folder(texts, is_sft, folder):
    """(bool (texts,): which of them the folder's train part contains, share of all their n-grams that occur in it)."""
    train, meta = open_rows(folder, "train")
    special, encode = meta["special_ids"], load_row_tokenizer(folder, meta).encode
    ids = [[np.array(encode(text), dtype=train.dtype) for text in parts] for parts in texts]
    tokens_per_char = meta["parts"]["train"].get("tokens_per_character") or 1.0

    def to_tokens(chars):
        return max(MIN_NGRAM_TOKENS, round(chars * tokens_per_char))

    # rows: each text as a row of its stage holds it. keys: rows and answers that are trained on if they occur whole.
    mark = np.array(ids_between(special), dtype=train.dtype)
    rows = [np.concatenate([parts[0], mark, parts[1]]) if is_sft else parts[0] for parts in ids]
    ngrams = NgramSearch(rows, to_tokens(NGRAM_CHARS), MAX_NGRAMS)
    searches, keys = [ngrams], [[] for _ in rows]
    if not is_sft:
        keys = [[row] if len(row) < ngrams.n else [] for row in rows]
    elif meta["stage"] == "sft":
        long = to_tokens(MIN_ANSWER_CHARS)
        keys = [[row, answer] if len(answer) >= long else [row] for row, (_, answer) in zip(rows, ids, strict=True)]
    else:
        # A sentence that needs no correction is asked and answered by the same text, which an article may contain.
        asked = [question[:0] if np.array_equal(question, answer) else question for question, answer in ids]
        searches.append(NgramSearch(asked, to_tokens(QUESTION_NGRAM_CHARS)))
    keys = [{key.tobytes() for key in own} for own in keys]
    found = scan_rows(train, special, searches, set().union(*keys))
    trained_on = np.array([bool(own & found) for own in keys])
    if meta["stage"] == "pretrain" or not is_sft:
        trained_on |= searches[-1].shares() >= (1.0 if is_sft else MIN_ROW_SHARE)
    return trained_on, ngrams.share()


def scan_rows(train, special, searches, wanted=frozenset()):
    """Go once through training rows (n, block_size). Each `NgramSearch` notes the n-grams that it finds.

    Returns the subset of `wanted`, ids as bytes, that are whole rows (without EOT) or whole answers. Of rows with
    several turns, each turn is a row.
    """
    found, n = set(), max(1, CHUNK_TOKENS // train.shape[1])
    with tqdm(total=len(train), unit="row", desc="contamination check", leave=False, delay=2) as bar:
        for first in range(0, len(train), n):
            rows = np.asarray(train[first : first + n])
            tokens = rows[rows != special["pad"]]
            for search in searches:
                search.add(tokens)
            if wanted and "question" in special:
                for question, answer in (turn for row in rows for turn in split_row(row, special)):
                    whole, alone = [*question, *ids_between(special), *answer], answer
                    found |= wanted & {np.array(ids, dtype=rows.dtype).tobytes() for ids in (whole, alone)}
            elif wanted:
                ends, marks = first_places(rows, special["eot"]), first_places(rows, special["answer"])
                found |= wanted & {row[:end].tobytes() for row, end in zip(rows, ends, strict=True)}
                found |= wanted & {row[m + 1 : end].tobytes() for row, m, end in zip(rows, marks, ends, strict=True)}
                for row in rows[(rows == special["answer"]).sum(axis=1) > 1]:
                    for start, _, answer, end in turn_places(row, special):
                        found |= wanted & {row[start:end].tobytes(), row[answer:end].tobytes()}
            bar.update(len(rows))
    return found


def ids_between(special):
    """The ids between a question and its answer: the answer mark, and what a template of others puts before it."""
    return [*special.get("question", ([], []))[1], *answer_mark(special)]


def first_places(rows, token):
    """(rows,) index of the first such token in each row; the row's length if it has none."""
    is_token = rows == token
    return np.where(is_token.any(axis=1), is_token.argmax(axis=1), rows.shape[1])


# An n-gram of ids x_0 … x_n-1 has the hash sum of TOKEN_VALUES[x_j] * MULTIPLIER**j, modulo 2**64.
TOKEN_VALUES = np.random.default_rng(20260101).integers(0, 2**64 - 1, size=2**18, dtype=np.uint64, endpoint=True)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
PREFIX_SHIFT = np.uint64(64 - 22)


def ngram_hashes(ids, n):
    """(len(ids) - n + 1,) uint64 hashes of all n-grams of a flat array of ids."""
    if len(ids) < n:
        return np.empty(0, dtype=np.uint64)
    values = TOKEN_VALUES.take(ids, mode="wrap")
    return np.lib.stride_tricks.sliding_window_view(values, n) @ MULTIPLIER ** np.arange(n, dtype=np.uint64)


class NgramSearch:
    """The n-grams of some texts (arrays of ids), and which of them occur in training rows.

    max_ngrams: of more n-grams, one in k is searched for, chosen by hash.
    """

    def __init__(self, texts, n, max_ngrams=1 << 62):
        self.n, self.texts = n, len(texts)
        count = sum(max(0, len(ids) - n + 1) for ids in texts)
        one_in = np.uint64(max(1, -(-count // max_ngrams)))
        hashes = [found[found % one_in == 0] for found in (ngram_hashes(ids, n) for ids in texts)]
        self.owners = np.repeat(np.arange(len(texts)), [len(found) for found in hashes])
        self.hashes, self.index = np.unique(np.concatenate(hashes), return_inverse=True)
        self.found = np.zeros(len(self.hashes), dtype=bool)
        # Most training n-grams are ruled out by the first bits of their hash.
        self.has_prefix = np.zeros(1 << 22, dtype=bool)
        self.has_prefix[self.hashes >> PREFIX_SHIFT] = True

    def add(self, ids):
        """Note which n-grams occur in a flat array of training ids."""
        hashes = ngram_hashes(ids, self.n)
        hashes = hashes[self.has_prefix[hashes >> PREFIX_SHIFT]]
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        self.found[places[self.hashes[places] == hashes]] = True

    def shares(self):
        """(texts,) share of each text's n-grams that were found; 0 for a text without n-grams."""
        found = np.bincount(self.owners, weights=self.found[self.index], minlength=self.texts)
        return found / np.maximum(1, np.bincount(self.owners, minlength=self.texts))

    def share(self):
        """Share of the n-grams of all texts that were found."""
        return float(self.found[self.index].mean()) if len(self.owners) else 0.0
