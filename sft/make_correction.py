"""Makes correction data from articles: sentences with and without a mistake, for fine-tuning a model that corrects.

    python sft/make_correction.py                                       # from the embedded corpus
    python sft/make_correction.py --input_dir=my_wiki --max_sentences=100000
    python data/prepare_sft.py --qa_files=sft/corrections.jsonl         # next step, as for any questions

A row is {"question": the sentence, with or without a mistake, "answer": the correct sentence, "id" and "subject" of its
article, "kind": of the mistake, or unchanged}. All rows of a subject are in the same part. `--help` lists the settings.
"""

import heapq
import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.losses import Losses, check_losses
from minigpt.corpus.records import Problems, dropped_text
from minigpt.corpus.sources import cleaned_articles, find_articles
from minigpt.corpus.splits import hash_share
from minigpt.evaluation.mistakes import (
    MISTAKE_KINDS,
    UNCHANGED,
    add_mistake,
    frequent_characters,
    han_places,
    is_complete,
    sentences_of,
)
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import CorrectionDataSettings

MIN_HAN_CHARS = 4  # in a sentence that is used
RANKS = 2**64


@dataclass(order=True)
class Sentence:
    rank: int  # negated hash of text and seed: the highest are kept, and the heap drops the lowest first
    number: int  # position in the files
    text: str
    id: object
    subject: str


class Sentences:
    """The correct sentences of all articles, without duplicates: a random sample of at most `max_sentences`."""

    def __init__(self, settings):
        self.settings = settings
        self.cleaner = Cleaner(settings)
        self.problems = Problems()
        self.left_out = Counter()  # sentences by reason
        self.characters = Counter()  # of all articles
        self.heap = []
        self.texts = set()  # of the sentences in the heap
        self.found = 0
        self.articles = 0

    def read(self, files):
        """Add the sentences of every article of the files, with a progress bar."""
        with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, desc="correction") as bar:
            articles = cleaned_articles(self.settings, files, self.cleaner, self.problems, bar.update)
            for _, article, text in articles:
                self.articles += 1
                self.characters.update(text)
                for sentence in sentences_of(text):
                    self.add(sentence.strip(), article)
                bar.set_postfix_str(f"sentences={len(self.heap)}", refresh=False)

    def add(self, text, article):
        """Add one sentence, or count the reason why it is left out."""
        if not text:
            return
        self.found += 1
        reason = self.exclusion_reason(text)
        if reason:
            self.left_out[reason] += 1
            return
        rank = -int(hash_share(f"{self.settings.seed}:draw:{text}") * RANKS)
        heapq.heappush(self.heap, Sentence(rank, self.found, text, article.id, article.subject))
        self.texts.add(text)
        if 0 < self.settings.max_sentences < len(self.heap):
            self.texts.discard(heapq.heappop(self.heap).text)
            self.left_out["not drawn (max_sentences)"] += 1

    def exclusion_reason(self, text):
        """The reason why a sentence cannot be used, or None."""
        if text in self.texts:
            return "duplicate"
        if not is_complete(text):
            return "without an end"
        if len(text) > self.settings.max_sentence_chars:
            return "longer than max_sentence_chars"
        return f"fewer than {MIN_HAN_CHARS} Han characters" if len(han_places(text)) < MIN_HAN_CHARS else None


def correction_rows(sentences, settings):
    """Yields the rows (dicts) of all sentences. Questions are unique, and no mistake makes another row's answer."""
    frequent, taken = frequent_characters(sentences.characters), set(sentences.texts)
    for sentence in sorted(sentences.heap, key=lambda sentence: sentence.number):  # in the order of the files
        about = {"answer": sentence.text, "id": sentence.id, "subject": sentence.subject}
        if hash_share(f"{settings.seed}:keep:{sentence.text}") < settings.unchanged_share:
            yield {"question": sentence.text, **about, "kind": UNCHANGED}
            continue
        rng = random.Random(f"{settings.seed}:{sentence.text}")
        kinds = rng.sample(settings.mistakes, len(settings.mistakes))
        for variant in range(settings.variants):
            for kind in kinds[variant % len(kinds) :] + kinds[: variant % len(kinds)]:
                text = add_mistake(sentence.text, kind, rng, frequent, taken)
                if text:
                    taken.add(text)
                    yield {"question": text, **about, "kind": kind}
                    break
            else:
                sentences.left_out["no further mistake can be made in it"] += 1
                break


def make_corrections(settings):
    """Write the rows to settings.corrections. Returns (`Sentences`, Counter of rows by kind, warnings)."""
    if not settings.mistakes:
        raise UserError(f"mistakes is empty; choose some of {', '.join(MISTAKE_KINDS)} with --mistakes=…")
    settings.mistakes = list(dict.fromkeys(settings.mistakes))
    sentences, counts = Sentences(settings), Counter()
    sentences.read(find_articles(settings))
    warnings = check_losses(Losses(sentences.problems, sentences.articles))

    def write(file):
        for row in tqdm(correction_rows(sentences, settings), unit="row", desc="write"):
            counts[row["kind"]] += 1
            file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
        if not counts:
            reasons = "; ".join(f"{n} {reason}" for reason, n in sentences.left_out.items())
            raise UserError(f"no sentence in {', '.join(settings.input_dir)} could be used: {reasons}")

    try:
        write_atomic(settings.corrections, write)
    except OSError as error:
        raise UserError(
            f"{settings.corrections} could not be written ({error.strerror}); choose another file with --corrections=…"
        ) from None
    return sentences, counts, warnings


def main():
    settings = load_settings(CorrectionDataSettings)
    sentences, counts, warnings = make_corrections(settings)
    print(dropped_text(sentences.problems.about()))
    left_out = ", ".join(f"{n} {reason}" for reason, n in sentences.left_out.most_common()) or "none"
    print(f"{sentences.articles} articles, {sentences.found} sentences; left out: {left_out}")
    rows = sum(counts.values())
    kinds = [kind for kind in (*MISTAKE_KINDS, UNCHANGED) if counts[kind]]
    print(f"{rows} rows: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    for line in warnings:
        print(line)
    print(
        f"written to {settings.corrections}; go on with: python data/prepare_sft.py --qa_files={settings.corrections}"
    )


if __name__ == "__main__":
    run_script(main)
