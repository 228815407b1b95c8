"""Makes pairs of answers: a model answers training questions several times, and its answers are scored.

    python sft/make_preferences.py config/demo_dpo.py       # of the demo's model
    python sft/make_preferences.py --ckpt=out/sft/ckpt.pt --data_dir=data/processed_sft
    python train.py config/demo_dpo.py                      # next step: direct preference optimization on the pairs

The questions are those of the train part of a folder of data/prepare_sft.py; the other parts are never asked. A score
compares an answer with the question's reference: the mean of exact match, Rouge-L and, where the reference has numbers,
number accuracy. A row is {"prompt", "chosen", "rejected"}: the chosen answer is the reference, or the best sample
(--chosen=best); the rejected one is a sample that is worse by min_gap or more, the most frequent such sample or the
worst (--rejected=worst). Ctrl-C writes the pairs that are found by then. `--help` lists the settings.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from data_utils import check_rows, load_row_tokenizer, open_rows
from minigpt.checkpoint import load_checkpoint, newest_checkpoint, only_checkpoint
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.evaluation.models import LocalModel
from minigpt.evaluation.prompts import draw_samples, pairs_of_rows
from minigpt.evaluation.tables import write_text
from minigpt.inference.params import SamplingParams
from minigpt.metrics import exact_match, has_same_numbers, rouge_l
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import PreferenceDataSettings

BATCHES_A_CHUNK = 4  # of samples that are asked for at a time; what is under way is lost at Ctrl-C


def score_sample(answer, reference):
    """How right an answer is, 0 to 1: the mean of exact match, Rouge-L's F and, if there are numbers, their match."""
    scores = [exact_match(answer, reference), rouge_l(answer, reference)[2], has_same_numbers(answer, reference)]
    scores = [float(score) for score in scores if score is not None]
    return sum(scores) / len(scores)


def choose_pairs(answers, reference, settings):
    """[(chosen, rejected)] of a question's sampled answers, at most pairs_a_question of them."""
    counts = Counter(filter(None, map(str.strip, answers)))
    scores = {text: score_sample(text, reference) for text in counts}
    chosen, high = reference.strip(), 1.0
    if settings.chosen == "best" and scores:
        chosen = max(scores, key=scores.get)
        high = scores[chosen]
    worse = [text for text in scores if text != chosen and high - scores[text] >= settings.min_gap]
    worse.sort(key=scores.get)
    if settings.rejected == "frequent":
        worse.sort(key=counts.get, reverse=True)
    return [(chosen, rejected) for rejected in worse[: settings.pairs_a_question]]


def load_questions(settings, content):
    """[(prompt, reference)] of the train part of data_dir, for the checkpoint whose dict is `content`."""
    rows, meta = open_rows(settings.data_dir, "train")
    check_rows(settings.data_dir, meta, content)
    if meta["stage"] != "sft":
        raise UserError(f"{settings.data_dir} holds no questions; name rows of data/prepare_sft.py with --data_dir=…")
    return draw_samples(pairs_of_rows(rows, meta, load_row_tokenizer(settings.data_dir, meta)), settings, "question")


class PairMaker:
    """Asks a model its training questions, and collects the pairs: rows, dicts; counts: of questions and answers."""

    def __init__(self, settings):
        self.settings = settings
        path = only_checkpoint(settings) or newest_checkpoint(settings.out_root)
        self.questions = load_questions(settings, load_checkpoint(path, mmap=True))
        self.model = LocalModel(path, settings)
        self.rows, self.counts = [], Counter()

    def run(self):
        """Ask all questions, a chunk after the other."""
        samples = self.settings.samples
        size = max(1, BATCHES_A_CHUNK * self.settings.max_batch // samples)
        with tqdm(total=len(self.questions) * samples, unit="answer") as bar:
            for first in range(0, len(self.questions), size):
                chunk = self.questions[first : first + size]
                # Each answer has a seed of its own, which does not depend on the size of the chunks.
                seed = (self.settings.seed << 32) + first * samples
                params = replace(SamplingParams.from_settings(self.settings), seed=seed)
                prompts = [prompt for prompt, _ in chunk for _ in range(samples)]
                answers = self.model.answers(prompts, params, bar.update)
                for i, (prompt, reference) in enumerate(chunk):
                    self.add(prompt, reference, answers[i * samples : (i + 1) * samples])

    def add(self, prompt, reference, answers):
        """Take note of a question's answers."""
        pairs = choose_pairs(answers, reference, self.settings)
        self.rows += [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
        right = sum(exact_match(answer, reference) for answer in answers)
        self.counts.update(
            questions=1, answers=len(answers), right=right, paired=bool(pairs), mixed=0 < right < len(answers)
        )

    def summary(self):
        """A line: questions, pairs, and the share of the questions that give a signal."""
        counts = self.counts
        return (
            f"{counts['questions']} questions, {counts['answers']} answers, of which {counts['right']} are right; "
            f"{len(self.rows)} pairs from {counts['paired']} questions "
            f"({counts['paired'] / counts['questions']:.1%} have a signal); "
            f"{counts['mixed']} questions have right and wrong answers"
        )

    def write(self):
        """Write the pairs to the setting `pairs`. Raises UserError where there is none."""
        if not self.rows:
            raise UserError(
                f"{self.counts['questions']} questions gave no pair, so {self.settings.pairs} was not written: raise "
                "--temperature or --samples, or lower --min_gap"
            )
        write_text(self.settings.pairs, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
        print(f"{self.summary()}\nwritten to {self.settings.pairs}; go on with: python train.py config/demo_dpo.py")


def main():
    maker = PairMaker(load_settings(PreferenceDataSettings))
    try:
        maker.run()
    except KeyboardInterrupt:
        if maker.rows:
            print(f"\nstopped; {maker.counts['questions']} of {len(maker.questions)} questions are used")
            maker.write()
        raise
    maker.write()


if __name__ == "__main__":
    run_script(main)
