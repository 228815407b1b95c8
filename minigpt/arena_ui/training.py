"""The tab of training: the loss curves of the runs under out_root, updated while they train."""

import altair
import gradio as gr
import pandas

from minigpt.arena.runs import RunLogs
from minigpt.arena_ui.common import PRIVATE, UNQUEUED, T, status_line, style_chart, translate, warning_line
from minigpt.arena_ui.jobs import JobsSection

CURVES_REFRESH_SECONDS = 3.0  # between readings of the logs while the tab is open
CHART_HEIGHT = 360  # pixels
DEFAULT_RUNS = 2  # shown when the tab is opened first


class TrainingTab:
    """Adds its components to the open gr.Tab, `tab`; selecting it updates the list of runs."""

    def __init__(self, page, tab):
        self.runs = RunLogs(page.arena.settings.out_root)
        names = gr.Dropdown([], multiselect=True, label=T("runs"), elem_id="runs")
        state = status_line("state-training")
        plot = gr.Plot(label=T("loss_plot"), elem_id="loss-plot")
        self.timer = gr.Timer(CURVES_REFRESH_SECONDS, active=False)
        stamp = gr.State(None)
        tab.select(self.open, names, [names, plot, state, stamp, self.timer], api_name="training", **UNQUEUED)
        JobsSection(page, tab, self.timer)
        names.input(self.render, names, [plot, state, stamp], **PRIVATE)
        self.timer.tick(self.tick, [names, stamp], [plot, state, stamp], **PRIVATE)

    def open(self, request: gr.Request, names):
        """The list of runs, and the curves of the chosen ones (of the newest, if none is chosen)."""
        existing = list(self.runs.list_logs())
        names = [name for name in names or [] if name in existing] or existing[:DEFAULT_RUNS]
        return [gr.update(choices=existing, value=names), *self.render(request, names), gr.Timer(active=True)]

    def render(self, request: gr.Request, names):
        """[chart, status line, stamp] of runs."""
        names = names or []
        try:
            points = self.runs.curves(names)
            states = [(name, self.runs.state(name)) for name in names]
            stamp = self.runs.stamp(names)
        except Exception as error:  # a log may contain anything
            return [gr.skip(), warning_line(request, error), gr.skip()]
        lines = [describe_run(request, name, state) for name, state in states if state]
        return [loss_chart(request, points), "\n".join(lines) or translate(request, "no_runs"), stamp]

    def tick(self, request: gr.Request, names, stamp):
        """As `render`, but sends the chart only if a run has a new line."""
        chart, lines, new_stamp = self.render(request, names)
        return [gr.skip() if new_stamp == stamp else chart, lines, new_stamp]


def describe_run(request, name, state):
    """A line with a run's last losses, and whether it is still training. state: of `RunLogs.state`."""
    losses = {
        kind: "–" if state[f"{kind}_loss"] is None else f"{state[f'{kind}_loss']:.4f}" for kind in ("train", "val")
    }
    when = translate(request, "run_going", age=state["age"]) if state["active"] else translate(request, "run_ended")
    return translate(request, "run_state", name=name, step=state["step"], **losses, when=when)


def loss_chart(request, points):
    """altair.Chart of the curves [(step, loss, curve's name)]; None without points."""
    if not points:
        return None
    frame = pandas.DataFrame(points, columns=["step", "loss", "curve"])
    lines = (
        altair.Chart(frame)
        .mark_line(point=altair.OverlayMarkDef(size=12))
        .encode(
            x=altair.X("step:Q", title=translate(request, "step")),
            y=altair.Y("loss:Q", title=translate(request, "loss")),
            color=altair.Color("curve:N", title=None, legend=altair.Legend(orient="bottom", columns=2, labelLimit=300)),
            tooltip=["curve", "step", altair.Tooltip("loss", format=".4f")],
        )
    )
    return style_chart(lines, CHART_HEIGHT)
