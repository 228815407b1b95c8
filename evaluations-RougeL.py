"""Compares models' answers with references: Rouge-L, exact match, character F1, number accuracy.

    python evaluations-RougeL.py --data_dir=data/processed_sft            # the newest checkpoint, the test questions
    python evaluations-RougeL.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl
    python evaluations-RougeL.py --ckpt=out/pretrain/ckpt.pt --data_dir=data/processed
    python evaluations-RougeL.py --ckpt=out/a,out/b/ckpt.pt,http://127.0.0.1:5000/v1 --data_dir=data/processed_sft

A fine-tuned checkpoint answers questions. A pretrained one continues articles: the prompt is an article's first clause,
the reference is the rest; with --questions it continues the question. Several models answer the same questions, and are
compared by the paired bootstrap. In --ckpt, a run's folder means every checkpoint in it, and an address means a model
behind an API.

Rouge-L is over characters, and with --words also over words; recall, precision and F are reported separately. The
figures that the original report prints beside its answers (0.75, 0.22) are close to recall, not to F.
"""

import math

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.files import write_json
from minigpt.evaluation.asking import (
    collect_answers,
    combine_entries,
    compare_models,
    load_evaluation,
    lowest_and_highest,
    measure_in_turn,
    note_cut_prompts,
    print_comparisons,
    shorten,
    strip_controls,
)
from minigpt.evaluation.contamination import check_models
from minigpt.evaluation.prompts import prompt_source, prompt_text
from minigpt.evaluation.tables import rows_with_intervals, text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import RougeSettings

ROUGE_COLUMNS = {
    "rouge_l_recall": "Rouge-L recall", "rouge_l_precision": "precision", "rouge_l_f": "F",
    "rouge_l_words_recall": "words recall", "rouge_l_words_precision": "precision", "rouge_l_words_f": "F",
    "char_f1": "char F1", "exact_match": "exact match", "numbers": "number accuracy",
}  # fmt: skip
SUMMARY = {**dict(list(ROUGE_COLUMNS.items())[:3]), "exact_match": "exact match"}
MAX_LISTED_MODELS = 3  # the worst and best answers are listed for so many models; for more, only for the best one


def answer_pairs(model, pairs, params, settings):
    """`ModelAnswers` of an `EvaluatedModel`, with a progress bar. Raises UserError."""
    opened = model.open(settings)
    note_cut_prompts(opened, pairs, params)
    with tqdm(total=len(pairs), unit="prompt", desc=model.name) as bar:
        return collect_answers(model, opened, pairs, params, settings.words, bar.update)


def print_pairs(answers, pairs, count):
    """Print question, reference, and each model's prediction with its score."""
    for i, (prompt, reference) in enumerate(pairs[:count]):
        print(f"问题 question:   {strip_controls(prompt_text(prompt))}\n答案 reference:  {strip_controls(reference)}")
        for one in answers:
            name = f" ({one.name})" if len(answers) > 1 else ""
            if one.predictions[i] is None:
                print(f"预测 prediction{name}: no answer")
                continue
            recall, precision, f = (one.scores[f"rouge_l_{part}"][i] for part in ("recall", "precision", "f"))
            print(f"预测 prediction{name}: {strip_controls(one.predictions[i])}")
            print(f"Rouge-L recall {recall:.4f}, precision {precision:.4f}, F {f:.4f}")
        print()


def print_worst_and_best(answers, pairs):
    """Print the worst and the best answers by F, one line each, if there are many."""
    for one in answers:
        scores = one.scores["rouge_l_f"]
        for title, places in zip(("worst", "best"), lowest_and_highest(scores), strict=True):
            if not places:
                continue
            all_equal = scores[places[0]] == scores[places[-1]]
            more = f", of {(scores == scores[places[0]]).sum()} with {scores[places[0]]:.4f}" if all_equal else ""
            print(f"{one.name}: the {title} {len(places)} by F{more}")
            for i in places:
                asked, reference = pairs[i]
                prompt, reference, prediction = map(shorten, (prompt_text(asked), reference, one.predictions[i]))
                print(f"  {scores[i]:.4f}  问 {prompt}  答 {reference}  预测 {prediction}")
            print()


def print_rouge_figures(entries, resamples):
    """Print a line for each model, then a table with the interval below each figure."""
    for entry in entries:
        figures = (f"{name} {entry[key]:.4f}" for key, name in SUMMARY.items())
        failed = f"; {entry['failed']} without an answer are not counted" if entry["failed"] else ""
        print(f"{entry['checkpoint']}: {entry['pairs']} pairs, {', '.join(figures)}{failed}")
    names, about = [key for key in ROUGE_COLUMNS if key in entries[0]], ["name", "step", "pairs"]
    rows = rows_with_intervals(entries, about, names, digits=3)
    print("\n" + text_table(["model", "step", "pairs", *(ROUGE_COLUMNS[name] for name in names)], rows))
    with_numbers = ", ".join(sorted({str(entry["pairs_with_numbers"]) for entry in entries}))
    print(f"number accuracy: share of the {with_numbers} pairs with numbers whose answer has exactly these numbers")
    if entries[0]["intervals"]["rouge_l_f"]:
        print("below each figure: its 95% bootstrap interval over pairs")
    counts = {f"answers of {entry['name']}": entry["pairs"] for entry in entries}
    counts |= {f"numbers of {entry['name']}": entry["pairs_with_numbers"] for entry in entries}
    for note in too_few_notes(counts) if resamples else ():
        print(note)


def write_answers(path, answers, pairs):
    """Write a CSV with a row for each model and pair."""
    names = list(answers[0].scores)
    rows = []
    for one in answers:
        columns = (one.scores[name].tolist() for name in names)
        for (prompt, reference), prediction, *scores in zip(pairs, one.predictions, *columns, strict=True):
            texts = [prompt_text(prompt), reference, prediction]
            rows.append([one.name, *texts, *(None if math.isnan(score) else score for score in scores)])
    write_csv(path, ["model", "prompt", "reference", "prediction", *names], rows)


def main():
    settings = load_settings(RougeSettings)
    params = SamplingParams.from_settings(settings)
    models, pairs = load_evaluation(settings)
    if settings.check_leak:
        check_models(models, pairs, prompt_source(settings, models[0]))
    answers, stopped = measure_in_turn(models, lambda model: answer_pairs(model, pairs, params, settings))
    entries = [one.figures(settings.resamples, settings.seed) for one in answers]
    comparisons = compare_models(answers, settings.resamples, settings.seed)
    print_pairs(answers, pairs, settings.show)
    best = max(range(len(answers)), key=lambda i: entries[i]["rouge_l_f"])
    print_worst_and_best(answers if len(answers) <= MAX_LISTED_MODELS else [answers[best]], pairs)
    print_rouge_figures(entries, settings.resamples)
    for note in too_few_notes({f"{c['a']} > {c['b']}": c["rows"] for c in comparisons}):
        print(note)
    print_comparisons(comparisons, ">", "A - B", ROUGE_COLUMNS)
    if settings.csv:
        write_answers(settings.csv, answers, pairs)
    if settings.json:
        write_json(settings.json, combine_entries(entries, comparisons=comparisons))
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
