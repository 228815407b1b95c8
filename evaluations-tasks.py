"""Measures a task: labels of texts or of pairs (accuracy, macro F1), tags (precision, recall and F1 of entities).

    python evaluations-tasks.py --ckpt=out/task/ckpt.pt                    # the test part of data/processed_task
    python evaluations-tasks.py --ckpt=out/causal,out/mlm/ckpt.pt --data_dir=data/processed_task --split=val
    python evaluations-tasks.py --ckpt=out/task --json=tasks.json --csv=examples.csv     # every checkpoint of a run

Language models are told the task in words: the table of system prompt × model × number of examples in the prompt.

    python evaluations-tasks.py --ckpt=out/demo/last.pt,out/instruct/ckpt.pt --data_dir=… --shots=0,1,4 --page=table.md

Beside the models stands the majority class, which gives every text the most common label of the train part. Intervals
are 95% bootstrap intervals over texts; the best model is compared with the others by the paired bootstrap.
"""

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.corpus.tasks import TAG
from minigpt.evaluation.asking import EvaluatedModel, combine_entries, measure_in_turn, print_comparisons
from minigpt.evaluation.models import find_models
from minigpt.evaluation.tables import markdown_table, rows_with_intervals, text_table, write_csv, write_text
from minigpt.evaluation.task_prompts import check_label_words, parse_label_words, task_name, word_task
from minigpt.evaluation.task_table import WORDED_HEADS, check_trained_texts, measure_in_words, task_systems, worded_rows
from minigpt.evaluation.tasks import (
    LABEL_FIGURES,
    PREDICTION_COLUMNS,
    TAG_FIGURES,
    compare_results,
    count_repeated,
    head_predictor,
    load_task,
    measure_predictor,
    most_common_predictor,
    prediction_rows,
    read_task_rows,
)
from minigpt.inference.classify import open_classifier
from minigpt.metrics import too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TasksSettings

TASK_HEADS = {
    "accuracy": "accuracy", "macro_f1": "macro F1", "precision": "entity precision", "recall": "recall", "f1": "F1",
    "tag_accuracy": "tag accuracy",
}  # fmt: skip
MAJORITY = "majority class"
MAX_TABLE_LABELS = 12  # a larger confusion table stands in the JSON only


class TaskModel(EvaluatedModel):
    """A model under evaluation on a task: with a head, or a language model."""

    STAGES = ("task", "sft", "pretrain", "mlm")

    def check_task(self, task, folder):
        """Raise UserError where the model was trained on another task than that of a data folder."""
        own = self.content["task"]
        if own["kind"] != task.kind or set(own["labels"]) != set(task.labels):
            raise UserError(
                f"{self.path} has the task {own['kind']} with the labels {', '.join(own['labels'][:8])}, but {folder} "
                f"holds {task.kind} with {', '.join(task.labels[:8])}; name a folder of its task with --data_dir=…"
            )

    def find_repeated(self, task, folder):
        """Set `contamination`: how many of the examples were trained on. Returns a note, or None."""
        trained = self.content["settings"]["data_dir"]
        self.contamination = {"checked": [], "leaked_rows": 0, "rows": len(task.examples)}
        try:
            training = task.training if trained == folder else read_task_rows(trained, "train")
        except UserError as error:
            return f"{self.name}: whether it was trained on these texts is not known ({error})"
        count = count_repeated(task.examples, training)
        self.contamination |= {"checked": [trained], "leaked_rows": count}
        return f"{self.name}: {count} of {len(task.examples)} texts are among its training texts" if count else None


def measure_head(model, task, settings):
    """The `TaskResult` of a `TaskModel` with a head, with a progress bar."""
    _, _, classifier = open_classifier(str(model.path), settings, exact=True)
    about = {**model.about(), "way": "head", "leak": model.contamination}
    with tqdm(total=len(task.examples), unit="text", desc=model.name) as bar:
        return measure_predictor(about, head_predictor(classifier, bar.update), task, settings)


def print_task_figures(results, task):
    """Print a table with a row for each `TaskResult`, its intervals below."""
    names = TAG_FIGURES if task.kind == TAG else LABEL_FIGURES
    entries = [{**result.about, **result.figures} for result in results]
    rows = rows_with_intervals(entries, ["name", "step", "examples"], names, digits=3)
    print("\n" + text_table(["model", "step", "texts", *(TASK_HEADS[name] for name in names)], rows))
    if entries[0]["intervals"][names[0]]:
        print("below each figure: its 95% bootstrap interval over texts")


def print_worded_table(results, task, page):
    """Print the table of `TaskResult`s of language models and others; page: a Markdown file for it, or ""."""
    names = TAG_FIGURES if task.kind == TAG else LABEL_FIGURES
    rows, systems = worded_rows(results, names)
    heads = [*WORDED_HEADS, *(TASK_HEADS[name] for name in names)]
    about = [f"system prompt {number}: {system}" for number, system in enumerate(systems, start=1)]
    about.append(f"{len(task.examples)} texts; in brackets: 95% bootstrap intervals over texts")
    print("\n" + "\n".join([text_table(heads, rows), *about]))
    if page:
        write_text(page, "\n\n".join([markdown_table(heads, rows), *about]) + "\n")


def print_details(result, task):
    """Print the figures of each label and the confusion table, or those of each type of entity, of a `TaskResult`."""
    key, head = ("by_type", "type") if task.kind == TAG else ("by_label", "label")
    scores = result.figures[key]
    rows = [[name, *(each[part] for part in ("precision", "recall", "f1", "count"))] for name, each in scores.items()]
    print(f"\n{result.name}\n" + text_table([head, "precision", "recall", "F1", "there"], rows))
    if task.kind != TAG and len(task.labels) <= MAX_TABLE_LABELS:
        table = result.figures["confusion"]
        rows = [[label, *counts] for label, counts in zip(table["labels"], table["counts"], strict=True)]
        print("\n" + text_table(["is ↓ predicted →", *(label or "none" for label in table["predicted"])], rows))


def main():
    settings = load_settings(TasksSettings)
    part = settings.split or "test"
    models = [TaskModel(*found) for found in find_models(settings.ckpt, settings.out_root)]
    task = load_task(settings.data_dir, part, settings.max_samples, settings.seed)
    words = parse_label_words(settings.label_words)
    told = word_task(task_name(settings.data_dir), task.kind, task.labels, words)
    check_label_words(words, [told])
    task_systems(told, settings.systems)  # errors in them come before the slow work
    worded = [model for model in models if model.stage != "task"]
    for model in (model for model in models if model.stage == "task"):
        model.check_task(task, settings.data_dir)
        note = model.find_repeated(task, settings.data_dir) if settings.check_leak else None
        if note:
            print(f"note: {note}")
    if settings.check_leak:
        check_trained_texts(worded, task, told)

    # The models, and the majority class beside them.
    def measure(model):
        if model.stage == "task":
            return [measure_head(model, task, settings)]
        return measure_in_words(model, task, told, settings)

    measured, stopped = measure_in_turn(models, measure)
    results = [result for each in measured for result in each]
    about = {"name": MAJORITY, "step": None, "way": MAJORITY}
    majority = measure_predictor(about, most_common_predictor(task.training or task.examples), task, settings)
    for result in results:
        if result.about["way"] == "head":
            print_details(result, task)
    if worded or settings.page:
        print_worded_table([majority, *results], task, settings.page)
    else:
        print_task_figures([*results, majority], task)
    comparisons = compare_results([*results, majority], task, settings.resamples, settings.seed)
    print_comparisons(comparisons, ">", "A - B", TASK_HEADS)
    for note in too_few_notes({"intervals and comparisons": len(task.examples)}) if settings.resamples else ():
        print(note)

    if settings.csv:
        write_csv(settings.csv, PREDICTION_COLUMNS, prediction_rows([*results, majority], task))
    if settings.json:
        entries = [{**result.about, **result.figures} for result in results]
        more = {"data_dir": settings.data_dir, "part": part, "majority": majority.figures, "comparisons": comparisons}
        write_json(settings.json, combine_entries(entries, **more))
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
