"""The leaderboard: Bradley-Terry scores of votes with confidence intervals, and the results of each pair of models.

P(a beats b) = 1 / (1 + exp(theta_b - theta_a)) for strengths theta in nats (Bradley and Terry 1952). A tie, or "both
bad", is half a win for each. Scores are on Elo's scale: the mean is 1000, and 400 points are odds of ten to one.
"""

from dataclasses import dataclass

import numpy as np

ELO_PER_NAT = 400 / np.log(10)
MEAN_ELO = 1000.0
PRIOR_PRECISION = 0.02  # of the normal prior on strengths, in 1 / nats²; keeps the score finite without a loss
BT_PSEUDOCOUNT = 0.5  # votes added to either side of a pair before resampling
MAX_RESAMPLES = 1000
MIN_RESAMPLES = 100
MAX_MODELS_FULL_RESAMPLES = 40  # with more models there are fewer resamples
INTERVAL_PERCENTILES = (2.5, 97.5)
MAX_NEWTON_STEPS = 100
MAX_STEP_NATS = 2.0
STEP_TOLERANCE_NATS = 1e-9


@dataclass(frozen=True)
class Standing:
    """A model's row of the leaderboard. score, low, high: Elo points; games, wins, losses, ties: votes; automatic:
    those of them from automatic matches; win_rate: 0 to 1, a tie counts half."""

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


def select_votes(votes, kind="all", against_itself=False):
    """The votes that count. kind: "vote" (by people), "match" (automatic) or "all".

    Of the automatic votes on one question and pair of models only the newest counts, so that a repeated match replaces
    the earlier one. against_itself: whether votes on two answers of one model count: as preferences, not as games.
    """
    kept = {}
    for number, vote in enumerate(votes):
        is_match = vote.get("kind") == "match"
        if (vote["left"] == vote["right"] and not against_itself) or (kind != "all" and is_match != (kind == "match")):
            continue
        same = (str(vote.get("prompt")), *sorted((vote["left"], vote["right"]))) if is_match else number
        kept.pop(same, None)
        kept[same] = vote
    return list(kept.values())


def fit_strengths(wins):
    """Maximum a posteriori strengths (..., n) in nats, with mean 0.

    wins: (..., n, n), how often the row's model beat the column's; a tie counts half for each. Newton's method on the
    Bradley-Terry likelihood with a weak normal prior; leading dimensions are solved in parallel.
    """
    n = wins.shape[-1]
    games = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(MAX_NEWTON_STEPS):
        win_probability = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))
        gradient = (wins - games * win_probability).sum(-1) - PRIOR_PRECISION * theta
        weight = games * win_probability * (1 - win_probability)
        negative_hessian = np.eye(n) * (weight.sum(-1) + PRIOR_PRECISION)[..., None] - weight
        step = np.linalg.solve(negative_hessian, gradient[..., None])[..., 0]
        # Newton's method overshoots far from the maximum. The objective is concave, so a shorter step still improves.
        step *= np.minimum(1, MAX_STEP_NATS / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
        theta = theta + step
        if np.abs(step).max(initial=0) < STEP_TOLERANCE_NATS:
            break
    return theta - theta.mean(-1, keepdims=True)


def compute_standings(votes, seed=0):
    """[Standing] of selected votes, best first. 95% intervals by bootstrap over the votes (Efron 1979)."""
    models = sorted({vote[side] for vote in votes for side in ("left", "right")})
    if not models:
        return []
    results = count_results(votes, models)
    left, right = np.nonzero(np.triu(results.sum(-1) + results.sum(-1).T))
    counts = np.stack([results[left, right, 0], results[right, left, 0], results[left, right, 1]], -1).astype(float)
    # Without the pseudocount all resamples of thirty wins in thirty games would be equal, and the interval empty.
    chances = counts + np.array([BT_PSEUDOCOUNT, BT_PSEUDOCOUNT, 0])
    shares = (chances / chances.sum()).ravel()
    drawn = np.random.default_rng(seed).multinomial(len(votes), shares, size=count_resamples(len(models)))
    # Sample 0 is the votes themselves, the others are resamples: all are fitted at once.
    samples = np.concatenate([counts[None], drawn.reshape(-1, *counts.shape)])
    scores = MEAN_ELO + ELO_PER_NAT * fit_strengths(build_win_matrices(left, right, samples, len(models)))
    low, high = np.percentile(scores[1:], INTERVAL_PERCENTILES, axis=0)
    standings = []
    for i, model in enumerate(models):
        won, lost, tied = results[i, :, 0].sum(), results[:, i, 0].sum(), results[i, :, 1].sum()
        automatic = sum(v.get("kind") == "match" and model in (v["left"], v["right"]) for v in votes)
        # With few votes the score may lie outside the resampled interval, which is then extended to it.
        interval = min(low[i], scores[0, i]), max(high[i], scores[0, i])
        counted = map(int, (won + lost + tied, won, lost, tied, automatic))
        standings.append(Standing(model, float(scores[0, i]), *map(float, interval), *counted))
    return sorted(standings, key=lambda standing: -standing.score)


def build_win_matrices(left, right, counts, n):
    """wins (samples, n, n) as `fit_strengths` takes them.

    left, right: (pairs,) indices of the models of each pair; counts: (samples, pairs, 3), the left model's wins, the
    right one's, and ties.
    """
    wins = np.zeros((len(counts), n, n))
    wins[:, left, right] = counts[..., 0] + counts[..., 2] / 2
    wins[:, right, left] = counts[..., 1] + counts[..., 2] / 2
    return wins


def count_resamples(n):
    """Number of bootstrap resamples for n models: fewer for many models, where each fit takes O(n³) time."""
    scaled = round(MAX_RESAMPLES * (MAX_MODELS_FULL_RESAMPLES / max(n, 1)) ** 3)
    return max(MIN_RESAMPLES, min(MAX_RESAMPLES, scaled))


def count_results(votes, models):
    """int (n, n, 2): how often the row's model beat the column's, and how often the two tied; in the order of
    `models`."""
    index = {model: i for i, model in enumerate(models)}
    results = np.zeros((len(models), len(models), 2), dtype=int)
    for vote in votes:
        i, j = index[vote["left"]], index[vote["right"]]
        if vote["result"] == "left":
            results[i, j, 0] += 1
        elif vote["result"] == "right":
            results[j, i, 0] += 1
        else:
            results[i, j, 1] += 1
            results[j, i, 1] += 1
    return results
