"""Rouge-L over characters, and exact match: how near a checkpoint's text comes to the reference.

    python evaluations-RougeL.py --data_dir=data/processed_sft            # the newest checkpoint, the test questions
    python evaluations-RougeL.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl
    python evaluations-RougeL.py --ckpt=out/pretrain/ckpt.pt --data_dir=data/processed

A fine-tuned checkpoint is asked questions; a pretrained one continues articles: an article's first
clause is the prompt, the rest of it the reference.
"""

import random
import re
from pathlib import Path

from tqdm import tqdm

from configurator import load_settings
from corpus import Problems, read_questions
from data_utils import check_rows, open_rows, read_meta, split_row
from errors import UserError, run_script
from files import write_json
from generation import open_generator
from metrics import rouge_l, score_pairs
from sampling import SamplingParams

CLAUSE_END = re.compile(r"[，。；：！？]")


def pairs_of_rows(rows, meta, tokenizer):
    """[(prompt, reference)] of prepared rows: question and answer, or an article's first clause and its rest."""
    pairs, special = [], meta["special_ids"]
    for row in rows:
        if meta["stage"] == "sft":
            pairs.append(tuple(map(tokenizer.decode, split_row(row, special))))
            continue
        text = tokenizer.decode(row[row != special["pad"]])
        clause = CLAUSE_END.search(text)
        if clause and text[clause.end() :]:
            pairs.append((text[: clause.end()], text[clause.end() :]))
    return pairs


def pairs_of_file(path):
    """[(question, answer)] of a jsonl file; rows that cannot be used are counted and shown."""
    if not Path(path).is_file():
        raise UserError(f"{path} is not there; name a jsonl of question and answer with --questions=…")
    problems = Problems()
    pairs = [(qa.question, qa.answer) for _, qa in read_questions([path], problems)]
    for place in problems.places:
        print(f"  skipped: {place}")
    return pairs


def load_pairs(settings, content, tokenizer):
    """[(prompt, reference)] by the settings, at most max_samples of them, drawn by seed."""
    if settings.questions:
        pairs = pairs_of_file(settings.questions)
    else:
        part = settings.split or ("test" if content["stage"] == "sft" else "val")
        meta = read_meta(settings.data_dir)
        check_rows(settings.data_dir, meta, content)
        pairs = pairs_of_rows(*open_rows(settings.data_dir, part), tokenizer)
    if not pairs:
        raise UserError("no question could be read")
    if 0 < settings.max_samples < len(pairs):
        pairs = random.Random(settings.seed).sample(pairs, settings.max_samples)
    return pairs


def main():
    settings = load_settings("rouge")
    path, content, generator = open_generator(settings.ckpt, settings, exact=True)
    prompts, references = zip(*load_pairs(settings, content, generator.tokenizer), strict=True)
    params = SamplingParams.from_settings(settings)
    if cut := sum(generator.new_stream(prompt, params).prompt_cut for prompt in prompts):
        print(f"note: {cut} prompts leave no room for an answer in the model's block; only their ends are used")
    with tqdm(total=len(prompts), unit="prompt", desc="generate") as bar:
        predictions = generator.generate(prompts, params, progress=bar.update)
    for prompt, reference, prediction in list(zip(prompts, references, predictions, strict=True))[: settings.show]:
        recall, precision, f = rouge_l(prediction, reference)
        print(f"问题 question:   {prompt}\n答案 reference:  {reference}\n预测 prediction: {prediction}")
        print(f"Rouge-L recall {recall:.4f}, precision {precision:.4f}, F {f:.4f}\n")
    scores = score_pairs(predictions, references)
    print(
        f"{path}: {scores['pairs']} pairs, Rouge-L recall {scores['rouge_l_recall']:.4f}, precision "
        f"{scores['rouge_l_precision']:.4f}, F {scores['rouge_l_f']:.4f}, exact match {scores['exact_match']:.4f}"
    )
    if settings.json:
        write_json(settings.json, {"checkpoint": str(path), **scores})


if __name__ == "__main__":
    run_script(main)
