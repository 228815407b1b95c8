"""Draw the loss curves of one or several runs as a PNG.

python visualize.py                                   # the newest run under out/
python visualize.py --runs=out/demo,out/demo_sft --plot=loss.png
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt

from configurator import load_settings
from errors import UserError, run_script

LOG = "log.jsonl"


def find_runs(settings):
    """Paths of log.jsonl files: those named, or the newest under out_root."""
    if not settings.runs:
        logs = sorted(Path(settings.out_root).rglob(LOG), key=lambda p: p.stat().st_mtime)
        if not logs:
            raise UserError(f"no {LOG} under {settings.out_root}; train first: python train.py config/train_config.py")
        return logs[-1:]
    logs = [Path(run) / LOG if Path(run).is_dir() else Path(run) for run in settings.runs]
    for log in logs:
        if not log.is_file():
            raise UserError(f"{log} is not there; name a run's folder with --runs=…")
    return logs


def read_log(path):
    """Lists (steps, train losses) and (steps, validation losses) of a log; a line cut short by a crash is left out."""
    train, val = ([], []), ([], [])
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for (steps, losses), key in ((train, "train_loss"), (val, "val_loss")):
            if row.get(key) is not None:
                steps.append(row["step"])
                losses.append(row[key])
    if not train[0]:
        raise UserError(f"{path} has no line of a training run yet")
    return train, val


def draw(logs, plot):
    """One panel a run: training and validation loss by step, the best step marked."""
    figure, panels = plt.subplots(1, len(logs), figsize=(6.4 * len(logs), 4.4), squeeze=False)
    for panel, log in zip(panels[0], logs, strict=True):
        train, val = read_log(log)
        panel.plot(*train, color="tab:blue", alpha=0.7, label="training loss")
        if val[0]:
            panel.plot(*val, color="tab:orange", marker="o", markersize=3, label="validation loss")
            best = min(range(len(val[1])), key=val[1].__getitem__)
            panel.plot(
                val[0][best],
                val[1][best],
                "*",
                color="tab:red",
                markersize=12,
                label=f"best: {val[1][best]:.3f} at step {val[0][best]}",
            )
        panel.set(title=log.parent.name, xlabel="step", ylabel="loss (nats a token)")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=120)


def main():
    settings = load_settings("visualize")
    logs = find_runs(settings)
    plot = Path(settings.plot) if settings.plot else logs[0].parent / "loss.png"
    draw(logs, plot)
    print(f"drawn: {plot}")


if __name__ == "__main__":
    run_script(main)
