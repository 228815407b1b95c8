"""Articles to sentences with a mistake and without, for fine-tuning a model that corrects them.

    python sft/make_correction.py                                       # of the embedded corpus
    python sft/make_correction.py --input_dir=my_wiki --max_sentences=100000
    python data/prepare_sft.py --qa_files=sft/corrections.jsonl         # then, as with any questions

A row is {"question": the sentence, perhaps with a mistake, "answer": the right one, "id" and "subject" of its article,
"kind": the mistake's, or unchanged}. The rows of a subject stay together in one part; `--help` lists the settings.
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

from minigpt.common.errors import UserError, run_script
from minigpt.common.files import write_atomic
from minigpt.corpus.cleaning import Cleaner
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, dropped_text, read_articles
from minigpt.corpus.splits import hash_share
from minigpt.evaluation.mistakes import KINDS, UNCHANGED, han_places, is_whole, most_frequent, sentences_of, spoilt
from minigpt.settings.parse import load_settings

FEWEST = 4  # Han characters of a sentence that is used
LONG, SHORT, OPEN = "longer than max_sentence_chars", f"fewer than {FEWEST} Han characters", "without an end"
AGAIN, NOT_DRAWN, NO_MISTAKE = "there already", "not drawn (max_sentences)", "no further mistake can be made in it"
UNITS_OF_SHARE = 2**64


@dataclass(order=True)
class Sentence:
    rank: int  # drawn are the lowest, which the text and the seed decide; falling, as a heap has its least first
    number: int  # in the order of the files
    text: str
    id: object
    subject: str


class Sentences:
    """The right sentences of all articles that are used, each once, at most `max_sentences` of them in memory."""

    def __init__(self, settings):
        self.settings, self.cleaner = settings, Cleaner(settings)
        self.problems, self.left_out, self.characters = Problems(), Counter(), Counter()
        self.heap, self.texts, self.found, self.articles = [], set(), 0, 0

    def read(self, files):
        """Take the sentences of every article of the files, under a progress bar."""
        with tqdm(total=sum(map(os.path.getsize, files)), unit="B", unit_scale=True, desc="correction") as bar:
            for number, article in read_articles(files, self.problems, bar.update, self.settings.text_field):
                text, reason = self.cleaner.clean(article)
                if reason:
                    self.problems.add(reason, article.source, number)
                    continue
                self.articles += 1
                self.characters.update(text)
                for sentence in sentences_of(text):
                    self.add(sentence.strip(), article)
                bar.set_postfix_str(f"sentences={len(self.heap)}", refresh=False)

    def add(self, text, article):
        """One sentence: taken, or counted under why it is not."""
        if not text:
            return
        self.found += 1
        reason = self.reason(text)
        if reason:
            self.left_out[reason] += 1
            return
        rank = -int(hash_share(f"{self.settings.seed}:draw:{text}") * UNITS_OF_SHARE)
        heapq.heappush(self.heap, Sentence(rank, self.found, text, article.id, article.subject))
        self.texts.add(text)
        if 0 < self.settings.max_sentences < len(self.heap):
            self.texts.discard(heapq.heappop(self.heap).text)
            self.left_out[NOT_DRAWN] += 1

    def reason(self, text):
        """Why a sentence cannot be used, or None."""
        if text in self.texts:
            return AGAIN
        if not is_whole(text):
            return OPEN
        if len(text) > self.settings.max_sentence_chars:
            return LONG
        return SHORT if len(han_places(text)) < FEWEST else None

    def in_order(self):
        """The sentences as the files have them."""
        return sorted(self.heap, key=lambda sentence: sentence.number)


def rows_of(sentences, settings):
    """Yields the rows (dicts) of all sentences. No question is another row's answer, or stands in two rows."""
    frequent, taken = most_frequent(sentences.characters), set(sentences.texts)
    for sentence in sentences.in_order():
        about = {"answer": sentence.text, "id": sentence.id, "subject": sentence.subject}
        if hash_share(f"{settings.seed}:keep:{sentence.text}") < settings.unchanged_share:
            yield {"question": sentence.text, **about, "kind": UNCHANGED}
            continue
        rng = random.Random(f"{settings.seed}:{sentence.text}")
        kinds = rng.sample(settings.mistakes, len(settings.mistakes))
        for variant in range(settings.variants):
            for kind in kinds[variant % len(kinds) :] + kinds[: variant % len(kinds)]:
                text = spoilt(sentence.text, kind, rng, frequent, taken)
                if text:
                    taken.add(text)
                    yield {"question": text, **about, "kind": kind}
                    break
            else:
                sentences.left_out[NO_MISTAKE] += 1
                break


def make(settings):
    """Write the rows of settings.corrections; returns (`Sentences`, Counter of rows by kind)."""
    if not settings.mistakes:
        raise UserError(f"mistakes is empty; name some of {', '.join(KINDS)} with --mistakes=…")
    settings.mistakes = list(dict.fromkeys(settings.mistakes))
    sentences, counts = Sentences(settings), Counter()
    sentences.read(find_files(settings.input_dir))

    def write(file):
        for row in tqdm(rows_of(sentences, settings), unit="row", desc="write"):
            counts[row["kind"]] += 1
            file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
        if not counts:
            reasons = "; ".join(
                [*sentences.problems.places[:3], *(f"{n} {why}" for why, n in sentences.left_out.items())]
            )
            raise UserError(f"no sentence in {', '.join(settings.input_dir)} could be used: {reasons}")

    try:
        write_atomic(settings.corrections, write)
    except OSError as error:
        raise UserError(
            f"{settings.corrections} could not be written ({error.strerror}); name another with --corrections=…"
        ) from None
    return sentences, counts


def main():
    settings = load_settings("correction_data")
    sentences, counts = make(settings)
    print(dropped_text(sentences.problems.about()))
    left_out = ", ".join(f"{n} {reason}" for reason, n in sentences.left_out.most_common()) or "none"
    print(f"{sentences.articles} articles, {sentences.found} sentences; left out: {left_out}")
    rows = sum(counts.values())
    print(f"{rows} rows: " + ", ".join(f"{counts[kind]} {kind}" for kind in [*KINDS, UNCHANGED] if counts[kind]))
    print(
        f"written to {settings.corrections}; go on with: python data/prepare_sft.py --qa_files={settings.corrections}"
    )


if __name__ == "__main__":
    run_script(main)
