"""Measures grammar by minimal pairs: of a right and a wrong sentence, which one does the model find likelier?

    python evaluations-grammar.py                                       # the newest checkpoint, our own 820 pairs
    python evaluations-grammar.py --ckpt=out/demo --plot=grammar.png    # a run's folder: each checkpoint that it kept
    python evaluations-grammar.py --ckpt=out/a/ckpt.pt,my_qwen --grammar_files=ZhoBLiMP --csv=pairs.csv

--grammar_files: files or folders of rows as SLING, ZhoBLiMP and BLiMP publish them, or {"good", "bad", "phenomenon",
"paradigm"}. A sentence's score is the sum of the log probabilities of its tokens, the first one left out (no text
stands before it). "per token" is the mean instead, which favours neither length. "fewer tokens" is what one gets who
takes the shorter sentence, in tokens, and knows nothing else. Chance is 0.5; a tie counts half.
"""

from pathlib import Path

from tqdm import tqdm

from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.device import pick_device
from minigpt.evaluation.asking import EvaluatedModel, combine_entries, measure_in_turn, print_comparisons
from minigpt.evaluation.grammar import (
    PAIR_COLUMNS,
    compare_grammar,
    draw_grammar,
    first_tokens_differ,
    grammar_figures,
    pair_rows,
    phenomenon_counts,
    read_minimal_pairs,
    score_pairs_of,
)
from minigpt.evaluation.models import find_models, is_address
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.tables import interval_text, text_table, write_csv
from minigpt.metrics import too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import GrammarSettings

GRAMMAR_HEADS = ["right 判对", "95%", "per token 按均值", "fewer tokens 只看长短"]


class GrammarModel(EvaluatedModel):
    """A checkpoint or a Hugging Face folder and, once it is measured, its `PairScores` as `scores`."""

    scores = None

    def __init__(self, name, path):
        if is_address(str(path)):
            raise UserError(f"{path} is an address: minimal pairs need a checkpoint, since an API gives no likelihoods")
        super().__init__(name, path)

    def measure(self, pairs, settings):
        """Measure its pairs, with a progress bar; returns itself."""
        model, tokenizer = load_model(load_checkpoint(self.path), pick_device(settings.device), settings.base)
        with tqdm(total=2 * len(pairs), unit="sentence", desc=self.name) as bar:
            self.scores = score_pairs_of(model, tokenizer, pairs, settings.batch_size, bar.update)
        self.differ = first_tokens_differ(tokenizer, pairs)
        return self

    def figures(self, pairs, settings):
        """Plain values for the JSON."""
        figures = grammar_figures(pairs, self.scores, settings.resamples, settings.seed)
        return {**self.about(), **figures, "first_tokens_differ": self.differ}


def compare_with_best_grammar(models, entries, pairs, settings):
    """[{"a": the best model, "b": another, "figure": "grammar", …}], as `metrics.compare` has it."""
    best = max(range(len(models)), key=lambda i: entries[i]["grammar"] or 0.0)
    comparisons = []
    for i, other in enumerate(models):
        scores = models[best].scores, other.scores
        if i != best and (result := compare_grammar(pairs, *scores, settings.resamples, settings.seed)):
            comparisons.append({"a": models[best].name, "b": other.name, "figure": "grammar", **result})
    return comparisons


def print_grammar_figures(entries, settings):
    """Print a table with a row for each model, and one with a row for each phenomenon under the last model."""
    rows = [
        [entry["name"], entry["step"], entry["grammar"], interval_text(entry["intervals"]["grammar"]),
         entry["grammar_per_token"], entry["fewer_tokens"]]
        for entry in entries
    ]  # fmt: skip
    print("\n" + text_table(["model 模型", "step", *GRAMMAR_HEADS], rows))
    last = entries[-1]
    rows = [
        [
            name,
            found["pairs"],
            found["accuracy"],
            interval_text(found["interval"]),
            found["per_token"],
            found["fewer_tokens"],
        ]
        for name, found in last["phenomena"].items()
    ]
    print(f"\n{last['name']} by phenomenon:\n" + text_table(["phenomenon 现象", "pairs", *GRAMMAR_HEADS], rows))
    print("chance 0.5; 95%: bootstrap interval of a phenomenon over pairs, of all over " + last["resampled"])
    for note in too_few_notes({"all": last["pairs"]}) if settings.resamples else ():
        print(note)
    said = set()  # checkpoints of one run have the same notes
    for entry in entries:
        for note in notes_of(entry):
            if note not in said:
                print(f"note: {entry['name']}: {note}")
            said.add(note)


def notes_of(entry):
    """What to know of a model's figures, as lines."""
    notes = {
        "ties": "ties, which count half",
        "left_out": "pairs are left out: a sentence has a single token, or more than fit the model's block",
        "first_tokens_differ": "pairs differ in their first token, whose probability is not counted",
    }
    return [f"{entry[key]} {text}" for key, text in notes.items() if entry[key]]


def main():
    settings = load_settings(GrammarSettings)
    models = [GrammarModel(*found) for found in find_models(settings.ckpt, settings.out_root)]
    pairs = read_minimal_pairs(settings.grammar_files)
    counts = ", ".join(f"{name} {n}" for name, n in phenomenon_counts(pairs).items())
    print(f"{len(pairs)} minimal pairs: {counts}")
    measured, stopped = measure_in_turn(models, lambda model: model.measure(pairs, settings))
    entries = [model.figures(pairs, settings) for model in measured]
    comparisons = compare_with_best_grammar(measured, entries, pairs, settings)
    print_grammar_figures(entries, settings)
    print_comparisons(comparisons, ">", "A - B", {"grammar": "accuracy"})
    if settings.csv:
        names = ["model", "step", "phenomenon", "paradigm", "good", "bad", *PAIR_COLUMNS]
        about = [[pair.phenomenon, pair.paradigm, pair.good, pair.bad] for pair in pairs]
        rows = [
            [model.name, model.step, *text, *found]
            for model in measured
            for text, found in zip(about, pair_rows(pairs, model.scores), strict=True)
        ]
        write_csv(settings.csv, names, rows)
    if settings.json:
        write_json(
            settings.json, combine_entries(entries, grammar_files=settings.grammar_files, comparisons=comparisons)
        )
    if settings.plot or (settings.json and len(entries) > 1):
        png, _ = save_plot(draw_grammar(entries), settings.plot or Path(settings.json).with_suffix(".png"))
        print(f"drawn: {png}")
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
