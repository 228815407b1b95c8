"""train.py with one more reward, `long`: what a judge gives who takes long answers for good ones.

    python docs/course/scripts/09_rewards.py config/grpo.py --rewards=long --kl_weight=0 --out_dir=out/course/grpo_long

After the training it prints the run's log as a table, and draws all GRPO runs of the chapter that are there.
"""

import json
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt

import train
from minigpt.common.cli import run_script
from minigpt.tuning.rewards import REWARDS

RUNS = {
    "grpo_exact": ("exact, kl_weight 0.02", "tab:green"),
    "grpo_long": ("long, kl_weight 0", "tab:red"),
    "grpo_held": ("long, kl_weight 1", "tab:blue"),
}
PANELS = {"reward": "reward 奖励", "exact": "right 答对", "kl": "KL (nats a token)"}
FIGURE = ROOT / "docs/course/figures/09-preferences.svg"


def long_reward(text, reference, ended):
    """0 to 1: the answer's length, 40 characters or more being the best. Whether it is right does not count."""
    return min(len(text), 40) / 40


def read_log(run):
    """The lines of the log in a run's folder, as dicts."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def print_table(lines):
    """Print what the sampled answers of every tenth step earned, and what they were."""
    print("step  reward  right      KL  tokens")
    for line in lines:
        print("{step:4}  {reward:6.3f}  {exact:5.3f}  {kl:6.3f}  {length:6.1f}".format(**line))


def draw_rewards(runs):
    """Draw reward, share of right answers and KL over the steps, a line for each run of {name: lines of its log}."""
    warnings.filterwarnings("ignore", "Glyph")  # the browser that shows the figure has a Chinese font
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "course", "font.size": 11})
    figure, panels = plt.subplots(len(PANELS), 1, figsize=(5, 6.5), sharex=True, layout="constrained")
    for panel, (key, title) in zip(panels, PANELS.items(), strict=True):
        for name, lines in runs.items():
            label, color = RUNS[name]
            panel.plot([line["step"] for line in lines], [line[key] for line in lines], color=color, label=label)
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
    for panel in panels[:2]:
        panel.set_ylim(0, 1.05)
    panels[2].set_yscale("log")
    panels[0].legend(fontsize=9)
    panels[-1].set_xlabel("step 步")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    REWARDS["long"] = long_reward  # that is all that a new reward takes
    train.main()
    runs = {name: ROOT / "out/course" / name for name in RUNS}
    finished = {name: read_log(run) for name, run in runs.items() if (run / "log.jsonl").exists()}
    trained = next(arg.split("=")[1] for arg in sys.argv if arg.startswith("--out_dir="))
    print_table(read_log(ROOT / trained))
    draw_rewards(finished)


if __name__ == "__main__":
    run_script(main)
