"""A plan of experiments whose runs are not trained: processes of their own can import it."""

import os

from minigpt.experiments.plan import Plan
from minigpt.experiments.results import RESULT


class UntrainedPlan(Plan):
    """A `Plan` whose runs only note their seed, their process, and which of the runs that they need are done."""

    MEASURING = "minigpt/experiments/plan.py"

    def training_settings(self, run, seed):
        return {}

    def sources(self, run, seed):
        return []

    def measure(self, run, seed, cost, threads):
        needed = [other.name for other in self.needed([run.name])[:-1]]
        there = [name for name in needed if (self.place(name, seed) / RESULT).exists()]
        return {"seed": seed, "process": os.getpid(), "there": there}
