"""DPO's loss of one pair, by hand.

    python docs/course/scripts/09_by_hand.py out/course/dpo/last.pt 5

Prints the log-probabilities of a pair of out/course/pairs.jsonl (here the fifth) under the reference (the model that
tuning begins with) and under the given model, and the loss that follows from these four numbers.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from data_utils import answer_mark
from minigpt.inference.engine import open_converted
from minigpt.settings.stages import SampleSettings
from minigpt.tuning.logprobs import target_logprobs

REFERENCE, PAIRS = "out/demo_sft/ckpt.pt", "out/course/pairs.jsonl"
BETA = 0.3


def answer_logprob(model, tokenizer, question, answer):
    """log p(answer | question) in nats: the sum over the answer's tokens and EOT."""
    special = tokenizer.special_ids()
    prompt = tokenizer.encode(question) + answer_mark(special)
    ids = torch.tensor([prompt + tokenizer.encode(answer) + [special["eot"]]])
    x, y = ids[:, :-1], ids[:, 1:]
    is_answer = torch.arange(y.shape[1])[None] >= len(prompt) - 1  # the targets behind the mark
    with torch.no_grad():
        return float(target_logprobs(model, x, y, is_answer).sum())


def main():
    with open(PAIRS, encoding="utf-8") as file:
        pair = json.loads(file.readlines()[int(sys.argv[2]) - 1])
    print(f"question   {pair['prompt']}\nchosen     {pair['chosen']}\nrejected   {pair['rejected']}\n")

    # Four log-probabilities: two answers under two models.
    settings = SampleSettings(dtype="float32")
    gains = {}
    print("log p        reference     model      gain")
    models = [open_converted(path, settings)[2:4] for path in (REFERENCE, sys.argv[1])]
    for name in ("chosen", "rejected"):
        before, after = (answer_logprob(*model, pair["prompt"], pair[name]) for model in models)
        gains[name] = after - before
        print(f"{name:10}  {before:10.3f}  {after:8.3f}  {gains[name]:+8.3f}")

    margin = BETA * (gains["chosen"] - gains["rejected"])
    probability = 1 / (1 + math.exp(-margin))
    print(f"\nmargin = {BETA} × ({gains['chosen']:.3f} - ({gains['rejected']:.3f})) = {margin:.3f}")
    print(f"p(chosen is better) = sigmoid(margin) = {probability:.3f}")
    print(f"loss = -log {probability:.3f} = {-math.log(probability):.3f}")


if __name__ == "__main__":
    main()
