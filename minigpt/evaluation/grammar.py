"""Minimal pairs: does a model find the right sentence of two likelier than the wrong one?

The forms of SLING (Song et al. 2022), ZhoBLiMP (Liu et al. 2024) and BLiMP (Warstadt et al. 2020), and one of our own:
rows {"good", "bad", "phenomenon", "paradigm"}. A paradigm is one kind of contrast, a phenomenon a group of them.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minigpt.common.errors import UserError
from minigpt.corpus.readers.files import find_files
from minigpt.corpus.records import Problems, dropped_text, read_rows, text_field
from minigpt.evaluation.plots import curve_style, drawable_names
from minigpt.inference.likelihood import likelihood_of_rows
from minigpt.metrics import FEWEST_ROWS, compare, interval

# The names of a row's fields; of several in a row, the first counts. SLING has both cases of "phenomenon".
PAIR_FIELDS = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "phenomenon": ("Phenomenon", "phenomenon", "linguistics_term"),
    "paradigm": ("Paradigm", "paradigm", "UID"),
}
NO_PHENOMENON = "–"
TIE_NATS = 1e-4  # sums that differ by less are equal: float32 does not tell them apart
CHANCE = 0.5
PAIR_COLUMNS = ("good_nats", "bad_nats", "good_tokens", "bad_tokens", "right")


@dataclass(frozen=True)
class MinimalPair:
    """A right and a wrong sentence, and what they show."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str


def pair_of(row):
    """(`MinimalPair`, None) of a row, or (None, reason)."""
    texts = {}
    for part, names in PAIR_FIELDS.items():
        name = next((name for name in names if name in row), names[0])
        texts[part], reason = text_field(row, name)
        if reason and part in ("good", "bad"):
            return None, reason
    if texts["good"] == texts["bad"]:
        return None, "both sentences are the same"
    paradigm = texts["paradigm"] or texts["phenomenon"] or NO_PHENOMENON
    return MinimalPair(texts["good"], texts["bad"], texts["phenomenon"] or NO_PHENOMENON, paradigm), None


def read_minimal_pairs(paths, say=print):
    """[`MinimalPair`] of files, and of all files in folders. Rows that cannot be used are shown with `say`.

    Raises UserError where a path is not there, or no row can be used.
    """
    pairs, problems = [], Problems()
    for path in find_files(paths, setting="grammar_files"):
        for number, row in read_rows(path, problems):
            pair, reason = pair_of(row)
            if reason:
                problems.add(reason, path, number)
            else:
                pairs.append(pair)
    if problems.counts:
        say(dropped_text(problems.about()))
    if not pairs:
        raise UserError(f'no minimal pair in {", ".join(map(str, paths))}; a row is {{"good": …, "bad": …}}')
    return pairs


@dataclass
class PairScores:
    """What a model finds of n pairs: nats, float64 (n, 2), and tokens, int64 (n, 2), of the right and wrong sentences.

    nats: minus the sum of the log probabilities of a sentence's tokens but the first, which has none (no text stands
    before it); tokens: how many these are. nan and 0 where a sentence has a single token or exceeds the block.
    """

    nats: np.ndarray
    tokens: np.ndarray

    def rights(self, per_token=False):
        """(n,) float64: 1 where the right sentence is likelier, 0.5 for a tie, 0 else; nan where it is not known.

        per_token: by the mean over tokens, not the sum.
        """
        found = self.nats / self.tokens.clip(min=1) if per_token else self.nats
        better = found[:, 1] - found[:, 0]
        ties = np.abs(better) * (1 if not per_token else self.tokens.max(axis=1)) < TIE_NATS
        return np.where(np.isnan(better), np.nan, np.where(ties, 0.5, better > 0))

    def rights_by_tokens(self):
        """(n,) float64, as `rights`, of a judge who takes the sentence of fewer tokens, and knows nothing else.

        A wrong sentence often has more of them, since its characters form no frequent words. So a model that has
        learned next to nothing is above 0.5 by the sum.
        """
        more = np.sign(self.tokens[:, 1] - self.tokens[:, 0])
        return np.where(np.isnan(self.nats).any(axis=1), np.nan, (1 + more) / 2)


def score_pairs_of(model, tokenizer, pairs, batch_size=0, progress=None):
    """`PairScores` of [`MinimalPair`] under a causal model, as plain text whatever its stage.

    batch_size, progress(n) (of n sentences): as `likelihood_of_rows` takes them.
    """
    if not model.config.causal:
        raise UserError("it is a masked language model, which gives sentences no likelihood; name a causal one")
    ids = [tokenizer.encode(text) for pair in pairs for text in (pair.good, pair.bad)]
    usable = [i for i, tokens in enumerate(ids) if 1 < len(tokens) <= model.row_positions]
    nats, counts = np.full(len(ids), np.nan), np.zeros(len(ids), dtype=np.int64)
    if usable:
        special = tokenizer.special_ids()
        rows = np.full((len(usable), max(len(ids[i]) for i in usable)), special["pad"], dtype=np.uint32)
        for row, i in zip(rows, usable, strict=True):
            row[: len(ids[i])] = ids[i]
        meta = {"stage": "pretrain", "special_ids": special, "tokenizer": {"n_vocab": tokenizer.n_vocab}}
        found = likelihood_of_rows(model, rows, meta, batch_size, train_on_eot=False, progress=progress)
        nats[usable], counts[usable] = found.nats, found.tokens
    return PairScores(nats.reshape(-1, 2), counts.reshape(-1, 2))


def right_share(rights):
    """Mean of rights where they are known; None without any."""
    known = rights[~np.isnan(rights)]
    return float(known.mean()) if len(known) else None


def by_paradigm(pairs, *columns):
    """Sums of some columns (n,) over each (phenomenon, paradigm), as a list of float64 arrays."""
    keys = [(pair.phenomenon, pair.paradigm) for pair in pairs]
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    groups = [places[key] for key in keys]
    return [np.bincount(groups, weights=column, minlength=len(places)) for column in columns]


def grammar_figures(pairs, scores, resamples=1000, seed=0):
    """Figures of `PairScores`: {"grammar" (accuracy, 0 to 1, by the sum), "grammar_per_token", "fewer_tokens" (what
    taking the sentence of fewer tokens gives), "pairs", "ties", "left_out", "intervals": {"grammar": [low, high]},
    "phenomena": {phenomenon: {"accuracy", "per_token", "fewer_tokens", "pairs", "interval"}}, "paradigms":
    {"phenomenon/paradigm": the same}}.

    Pairs of one paradigm are alike, so the interval of all pairs resamples paradigms: it holds for other paradigms too.
    A phenomenon has too few of them for that (as have all pairs, with fewer than FEWEST_ROWS paradigms): its interval
    resamples pairs, and says only what other pairs of the same paradigms would give.
    """
    rights, per_token, by_tokens = scores.rights(), scores.rights(per_token=True), scores.rights_by_tokens()
    known = ~np.isnan(rights)
    sums, counts = by_paradigm(pairs, np.where(known, rights, 0), known)
    sums, counts = sums[counts > 0], counts[counts > 0]
    over_paradigms = len(counts) >= FEWEST_ROWS
    edges = interval(sums, counts, resamples, seed) if over_paradigms else interval(rights, None, resamples, seed)

    def group_figures(names):
        groups = {}
        for name in dict.fromkeys(names):
            mine = np.array([other == name for other in names])
            mine_edges = interval(rights[mine], None, resamples, seed)
            groups[name] = {
                "accuracy": right_share(rights[mine]), "per_token": right_share(per_token[mine]),
                "fewer_tokens": right_share(by_tokens[mine]),
                "pairs": int(known[mine].sum()), "interval": mine_edges and list(mine_edges),
            }  # fmt: skip
        return groups

    return {
        "grammar": right_share(rights), "grammar_per_token": right_share(per_token),
        "fewer_tokens": right_share(by_tokens), "pairs": int(known.sum()),
        "ties": int((rights == CHANCE).sum()), "left_out": int((~known).sum()),
        "resampled": "paradigms" if over_paradigms else "pairs", "intervals": {"grammar": edges and list(edges)},
        "phenomena": group_figures([pair.phenomenon for pair in pairs]),
        "paradigms": group_figures([f"{pair.phenomenon}/{pair.paradigm}" for pair in pairs]),
    }  # fmt: skip


def compare_grammar(pairs, a, b, resamples=1000, seed=0):
    """`metrics.compare` of two models' `PairScores` of the same pairs: over paradigms, or pairs where these are few."""
    difference = a.rights() - b.rights()
    known = ~np.isnan(difference)
    sums, counts = by_paradigm(pairs, np.where(known, difference, 0), known)
    if (counts > 0).sum() < FEWEST_ROWS:
        return compare(a.rights(), b.rights(), resamples, seed)
    return compare(sums[counts > 0], np.zeros((counts > 0).sum()), resamples, seed, counts[counts > 0])


def first_tokens_differ(tokenizer, pairs):
    """How many pairs differ in the first token, whose probability is not counted."""
    return sum(tokenizer.encode(pair.good)[:1] != tokenizer.encode(pair.bad)[:1] for pair in pairs)


def pair_rows(pairs, scores):
    """[[value of each of PAIR_COLUMNS]] of the pairs; None where a value is not known."""
    rows = []
    for nats, tokens, right in zip(scores.nats.tolist(), scores.tokens.tolist(), scores.rights().tolist(), strict=True):
        rows.append([None if math.isnan(value) else value for value in (*nats, *tokens, right)])
    return rows


def phenomenon_counts(pairs):
    """{phenomenon: pairs}, in the order of the pairs."""
    return dict(Counter(pair.phenomenon for pair in pairs))


def draw_grammar(entries, say=print):
    """A matplotlib Figure of entries {"name", "step", figures of `grammar_figures`} of the same pairs.

    Entries of several steps: the curves of the phenomena and of all pairs over the steps. Else: bars of the last entry.
    """
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    panel, names = figure.subplots(), list(entries[-1]["phenomena"])
    shown = drawable_names(names, say)
    steps = [entry["step"] for entry in entries]
    if len(set(steps)) > 1:
        for number, (name, text) in enumerate(zip(names, shown, strict=True)):
            points = [entry["phenomena"][name]["accuracy"] for entry in entries]
            panel.plot(steps, points, label=text, lw=1.1, alpha=0.85, **curve_style(number))
        panel.plot(steps, [entry["grammar"] for entry in entries], color="black", lw=2.2, label="all")
        bands = [(step, *entry["intervals"]["grammar"]) for step, entry in zip(steps, entries, strict=True)
                 if entry["intervals"]["grammar"]]  # fmt: skip
        if bands:
            panel.fill_between(*zip(*bands, strict=True), color="black", alpha=0.12, lw=0)
        panel.set(xlabel="step", ylabel="pairs judged right", ylim=(0, 1.02))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.axhline(CHANCE, color="0.4", ls=":", lw=1, label="chance")
        if entries[-1]["fewer_tokens"] is not None:
            panel.axhline(entries[-1]["fewer_tokens"], color="0.4", ls="--", lw=1, label="fewer tokens")
        figure.legend(loc="outside right center", fontsize="small")
        return figure
    found = [entries[-1]["phenomena"][name] for name in names]
    for place, each in enumerate(found):
        panel.barh(place, each["accuracy"] or 0, color="#0072B2", alpha=0.8)
        if each["interval"]:
            panel.plot(each["interval"], [place, place], color="black", lw=1.5)
    panel.axvline(CHANCE, color="0.4", ls=":", lw=1)
    panel.set(yticks=range(len(names)), yticklabels=shown, xlabel="pairs judged right", xlim=(0, 1.02))
    panel.invert_yaxis()
    return figure
