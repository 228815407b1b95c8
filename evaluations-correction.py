"""Sentence correction: exact match on sentences to change and on sentences to keep, over the checkpoints of runs.

    python evaluations-correction.py --ckpt=out/correction --data_dir=data/processed_correction --json=correction.json
    python evaluations-correction.py --ckpt=out/short,out/long --data_dir=… --plot=curves.png   # a short and a long run
    python evaluations-correction.py --ckpt=out/sft/ckpt.pt,model@http://localhost:1234/v1 --questions=my.jsonl

With --shots, also the table of system prompt × fine-tuned × few-shot, by the chat form of the server (of a run's
folder, the last checkpoint):

    python evaluations-correction.py --ckpt=out/demo/last.pt,out/correction/last.pt --data_dir=… --shots=0,1,4

What is asked is the test part, or --questions. `--help` lists the settings.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.files import write_json
from minigpt.evaluation.contamination import leak_of
from minigpt.evaluation.correction import (
    GROUPS,
    MORE_TOKENS,
    NONE,
    Examples,
    chat,
    compared,
    figures,
    load_cases,
    shots_of,
    shown,
    systems_of,
    verdict,
)
from minigpt.evaluation.curves import draw_curves, runs_of
from minigpt.evaluation.models import find_models, open_answerer
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.tables import text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few, too_few_notes
from minigpt.settings.parse import load_settings

HEADS = ("all 全部", "to change 需改", "to keep 不改")
HEAD_OF = dict(zip(GROUPS, HEADS, strict=True))
COLUMNS = ("model", "step", "system", "shots", "question", "reference", "kind", "prediction", "verdict")


def ask(model, cases, examples, settings, system="", shots=0):
    """(figures, predictions) of a model asked all sentences in one way."""
    chats = [chat(case, system, examples.draw(case, shots)) for case in cases]
    params = SamplingParams.from_settings(settings)
    if model.content:  # no model in this process writes on far beyond the longest right sentence
        longest = max(len(model.tokenizer.encode(case.answer)) for case in cases)
        params = replace(params, max_new_tokens=min(params.max_new_tokens, longest + MORE_TOKENS))
    about = f"{model.name}{', system' * bool(system)}{f', {shots} examples' if shots else ''}"
    with tqdm(total=len(chats), unit="sentence", desc=about) as bar:
        predictions = model.answers(chats, params, bar.update)
    if model.stage == "pretrain":  # it goes on after its answer
        predictions = [(text.strip().splitlines() or [""])[0] for text in predictions]
    found = {**figures(cases, predictions, settings.resamples, settings.seed), "cut_prompts": 0}
    if cut := model.cut_prompts(chats, params):
        found["cut_prompts"] = cut
        print(f"note: {about}: {cut} of {len(chats)} prompts do not fit into the block; their starts are cut off")
    return found, predictions


def run_labels(models):
    """{path: what its run is called}: the folder's name, or its whole path where two have one name; addresses: ""."""
    folders = {path: path.absolute().parent for _, path in models if isinstance(path, Path)}
    by_name = {}
    for folder in folders.values():
        by_name.setdefault(folder.name, set()).add(folder)
    return {path: folder.name if len(by_name[folder.name]) == 1 else str(folder) for path, folder in folders.items()}


def last_of_runs(models, ckpt):
    """The paths that get a row in the table: those named themselves, and of a run's folder the last."""
    named = {part.strip() for part in ckpt.split(",")}
    last = {path.parent: path for _, path in models if isinstance(path, Path)}
    return {path for _, path in models if not isinstance(path, Path) or last[path.parent] == path} | {
        path for _, path in models if path in map(Path, named)
    }


def check_leak(model, cases, settings, done):
    """Say, once for each folder that models were trained on, whether its rows had what is asked; done: those so far."""
    if not settings.check_leak:
        return None
    trained_on = model.content and model.content["settings"]["data_dir"]
    if trained_on not in done:
        measured = None if settings.questions else (settings.data_dir, settings.split or "test")
        pairs = [(case.question, case.answer) for case in cases]
        done[trained_on] = leak_of(model.content, pairs=pairs, measured=measured)
        print(f"{model.name}: {done[trained_on].line()}")
    return done[trained_on].to_dict()


def measure(models, cases, pool, settings):
    """Ask every model; returns (entries, cells of the table, lines of the CSV, {name: predictions})."""
    systems, shots = systems_of(settings.systems), shots_of(settings.shots)
    in_table = last_of_runs(models, settings.ckpt) if shots else ()
    examples, runs, leaks = Examples(pool, settings.seed), run_labels(models), {}
    for case in cases:  # too few are said before anything is asked
        examples.draw(case, max(shots, default=0))
    entries, cells, lines, answered = [], [], [], {}

    def keep(model, system, shots, predictions):
        for case, prediction in zip(cases, predictions, strict=True):
            row = [case.question, case.answer, case.kind, prediction, verdict(case, prediction)]
            lines.append([model.name, model.step, system, shots, *row])

    for name, path in models:
        model = open_answerer(name, path, settings)
        leak = check_leak(model, cases, settings, leaks)
        found, predictions = ask(model, cases, examples, settings)
        keep(model, "", 0, predictions)
        answered[name] = predictions
        about = {"name": name, "stage": model.stage if model.content else None}
        where = {"checkpoint": str(path), "run": runs.get(path, ""), "step": model.step}
        entries.append({**about, **where, **found, "leak": leak})
        print(f"{name}: " + ", ".join(f"{head} {cell}" for head, cell in zip(HEADS, told(found), strict=True)))
        for system, count in [(system, n) for system in systems for n in shots] if path in in_table else ():
            cell = found
            if system or count:
                cell, predictions = ask(model, cases, examples, settings, system, count)
                keep(model, system, count, predictions)
            cells.append({**about, "system": system, "shots": count, **cell})
    return entries, cells, lines, answered


def comparisons_of(entries, cases, answered, settings):
    """Each two of the runs' last checkpoints, by the paired bootstrap."""
    last = {entry["run"] or entry["name"]: entry["name"] for entry in entries}
    pairs = combinations(last.values(), 2)
    found = [(a, b, compared(cases, answered[a], answered[b], settings.resamples, settings.seed)) for a, b in pairs]
    return [{"a": a, "b": b, **results} for a, b, results in found if results]


# What is printed


def told(found):
    """Each group's figure with its interval: "0.4321 [0.4011, 0.4633]"."""
    cells = []
    for name in GROUPS:
        value, between = found[name], found["intervals"][name]
        cells.append("–" if value is None else f"{value:.4f}")
        cells[-1] += " [{:.4f}, {:.4f}]".format(*between) if between else ""
    return cells


def print_tables(entries, cells, comparisons, resamples):
    if len(entries) > 1:
        rows = [[entry["name"], entry["step"], *told(entry)] for entry in entries]
        print("\n" + text_table(["model 模型", "step", *HEADS], rows))
    last = entries[-1]
    if last["kinds"]:
        rows = [[kind, found["pairs"], found["accuracy"]] for kind, found in last["kinds"].items()]
        print(f"\n{last['name']} by kind:\n" + text_table(["kind 类型", "sentences", "accuracy"], rows))
    print("\n" + ", ".join(f"{n} {name}" for name, n in last["verdicts"].items()) + f" ({last['name']})")
    counts = {head: last["pairs" if group == "accuracy" else f"pairs_{group}"] for group, head in HEAD_OF.items()}
    for note in too_few_notes(counts) if resamples else ():
        print(note)
    for result in comparisons:
        for group, head in HEAD_OF.items():
            if group in result:
                print("{a} against {b}, ".format(**result) + head + difference(result[group]))
    if cells:
        systems = list(dict.fromkeys(cell["system"] for cell in cells if cell["system"]))
        print("".join(f"\nsystem prompt {number}: {system}" for number, system in enumerate(systems, start=1)))
        tuned = {"sft": "yes", "pretrain": "no", None: "?"}
        rows = [
            [
                cell["name"], tuned[cell["stage"]], systems.index(cell["system"]) + 1 if cell["system"] else NONE,
                cell["shots"], *told(cell), cell["cut_prompts"],
            ]
            for cell in cells
        ]  # fmt: skip
        print(text_table(["model 模型", "fine-tuned", "system", "shots", *HEADS, "cut"], rows))


def difference(found):
    if few := too_few(found["rows"]):
        return f": {few}"
    return " {difference:+.4f} [{low:+.4f}, {high:+.4f}], better in {a_better:.1%} of the resamples".format(**found)


def main():
    settings = load_settings("correction")
    systems_of(settings.systems), shots_of(settings.shots)  # what is wrong with them is said before anything is asked
    models, (cases, pool) = find_models(settings.ckpt, settings.out_root), load_cases(settings)
    changed = sum(case.changes for case in cases)
    print(f"{len(cases)} sentences: {changed} to change, {len(cases) - changed} to keep")
    entries, cells, lines, answered = measure(models, cases, pool, settings)
    comparisons = comparisons_of(entries, cases, answered, settings)
    for text in shown(cases, answered[entries[-1]["name"]], settings.show):
        print(text)
    print_tables(entries, cells, comparisons, settings.resamples)
    if settings.csv:
        write_csv(settings.csv, COLUMNS, lines)
    about = {"questions": settings.questions, "data_dir": settings.data_dir, "part": settings.split or "test"}
    about = {"questions": settings.questions} if settings.questions else about
    alone = entries[0] if len(entries) == 1 else {}
    result = {**alone, **about, "models": entries, "table": cells, "comparisons": comparisons}
    if settings.json:
        write_json(settings.json, result)
    curves = any(len(points) > 1 for points in runs_of(result).values())
    if settings.plot or (settings.json and curves):
        png, _ = save_plot(draw_curves(result), settings.plot or Path(settings.json).with_suffix(".png"))
        print(f"drawn: {png}")


if __name__ == "__main__":
    run_script(main)
