"""The experiments: which runs each compares, which claims it tests, and whether the figures support them.

claims.toml lists them."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Column:
    """A figure of a run. path: keys into its figures, joined by dots; more_is: "better" or "worse"; digits: decimal
    places; share: it is from 0 to 1; articles: only for pretrained models, since a loss on articles and one on answers
    cannot be compared."""

    title: str
    path: str
    more_is: str = "better"
    digits: int = 3
    share: bool = False
    articles: bool = False

    def value(self, figures):
        """Its value among a run's figures, or None where there is none."""
        if self.articles and "trained" in figures:
            return None
        for key in self.path.split("."):
            figures = figures.get(key) if isinstance(figures, dict) else None
        return figures


@dataclass(frozen=True)
class Claim:
    """Run `better` has a better figure in `column` than run `worse`, or than `share` times that of run `worse`.

    against: the column of `worse`, where it is another one. within: the claim is that the two figures are equal, and
    differ by so much at most.
    source: "report" or "lectures" where these say so, "expected" where it is only what one would expect,
    "seen" where it was first seen in these very figures.
    """

    better: str
    worse: str
    column: Column
    text: str
    text_zh: str
    source: str = "report"
    share: float = 1.0
    against: Column | None = None
    within: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A comparison: title and description in English and Chinese, runs in the order of the table, columns, claims."""

    name: str
    title: str
    title_zh: str
    about: str
    about_zh: str
    runs: list
    columns: list
    claims: list


def column_values(column, runs):
    """(seeds,) float64: a column over the figures of a run's seeds; (0,) where it has no such figure."""
    found = [column.value(figures) for figures in runs]
    return np.array([v for v in found if v is not None], dtype=np.float64)


@dataclass(frozen=True)
class Verdict:
    """Whether seeds support a claim. differences: (seeds,) by how much the run claimed to be better is better; where
    the two are claimed to be equal, by how much the first figure is above the second."""

    claim: Claim
    differences: np.ndarray

    @property
    def margins(self):
        """(seeds,) above 0 where a seed supports the claim, below 0 where it contradicts it."""
        within = self.claim.within
        return self.differences if within is None else within - np.abs(self.differences)

    @property
    def seeds_in_favour(self):
        """Number of seeds that support the claim."""
        return int((self.margins > 0).sum())

    @property
    def holds(self):
        """True where every seed supports the claim, False where every seed contradicts it, else None."""
        return True if (self.margins > 0).all() else False if (self.margins < 0).all() else None

    @property
    def standard_error(self):
        """Standard error of the mean difference; NaN for one seed."""
        n = len(self.differences)
        return float(self.differences.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def judge_claim(claim, results):
    """The `Verdict` on a claim. results: {run: [figures of each seed]}. Seeds that one of the runs lacks do not count:
    runs with fewer seeds have the first ones."""
    better = column_values(claim.column, results[claim.better])
    worse = column_values(claim.against or claim.column, results[claim.worse])
    count = min(len(better), len(worse))
    difference = better[:count] - claim.share * worse[:count]
    is_gain = claim.column.more_is == "better" or claim.within is not None
    return Verdict(claim, difference if is_gain else -difference)


def read_claims(name):
    """({key: `Column`}, [`Experiment`]) of a TOML file of this folder."""
    content = tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    columns = {key: Column(**column) for key, column in content["columns"].items()}
    return columns, [read_experiment(entry, columns) for entry in content["experiments"]]


def read_experiment(entry, columns):
    """The `Experiment` of an entry of a file of claims, which names its columns by their keys."""
    named = ("column", "against")
    claims = [
        Claim(**{key: columns[value] if key in named else value for key, value in claim.items()})
        for claim in entry["claims"]
    ]
    return Experiment(**{**entry, "columns": [columns[key] for key in entry["columns"]], "claims": claims})


COLUMNS, EXPERIMENTS = read_claims("claims.toml")
