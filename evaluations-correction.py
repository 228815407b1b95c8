"""Measures sentence correction over runs' checkpoints: exact match on sentences to change and to keep, and edits.

    python evaluations-correction.py --ckpt=out/correction --data_dir=data/processed_correction --json=correction.json
    python evaluations-correction.py --ckpt=out/short,out/long --data_dir=… --plot=curves.png   # a short and a long run
    python evaluations-correction.py --ckpt=out/sft/ckpt.pt,model@http://localhost:1234/v1 --questions=my.jsonl

With --shots it also makes the table of system prompt × model × number of examples, in the server's chat format. A run's
folder is in this table with its last checkpoint:

    python evaluations-correction.py --ckpt=out/demo/last.pt,out/correction/last.pt --data_dir=… --shots=0,1,4

The sentences are those of the test part, or of --questions. Where a row has several corrections, such as {"source",
"corrections": […]}, each of them is right. `--help` lists the settings.
"""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.files import write_json
from minigpt.evaluation.asking import EvaluatedModel, combine_entries
from minigpt.evaluation.checkpoint_plots import draw_curves, runs_of
from minigpt.evaluation.contamination import check_models
from minigpt.evaluation.correction import (
    CORRECTION_GROUPS,
    NO_SYSTEM_PROMPT,
    ExampleSampler,
    build_chat,
    compare_corrections,
    correction_figures,
    failures_first,
    judge_correction,
    load_cases,
    parse_system_prompts,
)
from minigpt.evaluation.models import find_models
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.tables import format_cell, text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few, too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import CorrectionSettings

CORRECTION_HEADS = ("all 全部", "to change 需改", "to keep 不改")
FIGURE_HEADS = (*CORRECTION_HEADS, "edit precision", "edit recall", "edit F0.5", "unchanged 原样")
HEAD_OF = dict(zip(CORRECTION_GROUPS, CORRECTION_HEADS, strict=True))
CORRECTION_COLUMNS = ("model", "step", "system", "shots", "question", "reference", "kind", "prediction", "verdict")
MARGIN_TOKENS = 8  # beyond the longest correct sentence: an answer that is longer is wrong already


def measure_model(model, opened, cases, sampler, settings, system="", shots=0):
    """(figures, predictions) of an `EvaluatedModel` with a system prompt and a number of examples.

    opened: what `model.open` returned.
    """
    chats = [build_chat(case, system, sampler.draw(case, shots)) for case in cases]
    params = SamplingParams.from_settings(settings)
    if model.content:
        longest = max(len(opened.generator.tokenizer.encode(answer)) for case in cases for answer in case.answers)
        params = replace(params, max_new_tokens=min(params.max_new_tokens, longest + MARGIN_TOKENS))
    about = f"{model.name}{', system' * bool(system)}{f', {shots} examples' if shots else ''}"
    with tqdm(total=len(chats), unit="sentence", desc=about) as bar:
        predictions = opened.answers(chats, params, bar.update)
    if model.stage == "pretrain":  # it continues after its answer: keep the first line
        predictions = [(text.strip().splitlines() or [""])[0] for text in predictions]
    figures = {**correction_figures(cases, predictions, settings.resamples, settings.seed), "cut_prompts": 0}
    if cut := opened.cut_prompts(chats, params):
        figures["cut_prompts"] = cut
        print(f"note: {about}: {cut} of {len(chats)} prompts do not fit into the block; their starts are cut off")
    return figures, predictions


def run_labels(models):
    """{path: label of its run}: the folder's name, or the whole path if two folders have the same name."""
    folders = {model.path: model.path.absolute().parent for model in models if isinstance(model.path, Path)}
    names = Counter(folder.name for folder in set(folders.values()))
    return {path: folder.name if names[folder.name] == 1 else str(folder) for path, folder in folders.items()}


def table_paths(models, ckpt):
    """The paths with a row in the table of shots: those that --ckpt names, and the last one of a run's folder."""
    last = {model.path if model.remote else model.path.parent: model.path for model in models}
    return {*map(Path, ckpt), *last.values()}


def measure_all(models, cases, pool, settings):
    """Measure every model; returns (entries, cells of the table, rows of the CSV, {name: predictions})."""
    systems, shots = parse_system_prompts(settings.systems), list(dict.fromkeys(settings.shots))
    in_table = table_paths(models, settings.ckpt) if shots else ()
    sampler, runs = ExampleSampler(pool, settings.seed), run_labels(models)
    for case in cases:  # so that too few examples are an error before any model is asked
        sampler.draw(case, max(shots, default=0))
    entries, cells, csv_rows, predictions_of = [], [], [], {}

    def add_csv_rows(model, system, shots, predictions):
        for case, prediction in zip(cases, predictions, strict=True):
            row = [case.question, " | ".join(case.answers), case.kind, prediction, judge_correction(case, prediction)]
            csv_rows.append([model.name, model.step, system, shots, *row])

    for model in models:
        name, opened = model.name, model.open(settings)
        figures, predictions = measure_model(model, opened, cases, sampler, settings)
        add_csv_rows(model, "", 0, predictions)
        predictions_of[name] = predictions
        about = {"name": name, "stage": model.stage if model.content else None}
        run = {"run": runs.get(model.path, "")}
        entries.append({**model.about(), **about, **run, **figures, "leak": model.contamination})
        shown = zip(FIGURE_HEADS, figure_cells(figures), strict=True)
        print(f"{name}: " + ", ".join(f"{head} {format_cell(cell)}" for head, cell in shown))
        for system, count in [(system, n) for system in systems for n in shots] if model.path in in_table else ():
            cell = figures
            if system or count:
                cell, predictions = measure_model(model, opened, cases, sampler, settings, system, count)
                add_csv_rows(model, system, count, predictions)
            cells.append({**about, "system": system, "shots": count, **cell})
    return entries, cells, csv_rows, predictions_of


def compare_runs(entries, cases, predictions_of, settings):
    """The paired bootstrap of every two runs' last checkpoints."""
    last = {entry["run"] or entry["name"]: entry["name"] for entry in entries}
    comparisons = []
    for a, b in combinations(last.values(), 2):
        predictions = predictions_of[a], predictions_of[b]
        if results := compare_corrections(cases, *predictions, settings.resamples, settings.seed):
            comparisons.append({"a": a, "b": b, **results})
    return comparisons


def figure_cells(figures):
    """In the order of FIGURE_HEADS: each group's accuracy with its interval, such as "0.4321 [0.4011, 0.4633]"; of the
    edits precision, recall and F0.5; the share of answers that change nothing."""
    cells = []
    for group in CORRECTION_GROUPS:
        value, edges = figures[group], figures["intervals"][group]
        cells.append("–" if value is None else f"{value:.4f}")
        cells[-1] += " [{:.4f}, {:.4f}]".format(*edges) if edges else ""
    edits = figures["edits"]
    return [*cells, edits["precision"], edits["recall"], edits["f0_5"], figures["unchanged"]]


def print_tables(entries, cells, comparisons, resamples):
    if len(entries) > 1:
        rows = [[entry["name"], entry["step"], *figure_cells(entry)] for entry in entries]
        print("\n" + text_table(["model 模型", "step", *FIGURE_HEADS], rows))
    last = entries[-1]
    if last["kinds"]:
        rows = [[kind, figures["pairs"], figures["accuracy"]] for kind, figures in last["kinds"].items()]
        print(f"\n{last['name']} by kind:\n" + text_table(["kind 类型", "sentences", "accuracy"], rows))
    print("\n" + ", ".join(f"{n} {name}" for name, n in last["verdicts"].items()) + f" ({last['name']})")
    counts = {head: last["pairs" if group == "accuracy" else f"pairs_{group}"] for group, head in HEAD_OF.items()}
    for note in too_few_notes(counts) if resamples else ():
        print(note)
    for result in comparisons:
        for group, head in HEAD_OF.items():
            if group in result:
                print("{a} against {b}, ".format(**result) + head + difference_text(result[group]))
    if cells:
        print_shots_table(cells)


def print_shots_table(cells):
    """Print the table of system prompt × model × number of examples."""
    systems = list(dict.fromkeys(cell["system"] for cell in cells if cell["system"]))
    print("".join(f"\nsystem prompt {number}: {system}" for number, system in enumerate(systems, start=1)))
    tuned = {"sft": "yes", "pretrain": "no", None: "?"}
    rows = []
    for cell in cells:
        system = systems.index(cell["system"]) + 1 if cell["system"] else NO_SYSTEM_PROMPT
        about = cell["name"], tuned[cell["stage"]], system, cell["shots"]
        rows.append([*about, *figure_cells(cell), cell["cut_prompts"]])
    print(text_table(["model 模型", "fine-tuned", "system", "shots", *FIGURE_HEADS, "cut"], rows))


def difference_text(comparison):
    if reason := too_few(comparison["rows"]):
        return f": {reason}"
    text = " {difference:+.4f} [{low:+.4f}, {high:+.4f}], better in {a_better:.1%} of the resamples"
    return text.format(**comparison)


def main():
    settings = load_settings(CorrectionSettings)
    parse_system_prompts(settings.systems)  # errors in them come before the slow work
    models = [EvaluatedModel(*found) for found in find_models(settings.ckpt, settings.out_root)]
    cases, pool = load_cases(settings)
    changed = sum(case.changes for case in cases)
    print(f"{len(cases)} sentences: {changed} to change, {len(cases) - changed} to keep")
    part = settings.split or "test"
    if settings.check_leak:
        pairs = [(case.question, case.answer) for case in cases]
        check_models(models, pairs, None if settings.questions else (settings.data_dir, part))
    entries, cells, csv_rows, predictions_of = measure_all(models, cases, pool, settings)
    comparisons = compare_runs(entries, cases, predictions_of, settings)
    for text in failures_first(cases, predictions_of[entries[-1]["name"]], settings.show):
        print(text)
    print_tables(entries, cells, comparisons, settings.resamples)
    if settings.csv:
        write_csv(settings.csv, CORRECTION_COLUMNS, csv_rows)
    about = {"questions": settings.questions}
    about |= {} if settings.questions else {"data_dir": settings.data_dir, "part": part}
    result = combine_entries(entries, **about, table=cells, comparisons=comparisons)
    if settings.json:
        write_json(settings.json, result)
    has_curves = any(len(points) > 1 for points in runs_of(result).values())
    if settings.plot or (settings.json and has_curves):
        png, _ = save_plot(draw_curves(result), settings.plot or Path(settings.json).with_suffix(".png"))
        print(f"drawn: {png}")


if __name__ == "__main__":
    run_script(main)
