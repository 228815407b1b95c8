"""Which model is better: Bradley-Terry scores of votes, with intervals, and who met whom.

The chance that a beats b is 1 / (1 + exp(b - a)) of their strengths (Bradley and Terry 1952); a tie, or "both bad", is
half a win for each. Strengths are shown as Elo's points: 400 more is ten times the odds, 1000 is the mean.
"""

from dataclasses import dataclass

import numpy as np

POINTS = 400 / np.log(10)  # of a nat of strength
MEAN = 1000.0
PRIOR = 0.02  # precision of a normal prior on strengths, in 1 / nats²: finite scores also for who never lost
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
STEPS, LONGEST_STEP, CLOSE = 100, 2.0, 1e-9  # of Newton's method, in nats
MANY = 40  # models
UNSEEN = 0.5


@dataclass(frozen=True)
class Standing:
    """A model's line of the board. score, low, high: points; wins, losses, ties: games; automatic: games of them
    that matches decided; win_rate: with ties as halves, 0 to 1."""

    model: str
    score: float
    low: float
    high: float
    games: int
    wins: int
    losses: int
    ties: int
    automatic: int

    @property
    def win_rate(self):
        return (self.wins + self.ties / 2) / self.games


def countable(votes, kind="all"):
    """The votes that count. kind: "vote" (people's), "match" (automatic) or "all".

    Of automatic votes on one question and one pair of models only the newest counts: a match that is run again adds
    nothing, but takes the place of the one before. No model meets itself.
    """
    kept = {}
    for number, vote in enumerate(votes):
        is_match = vote.get("kind") == "match"
        if vote["left"] == vote["right"] or (kind != "all" and is_match != (kind == "match")):
            continue
        same = (str(vote.get("prompt")), *sorted((vote["left"], vote["right"]))) if is_match else number
        kept.pop(same, None)
        kept[same] = vote
    return list(kept.values())


def strengths(wins):
    """Strengths (…, n) in nats, their mean 0, from wins (…, n, n): how often row beat column, ties as halves.

    The most likely ones under Bradley and Terry's model with a weak prior, by Newton's method, for any number of tables
    at once.
    """
    n = wins.shape[-1]
    games = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))
        slope = (wins - games * chance).sum(-1) - PRIOR * theta
        weight = games * chance * (1 - chance)
        curve = np.eye(n) * (weight.sum(-1) + PRIOR)[..., None] - weight
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        # Far from the top Newton overshoots; a shortened step still climbs.
        step *= np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
        theta = theta + step
        if np.abs(step).max(initial=0) < CLOSE:
            break
    return theta - theta.mean(-1, keepdims=True)


def standings(votes, seed=0):
    """[Standing], the best first, of countable votes. Intervals by resampling the votes (bootstrap, Efron 1979)."""
    models = sorted({vote[side] for vote in votes for side in ("left", "right")})
    if not models:
        return []
    tally = head_to_head(votes, models)
    left, right = np.nonzero(np.triu(tally.sum(-1) + tally.sum(-1).T))
    counts = np.stack([tally[left, right, 0], tally[right, left, 0], tally[left, right, 1]], -1).astype(float)
    # Half a vote either way in what is drawn from: else thirty wins of thirty would seem certain to the last point.
    chances = counts + np.array([UNSEEN, UNSEEN, 0])
    share, size = (chances / chances.sum()).ravel(), resamples(len(models))
    drawn = np.random.default_rng(seed).multinomial(len(votes), share, size=size)
    wins = tables(left, right, np.concatenate([counts[None], drawn.reshape(-1, *counts.shape)]), len(models))
    scores = MEAN + POINTS * strengths(wins)
    low, high = np.percentile(scores[1:], INTERVAL, axis=0)
    lines = []
    for i, model in enumerate(models):
        won, lost, tied = tally[i, :, 0].sum(), tally[:, i, 0].sum(), tally[i, :, 1].sum()
        automatic = sum(v.get("kind") == "match" and model in (v["left"], v["right"]) for v in votes)
        # A resampled interval may leave the score itself out where games are few.
        span = min(low[i], scores[0, i]), max(high[i], scores[0, i])
        counted = map(int, (won + lost + tied, won, lost, tied, automatic))
        lines.append(Standing(model, float(scores[0, i]), *map(float, span), *counted))
    return sorted(lines, key=lambda line: -line.score)


def tables(left, right, counts, n):
    """wins (samples, n, n), ties as halves, of pairs (left[k], right[k]), each once, and counts (samples, pairs, 3): of
    the left's wins, the right's, and ties."""
    wins = np.zeros((len(counts), n, n))
    wins[:, left, right] = counts[..., 0] + counts[..., 2] / 2
    wins[:, right, left] = counts[..., 1] + counts[..., 2] / 2
    return wins


def resamples(n):
    """How often the votes on n models are drawn again: RESAMPLES, less where solving for so many takes seconds."""
    return max(100, min(RESAMPLES, round(RESAMPLES * (MANY / max(n, 1)) ** 3)))


def head_to_head(votes, models):
    """int (n, n, 2): how often row beat column, and how often the two tied, in the order of `models`."""
    place = {model: i for i, model in enumerate(models)}
    tally = np.zeros((len(models), len(models), 2), dtype=int)
    for vote in votes:
        i, j = place[vote["left"]], place[vote["right"]]
        if vote["result"] == "left":
            tally[i, j, 0] += 1
        elif vote["result"] == "right":
            tally[j, i, 0] += 1
        else:
            tally[i, j, 1] += 1
            tally[j, i, 1] += 1
    return tally
