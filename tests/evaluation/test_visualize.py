"""Run logs, what is computed from them, and plots that are complete and legible."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import matplotlib
import numpy as np
import pytest
from corpora import ROOT, write_jsonl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

import visualize
from minigpt import run_log as runs
from minigpt.common.errors import UserError
from minigpt.evaluation import plots
from minigpt.evaluation.checkpoint_plots import draw_curves
from minigpt.evaluation.plots import curve_style, drawable_names, plot_files, save_plot
from minigpt.evaluation.training_plots import MAX_DRAWN_POINTS, draw_runs
from minigpt.run_log import (
    RunLog,
    best_line,
    cut_log,
    find_gaps,
    find_runs,
    measure_throughput,
    overfitting,
    run_names,
    smooth_values,
    thinned,
)
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import VisualizeSettings


def line(step, train=2.0, val=None, **more):
    fields = {"epoch": step / 100, "lr": 1e-3, "tokens": 1000 * step, "seconds": 0.5 * step}
    return {"step": step, "train_loss": train, "val_loss": val, **fields, **more}


def log_of(folder, rows):
    """Write rows as a folder's log, and read it as a `RunLog`."""
    log = RunLog(write_jsonl(folder / "log.jsonl", rows))
    log.read()
    return log


def some_run(folder, lines=30, over=0.0):
    """A run whose every fifth line is a validation; validation loss rises by `over` per line from the middle on."""

    def val(step):
        return 2 + 3 / step + over * max(0, step - lines / 2) if step % 5 == 0 else None

    return log_of(folder, [line(step, 1 + 4 / step, val(step)) for step in range(1, lines + 1)])


def without_chinese_fonts(monkeypatch):
    kept = [font for font in font_manager.fontManager.ttflist if font.name not in plots.CHINESE_FONTS]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", kept)


def saved_without_warnings(figure, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return save_plot(figure, path)


def places_of(figure, *artists):
    """Bboxes of artists from one drawing, since each renderer (PNG, SVG) has its own scale and glyphs."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [artist.get_window_extent(canvas.get_renderer()) for artist in artists]


# Families that come with matplotlib, narrow and wide, as use_chinese_font sets them; sizes of the letters.
FONTS = [("DejaVu Sans", 10), ("DejaVu Serif", 16), ("STIXGeneral", 8), ("DejaVu Sans Mono", 20)]


def drawn_in(monkeypatch, family, size):
    monkeypatch.setattr(plots, "use_chinese_font", lambda: None)
    monkeypatch.setitem(matplotlib.rcParams, "font.family", [family, plots.DEFAULT_FONT])
    monkeypatch.setitem(matplotlib.rcParams, "font.size", size)


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["visualize.py", *map(str, arguments)])
    visualize.main()


def test_a_damaged_log_gives_its_good_lines_and_notes_about_the_others(tmp_path):
    rows = [
        line(1),
        "",
        '{"step": 2, "train_l',
        b"\xff\xfe\x00",
        "[3]",
        "null",
        "[" * 100_000,
        line(4, math.nan),
        line(5),
    ]
    rows += [line(6, math.inf, 3.0), line(7, "two"), line(8, 10**400), {"step": 9}, {"train_loss": 1.0}, line(10, True)]
    write_jsonl(tmp_path / "log.jsonl", rows)
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 11, "train')
    log = RunLog(tmp_path / "log.jsonl")
    assert log.read()
    assert log.columns["step"].tolist() == [1, 4, 5, 6, 7, 8, 9, 10]
    assert np.isfinite(log.columns["train_loss"]).tolist() == [True, False, True, False, False, False, False, False]
    said = "\n".join(log.notes)
    for words in ("5 lines could not be read (the first is line 3)", "last line is incomplete", "1 line without a step",
                  "3 training losses not finite, first at step 4"):  # fmt: skip
        assert words in said


def test_a_log_is_continued_and_read_again_if_the_run_is_resumed(tmp_path):
    log = log_of(tmp_path, [line(step) for step in range(1, 6)])
    assert not log.read()
    with open(log.path, "r+b") as file:
        first = file.readline()
        file.seek(0)
        file.write(b" " * (len(first) - 1))  # what was read is not looked at again
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(line(6)).encode()[:20])
    assert not log.read() and len(log) == 5
    with open(log.path, "ab") as file:
        file.write(json.dumps(line(6)).encode()[20:] + b"\n")
    assert log.read() and log.columns["step"].tolist() == [1, 2, 3, 4, 5, 6] and not log.notes
    cut_log(tmp_path, 3)
    assert log.read() and log.columns["step"].tolist() == [2, 3]
    log.path.unlink()
    assert log.read() and not len(log)


def test_lines_that_a_resumed_run_wrote_again_are_kept_once(tmp_path):
    log = log_of(tmp_path, [line(1), line(2), line(3, 9.0), line(4, 9.0), line(3, 1.5), line(5)])
    assert log.columns["step"].tolist() == [1, 2, 3, 5] and log.columns["train_loss"][2] == 1.5
    assert "2 lines that a resumed run wrote again" in "\n".join(log.notes)


def test_smoothing_is_the_debiased_exponential_average():
    values = np.random.default_rng(0).random(100)
    for i, found in enumerate(smooth_values(values, 0.8)):
        assert found == pytest.approx(np.average(values[: i + 1], weights=0.8 ** np.arange(i, -1, -1)))
    assert smooth_values(values, 0.0) == pytest.approx(values)


@pytest.mark.parametrize("n", [1, 2, 12, 40, 1000])
def test_a_short_runs_smoothed_loss_is_not_far_from_its_loss(n):
    assert smooth_values(np.full(n, 3.0), 0.9) == pytest.approx(np.full(n, 3.0))
    falling = np.linspace(4.0, 0.5, n)
    assert falling[-1] <= smooth_values(falling, 0.9)[-1] <= falling[-1] + 0.1 * (falling[0] - falling[-1])


def test_a_short_run_is_labelled_as_smoothed_only_if_it_is(tmp_path):
    few, more = ([line(step, 4.0 / step) for step in range(1, n + 1)] for n in (8, 30))
    log = log_of(tmp_path / "few", few)
    assert (
        "training loss 0.5000" in runs.summarize_run(log, 0.9)[0] and "smoothed" not in runs.summarize_run(log, 0.9)[0]
    )
    assert draw_runs([log], smooth=0.9).axes[0].get_legend_handles_labels()[1] == ["training"]
    log = log_of(tmp_path / "more", more)
    assert "(smoothed)" in runs.summarize_run(log, 0.9)[0]
    labels = draw_runs([log], smooth=0.9).axes[0].get_legend_handles_labels()[1]
    assert labels == ["training, raw", "training, smoothed (0.67)"]


@pytest.mark.parametrize(
    "vals, trains, at",
    [
        ([3.0, 2.0, 2.5], [3.0, 2.0, 1.0], 2),
        ([3.0, 2.0, 2.0, 2.5], [3.0, 2.0, 1.8, 1.0], 3),  # the last of equal ones
        ([3.0, 2.0, 2.03], [3.0, 2.0, 1.0], None),  # a rise of 1.5%
        ([3.0, 2.0, 2.5], [3.0, 2.0, 2.1], None),  # training did not fall on
        ([3.0, 2.0, 2.5, 1.9], [3.0, 2.0, 1.5, 1.0], None),  # it came down again
        ([3.0, 2.5, 2.0], [3.0, 2.0, 1.0], None),
        ([-0.5, -0.9, -0.8], [0.02, 0.01, -0.01], None),  # minus a reward, and a policy's loss
        ([2.0], [2.0], None),
    ],
)
def test_over_fitting_begins_at_the_last_best_validation_after_which_validation_rose_and_training_fell(
    tmp_path, vals, trains, at
):
    log = log_of(tmp_path, [line(i, t, v) for i, (t, v) in enumerate(zip(trains, vals, strict=True), start=1)])
    found = overfitting(log.columns)
    assert (found and found.step) == at
    assert vals[best_line(log.columns)] == min(vals)
    said = "\n".join(runs.summarize_run(log, 0.9))
    assert (f"over-fits after step {at}: validation loss 2.0000 → 2.5000 (+25.0%)" in said) == (at is not None)
    assert ("no over-fitting" in said) == (at is None)


def test_throughput_leaves_out_validations_and_clocks_that_run_backwards(tmp_path):
    rows = [line(step, tokens=100 * step, seconds=float(step)) for step in range(1, 21)]
    rows[9]["val_loss"] = 2.0
    for row in rows[10:]:
        row["seconds"] += 40  # of validating
    for row in rows[15:]:
        row["seconds"] -= 50
    del rows[17]["tokens"]
    found = measure_throughput(log_of(tmp_path, rows).columns)
    assert found.overall == pytest.approx(100) and found.rates == pytest.approx(100) and not found.with_checks
    checked = measure_throughput(log_of(tmp_path, [{**row, "val_loss": 2.0} for row in rows[:11]]).columns)
    assert checked.with_checks and checked.overall == pytest.approx(1000 / 50)
    assert math.isnan(measure_throughput(log_of(tmp_path, [line(1), line(2, seconds=0.5)]).columns).overall)


def test_a_coarse_clock_gives_no_infinite_throughput(tmp_path):
    rows = [line(step, tokens=10 * step, seconds=round(step * 0.004, 2)) for step in range(1, 2001)]
    found = measure_throughput(log_of(tmp_path, rows).columns)
    assert len(found.rates) > 5 and found.rates == pytest.approx(2500, rel=0.05)


def test_missing_lines_are_a_gap_and_another_log_interval_is_not():
    assert find_gaps(np.array([1, 2, 3, 40, 41, 42.0])).tolist() == [3]
    assert find_gaps(np.array([1, 2, 3, 4, 24, 44, 64.0])).tolist() == []


def test_no_curve_crosses_a_gap(tmp_path):
    log = log_of(tmp_path, [line(step) for step in [*range(1, 20), *range(200, 220)]])
    for panel in draw_runs([log]).axes[:2]:
        x = panel.lines[-1].get_xdata()
        assert np.isnan(x).sum() == 1 and np.nanmax(np.diff(x)) == 1


def test_thinning_keeps_the_ends_and_every_spike():
    y = np.zeros(100_001)
    y[54_321], y[77_777] = 9.0, -9.0
    x, kept = thinned(np.arange(len(y)), y, 100)
    assert len(x) <= 110 and kept.max() == 9 and kept.min() == -9 and (x[0], x[-1]) == (0, 100_000)


@pytest.mark.soak
def test_a_long_log_is_thinned_before_it_is_drawn(tmp_path, rounds):
    n = rounds(20_000, 1_000_000)
    text = json.dumps(line(7)).replace("7", "{}", 1)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(text.replace("{}", str(step), 1) + "\n" for step in range(1, n + 1)), encoding="utf-8")
    log = RunLog(path)
    log.read()
    figure = draw_runs([log])
    assert len(log) == n
    assert max(len(drawn.get_xdata()) for panel in figure.axes for drawn in panel.lines) <= MAX_DRAWN_POINTS + 2


def test_a_run_is_drawn_with_both_losses_the_best_step_and_over_fitting(tmp_path):
    log = some_run(tmp_path, over=0.1)
    losses, rate, speed = draw_runs([log], smooth=0.5).axes
    labels = losses.get_legend_handles_labels()[1]
    best = best_line(log.columns)
    assert labels[:3] == ["training, raw", "training, smoothed (0.5)", "validation"]
    assert f"at step {log.columns['step'][best]:.0f}" in labels[3] and "over-fits: validation +" in labels[4]
    assert losses.lines[0].get_ydata().tolist() == log.columns["train_loss"].tolist()
    assert rate.get_ylabel() == "learning rate" and speed.get_ylabel() == "tokens / s"
    assert speed.get_xlabel() == "step" and losses.get_ylabel() == "loss (nats per token)"


@pytest.mark.parametrize(
    "x, label, last",
    [("tokens", "tokens trained on", 30_000), ("epoch", "epochs", 0.3), ("seconds", "seconds of training", 15)],
)
def test_the_x_axis_can_be_chosen(tmp_path, x, label, last):
    figure = draw_runs([some_run(tmp_path)], x)
    assert figure.axes[-1].get_xlabel() == label
    assert figure.axes[0].lines[0].get_xdata()[-1] == pytest.approx(last)


def test_a_long_training_has_its_axis_in_hours(tmp_path):
    log = log_of(tmp_path, [line(step, seconds=3600.0 * step) for step in range(1, 9)])
    figure = draw_runs([log], "seconds")
    assert figure.axes[-1].get_xlabel() == "hours of training" and figure.axes[0].lines[0].get_xdata()[-1] == 8


def test_a_log_without_the_x_axis_is_an_error_and_other_missing_fields_drop_their_panel(tmp_path):
    rows = [{"step": step, "train_loss": 2.0} for step in range(1, 9)]
    log = log_of(tmp_path, rows)
    assert len(draw_runs([log]).axes) == 1 and "no line has epoch or lr or tokens or seconds" in log.notes[0]
    with pytest.raises(UserError, match="does not record seconds; choose another"):
        draw_runs([log], "seconds")


def test_one_spike_does_not_flatten_the_curves(tmp_path):
    log = log_of(tmp_path, [line(step, 1e6 if step == 20 else 3.0) for step in range(1, 41)])
    panel = draw_runs([log]).axes[0]
    assert panel.get_ylim()[1] < 20 and panel.texts[0].get_text() == "▲ up to 1e+06"


@pytest.mark.parametrize("family, size", FONTS)
def test_twenty_runs_together_look_different_and_their_legend_is_beside_the_curves(tmp_path, monkeypatch, family, size):
    drawn_in(monkeypatch, family, size)
    logs = [some_run(tmp_path / f"run_{i}") for i in range(20)]
    assert len({str(curve_style(i)) for i in range(20)}) == 20
    figure = draw_runs(logs, together=True)
    (place,) = figure.subfigs
    assert len(place.legends[0].get_texts()) == 20
    legend, *panels = places_of(figure, place.legends[0], *figure.axes)
    assert legend.width > 0 and figure.bbox.x1 >= legend.x1 and legend.y0 >= 0
    for panel in panels:
        assert panel.width > 0.3 * figure.bbox.width and panel.x1 <= legend.x0
    saved_without_warnings(figure, tmp_path / "plot.png")


@pytest.mark.parametrize("family, size", FONTS)
def test_the_legend_of_a_run_is_above_its_curves(tmp_path, monkeypatch, family, size):
    drawn_in(monkeypatch, family, size)
    figure = draw_runs([some_run(tmp_path, over=0.1)])
    legend, panel = places_of(figure, figure.axes[0].get_legend(), figure.axes[0])
    assert legend.y0 >= panel.y1 - 1 and legend.y1 <= figure.bbox.y1


def test_runs_of_one_name_get_different_names_and_a_folder_means_the_runs_in_it(tmp_path):
    for name in ("a/sft", "b/sft", "b/old"):
        some_run(tmp_path / name, 3)
    found = find_runs([str(tmp_path / "a/sft"), str(tmp_path / "b")], "out")
    assert run_names(found) == ["a/sft", "old", "b/sft"]
    assert find_runs([str(tmp_path / "a/sft")] * 2, "out") == found[:1]


def colours_in(panel):
    """The set of RGB colours of the pixels within a panel."""
    canvas = FigureCanvasAgg(panel.figure)
    canvas.draw()
    pixels, box = np.asarray(canvas.buffer_rgba()), panel.get_window_extent(canvas.get_renderer())
    inside = pixels[len(pixels) - int(box.y1) : len(pixels) - int(box.y0), int(box.x0) : int(box.x1), :3]
    return {tuple(colour) for colour in np.unique(inside.reshape(-1, 3), axis=0).tolist()}


def test_overlapping_curves_are_all_visible_and_others_keep_their_width():
    keys = ["to_change", "to_keep", "accuracy"]
    together = [{"run": "a", "step": step, **dict.fromkeys(keys, 0.0)} for step in range(1, 6)]
    apart = [{"run": "b", "step": e["step"], **{k: 0.2 + i / 5 for i, k in enumerate(keys)}} for e in together]
    panels = draw_curves({"models": together + apart}).axes
    for panel in panels:
        if panel.get_legend():  # which has the colours too
            panel.get_legend().remove()
        wanted = {tuple(round(255 * c) for c in to_rgb(drawn.get_color())) for drawn in panel.lines}
        assert len(wanted) == 3 and wanted <= colours_in(panel)
    assert len({drawn.get_linewidth() for drawn in panels[0].lines}) == 3
    assert len({drawn.get_linewidth() for drawn in panels[1].lines}) == 1


NAMES = ["我的模型", "plain", "cost$5$", "_hidden", "thumb👍", "two\nlines", "长" * 99]


@pytest.mark.parametrize(("fonts", "together"), [("all fonts", False), ("no Chinese font", True)])
def test_any_name_is_drawn_without_a_missing_glyph(tmp_path, monkeypatch, capsys, fonts, together):
    if fonts != "all fonts":
        without_chinese_fonts(monkeypatch)
    rows = [
        {"step": step, "seconds": step, "train_loss": 2.0, "val_loss": 2.0} for step in (1, 2)
    ]  # one panel for each run
    logs = [log_of(tmp_path / str(i), rows) for i in range(len(NAMES))]
    for log, name in zip(logs, NAMES, strict=True):
        log.name = name
    figure = draw_runs(logs, together=together)
    _, svg = saved_without_warnings(figure, tmp_path / "plot.png")
    assert "<text" not in svg.read_text(encoding="utf-8")  # outlines need no font
    assert "no font here draws thumb👍" in capsys.readouterr().out


def test_names_that_no_font_draws_are_numbered_and_printed(monkeypatch, capsys):
    without_chinese_fonts(monkeypatch)
    assert drawable_names(["demo", "我的模型"]) == ["demo", "[2]"]
    assert "我的模型; it is [2] in the plot" in capsys.readouterr().out
    monkeypatch.undo()
    if plots.use_chinese_font():
        assert drawable_names(["我的模型"]) == ["我的模型"]
    assert drawable_names(["_a", "b$c$"]) == [" _a", r"b\$c\$"]


def test_a_plot_that_cannot_be_written_leaves_the_older_one_intact(tmp_path, monkeypatch):
    png, svg = save_plot(draw_runs([some_run(tmp_path)]), tmp_path / "a.b")
    assert (png.name, svg.name) == ("a.b.png", "a.b.svg") == tuple(path.name for path in plot_files("x/a.b.SVG"))
    before = png.read_bytes()
    assert before.startswith(b"\x89PNG") and svg.read_text(encoding="utf-8").rstrip().endswith("</svg>")

    def held(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("minigpt.common.files.replace_file", held)
    with pytest.raises(UserError, match=r"a\.b\.png could not be written \(Permission denied\)"):
        save_plot(draw_runs([some_run(tmp_path, 40)]), png)
    assert png.read_bytes() == before and not list(tmp_path.glob("*.partial"))


def test_the_script_prints_a_summary_and_draws_evaluations_too(tmp_path, monkeypatch, capsys):
    some_run(tmp_path / "run", over=0.1)
    log_of(tmp_path / "empty", [])
    entries = [{"name": "run", "run": "run", "step": step, "rouge_l_f": step / 100} for step in (10, 20)]
    (tmp_path / "rouge.json").write_text(json.dumps({"models": entries}), encoding="utf-8")
    made = []
    monkeypatch.setattr(visualize, "save_plot", lambda figure, path: made.append(figure) or save_plot(figure, path))
    flags = [f"--runs={tmp_path / 'run'},{tmp_path / 'empty'}", f"--figures={tmp_path / 'rouge.json'}"]
    main(monkeypatch, *flags)
    said = capsys.readouterr().out
    assert "over-fits after step 15" in said and "empty" in said and f"drawn: {tmp_path / 'run' / 'loss.png'}" in said
    assert made[0].axes[-1].lines[0].get_ydata().tolist() == [0.1, 0.2]
    with pytest.raises(UserError, match="has no line of a training run yet"):
        main(monkeypatch, f"--runs={tmp_path / 'empty'}")


def test_live_waits_draws_only_new_lines_and_retries_a_failed_save(tmp_path, monkeypatch, capsys):
    path, saves, held = tmp_path / "run" / "log.jsonl", [], [False]
    rows = [line(step, 1.0 + 1 / step, 2.0 if step == 3 else None) for step in range(1, 9)]

    def save(figure, plot):
        saves.append(len(figure.axes[0].lines[0].get_xdata()))
        if held[0]:
            raise UserError("it is open elsewhere")
        return save_plot(figure, plot)

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            write_jsonl(path, rows[:2])
        if len(looks) == 4:  # nothing came between
            held[0] = True
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[2]) + "\n" + json.dumps(rows[3])[:9])
        if len(looks) == 5:
            held[0] = False
        if len(looks) == 7:
            raise KeyboardInterrupt

    looks = []
    monkeypatch.setattr(visualize, "save_plot", save)
    settings = load_settings(VisualizeSettings, [f"--runs={path.parent}", "--live"])
    with pytest.raises(KeyboardInterrupt):
        visualize.watch(visualize.Watcher(settings), wait)
    said = capsys.readouterr().out
    assert saves == [2, 3, 3] and min(looks) >= visualize.REDRAW_SECONDS
    assert said.count("waiting for the first line of") == 1 and "it is open elsewhere; tried again" in said
    assert "best validation loss 2.0000 at step 3 of 1 validation\n" in said
    assert said.rstrip().endswith(f"the last plot is {path.with_name('loss.png')}")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_live_ends_with_ctrl_c_and_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "visualize.py"), "--live", f"--out_root={tmp_path / 'out'}"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, encoding="utf-8")
    first = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first.startswith("waiting for the first line of a run under") and "nothing was drawn" in out
    assert process.returncode == 130 and err.strip() == "stopped"
