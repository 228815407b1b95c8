"""The tab of training: the loss curves of the runs under out/, live."""

import altair
import gradio as gr
import pandas

from minigpt.arena.runs import RunLogs
from minigpt.arena_ui.common import AT_ONCE, QUIET, T, say, status_line, styled, warning

EVERY = 3.0  # seconds between looks at the logs while the tab is open
PIXELS = 360
FIRST_RUNS = 2  # shown when the page opens


class TrainingTab:
    """Built in the Tab that is open; `tab` is that, whose choosing lists the runs anew."""

    def __init__(self, page, tab):
        self.runs = RunLogs(page.arena.settings.out_root)
        names = gr.Dropdown([], multiselect=True, label=T("runs"), elem_id="runs")
        state = status_line("state-training")
        plot = gr.Plot(label=T("loss_plot"), elem_id="loss-plot")
        self.timer = gr.Timer(EVERY, active=False)
        seen = gr.State(None)
        tab.select(self.open, names, [names, plot, state, seen, self.timer], api_name="training", **AT_ONCE)
        names.input(self.show, names, [plot, state, seen], **QUIET)
        self.timer.tick(self.tick, [names, seen], [plot, state, seen], **QUIET)

    def open(self, request: gr.Request, names):
        """The runs that there are, and the curves of those chosen, or of the newest."""
        there = list(self.runs.logs())
        names = [name for name in names or [] if name in there] or there[:FIRST_RUNS]
        return [gr.update(choices=there, value=names), *self.show(request, names), gr.Timer(active=True)]

    def show(self, request: gr.Request, names):
        """Curves and states of runs."""
        try:
            points = self.runs.curves(names or [])
            states = [(name, self.runs.state(name)) for name in names or []]
            seen = self.runs.stamp(names or [])
        except Exception as error:  # whatever is in a log, the page lives on
            return [gr.skip(), warning(request, error), gr.skip()]
        said = [self.said(request, name, state) for name, state in states if state]
        return [chart(request, points), "\n".join(said) or say(request, "no_runs"), seen]

    def tick(self, request: gr.Request, names, seen):
        """As `show`; the curves are sent only where a run has a new line."""
        plot, said, now = self.show(request, names)
        return [gr.skip() if now == seen else plot, said, now]

    def said(self, request, name, state):
        """A run's last figures, and whether it is going on."""
        losses = {
            kind: "–" if state[f"{kind}_loss"] is None else f"{state[f'{kind}_loss']:.4f}" for kind in ("train", "val")
        }
        when = say(request, "run_going", age=state["age"]) if state["going_on"] else say(request, "run_ended")
        return say(request, "run_state", name=name, step=state["step"], **losses, when=when)


def chart(request, points):
    """The curves of (step, loss, curve's name); None without any."""
    if not points:
        return None
    frame = pandas.DataFrame(points, columns=["step", "loss", "curve"])
    lines = (
        altair.Chart(frame)
        .mark_line(point=altair.OverlayMarkDef(size=12))
        .encode(
            x=altair.X("step:Q", title=say(request, "step")),
            y=altair.Y("loss:Q", title=say(request, "loss")),
            color=altair.Color("curve:N", title=None, legend=altair.Legend(orient="bottom", columns=2, labelLimit=300)),
            tooltip=["curve", "step", altair.Tooltip("loss", format=".4f")],
        )
    )
    return styled(lines, PIXELS)
