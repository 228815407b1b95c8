"""Votes to scores: three players answer questions, a rule votes, and the leaderboard is computed.

python docs/course/scripts/12_votes.py
"""

import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data_utils import open_rows
from minigpt.arena.leaderboard import compute_standings
from minigpt.evaluation.prompts import pairs_of_rows
from minigpt.inference.engine import open_generator
from minigpt.inference.params import SamplingParams
from minigpt.metrics import rouge_l
from minigpt.settings.stages import SampleSettings

COUNT = 60  # questions
# One model at three temperatures is three players: a score belongs to a model with its settings.
PLAYERS = {"temperature 0": 0.0, "temperature 1": 1.0, "temperature 2": 2.0}


def read_questions():
    """[(question, reference answer)] about subjects that no training question was about."""
    rows, meta = open_rows("data/processed_demo_sft", "test")
    chosen = rows[:: max(1, len(rows) // COUNT)][:COUNT]
    return pairs_of_rows(chosen, meta, generator.tokenizer)


def vote(left, right, reference):
    """The rule that votes here, in place of a person: the answer nearer to the reference wins."""
    scores = [rouge_l(answer, reference)[2] for answer in (left, right)]
    return "tie" if scores[0] == scores[1] else "left" if scores[0] > scores[1] else "right"


generator = open_generator("out/demo_sft/ckpt.pt", SampleSettings())[2]
questions = read_questions()
answers = {
    name: generator.generate(
        [q for q, _ in questions], SamplingParams(temperature=t, top_k=0, max_new_tokens=48, seed=1)
    )
    for name, t in PLAYERS.items()
}
names = list(PLAYERS)
votes = []
for i, (question, reference) in enumerate(questions):
    for a, b in ((0, 1), (0, 2), (1, 2)):
        left, right = names[a], names[b]
        result = vote(answers[left][i], answers[right][i], reference)
        votes.append({"prompt": question, "left": left, "right": right, "result": result})

for a, b in ((0, 1), (0, 2), (1, 2)):
    counted = Counter(v["result"] for v in votes if (v["left"], v["right"]) == (names[a], names[b]))
    won, lost, tied = (counted[result] for result in ("left", "right", "tie"))
    print(f"{names[a]} against {names[b]}: {won} won, {lost} lost, {tied} tied")
    # With two players alone the score follows from the share of wins, a tie being half of one.
    share = (won + tied / 2) / len(questions)
    if 0 < share < 1:
        print(
            f"   share {share:.3f}: {400 * math.log10(share / (1 - share)):+.0f} points, if these were the only votes"
        )
print()
for few in (votes[:30], votes):
    print(f"after {len(few)} votes")
    for standing in compute_standings(few):
        print(f"   {standing.model}: {standing.score:.0f}  (95% interval {standing.low:.0f} to {standing.high:.0f})")
