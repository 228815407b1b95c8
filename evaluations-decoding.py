"""What decoding does to answers: temperature, top_k, top_p and penalties, each varied alone, as a table and a plot.

    python evaluations-decoding.py --data_dir=data/processed_sft          # the newest checkpoint, the test questions
    python evaluations-decoding.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl --sweep=temperature,top_p
    python evaluations-decoding.py --max_samples=200 --temperature=0.7    # the others are varied from this

Rouge-L F and exact match say how near the answers come, repetition and distinct-n how much they repeat themselves and
each other. The plot goes beside the checkpoint (decoding.png), or to --plot. All questions are asked some twenty times.
"""

from pathlib import Path

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.evaluation.asking import find_leaks, look, only_one
from minigpt.evaluation.decoding_sweep import NOTES, save_sweep, sweep, sweep_size, table
from minigpt.evaluation.tables import text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few_notes
from minigpt.settings.parse import load_settings


def main():
    settings = load_settings("decoding")
    params, names = SamplingParams.from_settings(settings), settings.sweep
    if not names:
        raise UserError("--sweep names nothing to vary; such as --sweep=temperature,top_p")
    entrants, pairs = look(settings)
    entrant = only_one(entrants, "evaluations-decoding.py")
    leaks = find_leaks(entrants, pairs, settings) if settings.check_leak else []
    model = entrant.open(settings)
    if cut := model.cut_prompts([prompt for prompt, _ in pairs], params):
        print(f"note: {cut} prompts leave no room for an answer in the model's block; only their ends are used")
    with tqdm(total=sweep_size(params, names) * len(pairs), unit="prompt", desc="generate") as bar:
        rows = sweep(model, pairs, params, names, bar.update, settings.resamples, settings.seed)
    print("\n".join([*leaks, f"{entrant.path}: {len(pairs)} questions", "", text_table(*table(rows)), "", NOTES]))
    for note in too_few_notes({"answers": min(row["pairs"] for row in rows)}) if settings.resamples else ():
        print(note)
    if failed := max(row["failed"] for row in rows):
        print(f"note: up to {failed} questions a row got no answer, and are counted in no figure of it")
    if settings.csv:
        write_csv(settings.csv, list(rows[0]), [list(row.values()) for row in rows])
    if settings.json:
        about = {"checkpoint": str(entrant.path), "name": entrant.name, "step": entrant.step, "pairs": len(pairs)}
        write_json(settings.json, {**about, "leak": entrant.leak and entrant.leak.to_dict(), "rows": rows})
    folder = entrant.path.parent if isinstance(entrant.path, Path) else Path(settings.out_root)
    png, svg = save_sweep(rows, settings.plot or folder / "decoding.png")
    print(f"plot: {png}, {svg}")


if __name__ == "__main__":
    run_script(main)
