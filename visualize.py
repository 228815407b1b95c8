"""Draw the loss curves of one or several runs as a PNG.

python visualize.py                                   # the newest run under out/
python visualize.py --runs=out/demo,out/demo_sft --plot=loss.png
python visualize.py --runs=out/adamw,out/muon --together    # which is sooner at a loss
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt

from configurator import load_settings
from errors import UserError, run_script
from tracking import LOG, log_lines


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


def read_log(path, axis="step"):
    """Lists (axis, train losses) and (axis, validation losses) of a log, by its "step" or "seconds"."""
    train, val = ([], []), ([], [])
    for row in log_lines(path):
        for (places, losses), key in ((train, "train_loss"), (val, "val_loss")):
            if row.get(key) is not None:
                places.append(row[axis])
                losses.append(row[key])
    if not train[0]:
        raise UserError(f"{path} has no line of a training run yet")
    return train, val


def draw_each(logs):
    """A figure with one panel a run: training and validation loss by step, the best step marked."""
    figure, panels = plt.subplots(1, len(logs), figsize=(6.4 * len(logs), 4.4), squeeze=False)
    for panel, log in zip(panels[0], logs, strict=True):
        train, val = read_log(log)
        panel.plot(*train, color="tab:blue", alpha=0.7, label="training loss")
        if val[0]:
            panel.plot(*val, color="tab:orange", marker="o", markersize=3, label="validation loss")
            step, loss = min(zip(*val, strict=True), key=lambda pair: pair[1])
            panel.plot(step, loss, "*", color="tab:red", markersize=12, label=f"best: {loss:.3f} at step {step}")
        panel.set(title=log.parent.name, xlabel="step")
        panel.set_ylim(bottom=0)
    return figure


def draw_together(logs):
    """A figure with the validation loss of every run by seconds of training, on data of one table."""
    figure, panel = plt.subplots(figsize=(8, 4.8))
    for log in logs:
        _, val = read_log(log, "seconds")
        panel.plot(*val, marker="o", markersize=3, label=log.parent.name)
    panel.set(title="validation loss", xlabel="seconds of training")
    return figure


def draw(logs, plot, together):
    """Draw runs into a file."""
    figure = draw_together(logs) if together else draw_each(logs)
    for panel in figure.axes:
        panel.set_ylabel("loss (nats a token)")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=120)


def main():
    settings = load_settings("visualize")
    logs = find_runs(settings)
    plot = Path(settings.plot) if settings.plot else logs[0].parent / "loss.png"
    draw(logs, plot, settings.together)
    print(f"drawn: {plot}")


if __name__ == "__main__":
    run_script(main)
