"""How near what models write comes to the reference: Rouge-L, exact match, character F1, the numbers told.

    python evaluations-RougeL.py --data_dir=data/processed_sft            # the newest checkpoint, the test questions
    python evaluations-RougeL.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl
    python evaluations-RougeL.py --ckpt=out/pretrain/ckpt.pt --data_dir=data/processed
    python evaluations-RougeL.py --ckpt=out/a,out/b/ckpt.pt,http://127.0.0.1:5000/v1 --data_dir=data/processed_sft

A fine-tuned checkpoint is asked questions; a pretrained one continues articles: an article's first clause is the
prompt, the rest of it the reference. (Over --questions it continues the question.) Several are asked the same, and
compared by the paired bootstrap: a run's folder stands for every checkpoint in it, an address for a model behind an
API.

Rouge-L is over characters (with --words also over words), and recall, precision and F are told apart. The figures that
the original report prints beside its answers (0.75, 0.22) are close to the recall of its pairs, not to F.
"""

import math

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.evaluation.asking import ask, clipped, comparisons, ends_of, find_leaks, look, printable
from minigpt.evaluation.tables import text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few, too_few_notes
from minigpt.settings.parse import load_settings

COLUMNS = {
    "rouge_l_recall": "Rouge-L recall", "rouge_l_precision": "precision", "rouge_l_f": "F",
    "rouge_l_words_recall": "words recall", "rouge_l_words_precision": "precision", "rouge_l_words_f": "F",
    "char_f1": "char F1", "exact_match": "exact match", "numbers": "numbers",
}  # fmt: skip
SUMMARY = {**dict(list(COLUMNS.items())[:3]), "exact_match": "exact match"}
LISTED_MODELS = 3  # the worst and the best answers are shown of so many, else of the best model


def ask_all(entrants, pairs, params, settings):
    """([Asked], whether Ctrl-C ended it): each entrant in turn; one that fails costs the others nothing."""
    asked = []
    for entrant in entrants:
        try:
            model = entrant.open(settings)
            if cut := model.cut_prompts([prompt for prompt, _ in pairs], params):
                print(f"note: {cut} prompts leave no room for an answer in the model's block; only their ends are used")
            with tqdm(total=len(pairs), unit="prompt", desc=entrant.name) as bar:
                asked.append(ask(entrant, model, pairs, params, settings.words, bar.update))
        except UserError as error:
            if len(entrants) == 1:
                raise
            print(f"note: {error}; it is left out")
        except KeyboardInterrupt:
            if not asked:
                raise
            print(f"stopped; the figures are of the {len(asked)} of {len(entrants)} models that were asked")
            return asked, True
    if not asked:
        raise UserError("no model answered")
    return asked, False


def print_pairs(asked, pairs, count):
    """Question, reference, and each model's prediction with its score."""
    for i, (prompt, reference) in enumerate(pairs[:count]):
        print(f"问题 question:   {printable(prompt)}\n答案 reference:  {printable(reference)}")
        for one in asked:
            who = f" ({one.name})" if len(asked) > 1 else ""
            if one.predictions[i] is None:
                print(f"预测 prediction{who}: no answer came")
                continue
            recall, precision, f = (one.scores[f"rouge_l_{name}"][i] for name in ("recall", "precision", "f"))
            print(f"预测 prediction{who}: {printable(one.predictions[i])}")
            print(f"Rouge-L recall {recall:.4f}, precision {precision:.4f}, F {f:.4f}")
        print()


def print_ends(asked, pairs):
    """The worst and the best answers by F, a line each, where there are many."""
    for one in asked:
        scores = one.scores["rouge_l_f"]
        for what, places in zip(("worst", "best"), ends_of(scores), strict=True):
            if not places:
                continue
            alike = scores[places[0]] == scores[places[-1]]
            more = f", of {(scores == scores[places[0]]).sum()} with {scores[places[0]]:.4f}" if alike else ""
            print(f"{one.name}: the {what} {len(places)} by F{more}")
            for i in places:
                prompt, reference, prediction = map(clipped, (*pairs[i], one.predictions[i]))
                print(f"  {scores[i]:.4f}  问 {prompt}  答 {reference}  预测 {prediction}")
            print()


def print_figures(entries, resamples):
    """A line a model, then a table of the figures with their intervals below them."""
    for entry in entries:
        said = (f"{name} {entry[key]:.4f}" for key, name in SUMMARY.items())
        failed = f", {entry['failed']} without an answer, which no figure counts" if entry["failed"] else ""
        print(f"{entry['checkpoint']}: {entry['pairs']} pairs, {', '.join(said)}{failed}")
    names, rows = [key for key in COLUMNS if key in entries[0]], []
    for entry in entries:
        edges = (entry["intervals"][name] for name in names)
        step = "" if entry["step"] is None else entry["step"]
        rows.append([entry["name"], step, entry["pairs"], *(entry[name] for name in names)])
        rows.append(["", "", "", *("{:.3f}–{:.3f}".format(*edge) if edge else "" for edge in edges)])
    rows = [row for row in rows if any(cell != "" for cell in row)]
    print("\n" + text_table(["model", "step", "pairs", *(COLUMNS[name] for name in names)], rows))
    with_numbers = ", ".join(sorted({str(entry["pairs_with_numbers"]) for entry in entries}))
    print(f"numbers: whether just the reference's numbers are told, over the {with_numbers} pairs that have any")
    if entries[0]["intervals"]["rouge_l_f"]:
        print("below each figure its 95% interval by the bootstrap over pairs")
    counts = {f"answers of {entry['name']}": entry["pairs"] for entry in entries}
    counts |= {f"numbers of {entry['name']}": entry["pairs_with_numbers"] for entry in entries}
    for note in too_few_notes(counts) if resamples else ():
        print(note)


def print_comparisons(found):
    """Whether one model is better than another, by the same pairs."""
    for note in too_few_notes({f"{c['a']} > {c['b']}": c["rows"] for c in found}):
        print(note)
    found = [c for c in found if not too_few(c["rows"])]
    if not found:
        return
    rows = []
    for c in found:
        figures = f"{c['difference']:+.4f}", f"{c['low']:+.3f}…{c['high']:+.3f}", f"{c['a_better']:.1%}"
        rows.append([f"{c['a']} > {c['b']}", COLUMNS[c["figure"]], *figures, c["rows"]])
    print("\n" + text_table(["A > B", "figure", "A - B", "95% interval", "A better in", "pairs"], rows))
    print("A better in: share of resamples with A above B (paired bootstrap); from 5% to 95%, neither is surely better")


def write_answers(path, asked, pairs):
    """A row of CSV for each model and pair."""
    names = list(asked[0].scores)
    rows = []
    for one in asked:
        columns = (one.scores[name].tolist() for name in names)
        for pair, prediction, *scores in zip(pairs, one.predictions, *columns, strict=True):
            rows.append([one.name, *pair, prediction, *(None if math.isnan(score) else score for score in scores)])
    write_csv(path, ["model", "prompt", "reference", "prediction", *names], rows)


def main():
    settings = load_settings("rouge")
    params = SamplingParams.from_settings(settings)
    entrants, pairs = look(settings)
    if settings.check_leak:
        print("\n".join(find_leaks(entrants, pairs, settings)))
    asked, stopped = ask_all(entrants, pairs, params, settings)
    entries = [one.figures(settings.resamples, settings.seed) for one in asked]
    found = comparisons(asked, settings.resamples, settings.seed)
    print_pairs(asked, pairs, settings.show)
    best = max(range(len(asked)), key=lambda i: entries[i]["rouge_l_f"])
    print_ends(asked if len(asked) <= LISTED_MODELS else [asked[best]], pairs)
    print_figures(entries, settings.resamples)
    print_comparisons(found)
    if settings.csv:
        write_answers(settings.csv, asked, pairs)
    if settings.json:
        alone = entries[0] if len(entries) == 1 else {}
        write_json(settings.json, {**alone, "models": entries, "comparisons": found})
    if stopped:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
