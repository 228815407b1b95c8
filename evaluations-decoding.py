"""Measures how sampling settings change a model's answers: temperature, top_k, top_p, penalties, each varied alone.

    python evaluations-decoding.py --data_dir=data/processed_sft          # the newest checkpoint, the test questions
    python evaluations-decoding.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl --sweep=temperature,top_p
    python evaluations-decoding.py --max_samples=200 --temperature=0.7    # the other settings are varied from here

Rouge-L F and exact match compare the answers with the references. Repetition and distinct-n measure how much answers
repeat themselves and each other. The result is a table and a plot, beside the checkpoint (decoding.png) or at --plot.
All questions are answered some twenty times.
"""

from pathlib import Path

from tqdm import tqdm

from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.evaluation.asking import load_evaluation, note_cut_prompts, require_one_model
from minigpt.evaluation.contamination import check_models
from minigpt.evaluation.decoding_sweep import SWEEP_NOTES, draw_sweep, run_sweep, sweep_size, sweep_table
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.prompts import prompt_source
from minigpt.evaluation.tables import text_table, write_csv
from minigpt.inference.params import SamplingParams
from minigpt.metrics import too_few_notes
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import DecodingSettings


def main():
    settings = load_settings(DecodingSettings)
    params, names = SamplingParams.from_settings(settings), settings.sweep
    if not names:
        raise UserError("--sweep names nothing to vary; such as --sweep=temperature,top_p")
    models, pairs = load_evaluation(settings)
    model = require_one_model(models, "evaluations-decoding.py")
    if settings.check_leak:
        check_models(models, pairs, prompt_source(settings, model))
    opened = model.open(settings)
    note_cut_prompts(opened, pairs, params)
    with tqdm(total=sweep_size(params, names) * len(pairs), unit="prompt", desc="generate") as bar:
        rows = run_sweep(opened, pairs, params, names, bar.update, settings.resamples, settings.seed)
    print("\n".join([f"{model.path}: {len(pairs)} questions", "", text_table(*sweep_table(rows)), "", SWEEP_NOTES]))
    for note in too_few_notes({"answers": min(row["pairs"] for row in rows)}) if settings.resamples else ():
        print(note)
    if failed := max(row["failed"] for row in rows):
        print(f"note: up to {failed} questions of a row have no answer, and its figures do not count them")
    if settings.csv:
        write_csv(settings.csv, list(rows[0]), [list(row.values()) for row in rows])
    if settings.json:
        write_json(settings.json, {**model.about(), "pairs": len(pairs), "leak": model.contamination, "rows": rows})
    folder = model.path.parent if isinstance(model.path, Path) else Path(settings.out_root)
    png, svg = save_plot(draw_sweep(rows), settings.plot or folder / "decoding.png")
    print(f"plot: {png}, {svg}")


if __name__ == "__main__":
    run_script(main)
