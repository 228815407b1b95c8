"""The tab that looks inside a checkpoint: surprise, next tokens, attention, the logit lens, neighbours, and two
checkpoints on one text. What it shows is computed by `minigpt.arena.inspecting`."""

import html
import time

import altair
import gradio as gr
import pandas

from minigpt.arena.problems import Problem, validate_number
from minigpt.arena_ui.common import (
    PRIVATE,
    T,
    default_models,
    model_dropdown,
    status_line,
    style_chart,
    translate,
    warning_line,
)
from minigpt.inference.params import SamplingParams

EXAMPLE_TEXT = "铁的元素符号是什么？##铁的元素符号是Fe。"
FULL_COLOUR_BITS = 12.0  # a token of so many bits, or of so large a difference, has the strongest colour
BAR_HEIGHT = 30  # pixels of a token's two bars
MAP_TOKEN_HEIGHT, MAP_MARGIN, MAP_MAX_HEIGHT = 16, 110, 760  # pixels of the attention map
MODEL_COLOUR, KEPT_COLOUR = "#5c7cfa", "#e8590c"
MEAN_OF_HEADS = -1
LIVE = {**PRIVATE, "trigger_mode": "always_last"}  # while a slider moves, only the newest value is waited for
# Clicks and keys on the tokens. Arrow keys move between them, as in a toolbar, and Enter or Space chooses one. The page
# is not asked to draw the tokens again for that, so the focus stays.
TOKENS_SCRIPT = """
const chosen = (button) => {
  const all = [...element.querySelectorAll(".look-token")];
  for (const each of all) {
    each.setAttribute("aria-pressed", each === button);
    each.tabIndex = each === button ? 0 : -1;
  }
  return all.indexOf(button);
};
element.addEventListener("click", (event) => {
  const button = event.target.closest(".look-token");
  if (button) trigger("select", {index: chosen(button), value: ""});
});
element.addEventListener("keydown", (event) => {
  const all = [...element.querySelectorAll(".look-token")], i = all.indexOf(document.activeElement);
  const to = {ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: all.length - 1}[event.key];
  if (i < 0 || to === undefined || !all[to]) return;
  event.preventDefault();
  all[to].focus();
});
"""


class LookTab:
    """Adds its components to the open gr.Tab.

    Its gr.State holds what was read last: {"name", "other", "text", "position"}, and None before.
    """

    def __init__(self, page):
        self.inspector, choose = page.arena.inspector, page.arena.local_choices
        names = [choice.name for choice in choose()]
        first = next((name for name in default_models(page, 1) if name in names), None)
        gr.Markdown(T("look_intro"), elem_id="look-intro")
        with gr.Row():
            wide = {"min_width": 280}
            model = model_dropdown(
                page, "model", first, choose, info=T("look_model_info"), elem_id="look-model", **wide
            )
            other = model_dropdown(
                page, "look_other", None, choose, info=T("look_other_info"), elem_id="look-other", **wide
            )
        text = gr.Textbox(
            EXAMPLE_TEXT, label=T("look_text"), info=T("look_text_info"), lines=2, max_lines=8, elem_id="look-text"
        )
        send = gr.Button(T("look_send"), variant="primary", elem_id="look-send")
        self.state = status_line("state-look")
        self.tokens = gr.HTML(T("look_empty"), elem_id="look-tokens", js_on_load=TOKENS_SCRIPT)
        self.table = gr.HTML(elem_id="look-table")
        self.kept = gr.State(None)

        # What follows the chosen token.
        default = SamplingParams()
        with gr.Column(visible=False, elem_id="look-details") as self.details:
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    self.bars = gr.Plot(label=T("look_next"), elem_id="look-next")
                with gr.Column(scale=2, min_width=260):
                    ranges = {"temperature": (0, 2, 0.05), "top_k": (0, 200, 1), "top_p": (0, 1, 0.01)}
                    self.sliders = [
                        gr.Slider(low, high, getattr(default, key), step=step, label=T(key), elem_id=f"look-{key}")
                        for key, (low, high, step) in ranges.items()
                    ]
            self.lens = gr.HTML(elem_id="look-lens")
            self.near = gr.HTML(elem_id="look-near")
            with gr.Row():
                self.layer = gr.Dropdown([], label=T("look_layer"), elem_id="look-layer")
                self.head = gr.Dropdown([], label=T("look_head_label"), elem_id="look-head")
            self.map = gr.Plot(label=T("look_attention"), elem_id="look-attention")
        with gr.Accordion(T("look_subjects"), open=False, elem_id="look-subjects"):
            gr.Markdown(T("look_subjects_info"))
            with gr.Row():
                subject = gr.Textbox("铁", label=T("look_subject"), scale=3, elem_id="look-subject")
                find = gr.Button(T("look_find"), scale=1, min_width=90, elem_id="look-find")
            subject_state = status_line("state-look-subjects")
            found = gr.HTML(elem_id="look-found")
            agreement = gr.Plot(label=T("look_agreement"), elem_id="look-agreement")

        about_token = [self.bars, self.lens, self.near]
        shown = [self.state, self.tokens, self.table, self.kept, self.details, *about_token]
        shown += [self.layer, self.head, self.map]
        gr.on(
            [send.click, text.submit], self.read, [model, other, text, *self.sliders], shown,
            api_name="look", show_progress="minimal", show_progress_on=self.state,
        )  # fmt: skip
        self.tokens.select(self.choose, [self.kept, *self.sliders], [self.state, self.kept, *about_token], **PRIVATE)
        for slider in self.sliders:
            slider.input(self.sample, [self.kept, *self.sliders], [self.state, self.bars], **LIVE)
        for choice in (self.layer, self.head):
            choice.input(self.attend, [self.kept, self.layer, self.head], [self.state, self.map], **LIVE)
        gr.on(
            [find.click, subject.submit], self.find, [model, subject], [subject_state, found, agreement],
            api_name="look_subject", show_progress="minimal", show_progress_on=subject_state,
        )  # fmt: skip
        self.arena = page.arena

    def read(self, request: gr.Request, name, other, text, *sampling):
        """Yields the state of loading, then everything about a text, with its last token chosen."""
        waiting = [each for each in (name, other) if each and not self.arena.is_ready(each)]
        if waiting:
            yield {self.state: translate(request, "loading", name=", ".join(waiting))}
        try:
            started = time.perf_counter()
            read = self.inspector.tokens(local(name), text)
            pairs = self.inspector.compared(name, local(other), text) if other else None
            kept = {"name": name, "other": other, "text": text, "position": max(0, len(read.labels) - 2)}
            updates = {
                self.tokens: tokens_html(request, read, kept["position"], pairs),
                self.table: table_html(request, read, pairs, name, other),
                self.kept: kept,
                self.details: gr.update(visible=True),
                self.layer: gr.update(choices=list(range(1, read.layers + 1)), value=read.layers),
                self.head: gr.update(
                    choices=[(translate(request, "look_mean"), MEAN_OF_HEADS), *range(1, read.heads + 1)],
                    value=MEAN_OF_HEADS,
                ),
                self.map: self.attention_chart(request, kept, read.labels, read.layers, MEAN_OF_HEADS),
                **self.about_token(request, kept, read.labels, sampling),
            }
        except Exception as error:  # loading a model file may raise anything
            yield {self.state: warning_line(request, error)}
            return
        yield {**updates, self.state: describe(request, read, pairs, name, other, time.perf_counter() - started)}

    def choose(self, request: gr.Request, chosen: gr.SelectData, kept, *sampling):
        """What follows the token that was clicked."""
        if not kept:
            return {self.state: ""}
        try:
            labels = self.inspector.tokens(kept["name"], kept["text"]).labels
            kept = {**kept, "position": validate_number("look_position", chosen.index, 0, len(labels) - 1)}
            updates = self.about_token(request, kept, labels, sampling)
        except Exception as error:  # the visitor's browser may send anything
            return {self.state: warning_line(request, error)}
        return {**updates, self.kept: kept}

    def sample(self, request: gr.Request, kept, *sampling):
        """The bars for new sampling parameters."""
        if not kept:
            return {self.state: ""}
        try:
            return {self.bars: self.candidates_chart(request, kept, sampling)}
        except Exception as error:
            return {self.state: warning_line(request, error)}

    def attend(self, request: gr.Request, kept, layer, head):
        """The attention map of another layer or head."""
        if not kept:
            return {self.state: ""}
        try:
            labels = self.inspector.tokens(kept["name"], kept["text"]).labels
            return {self.map: self.attention_chart(request, kept, labels, layer, head)}
        except Exception as error:
            return {self.state: warning_line(request, error)}

    def find(self, request: gr.Request, name, subject):
        """Yields the state of loading, then a subject's neighbours and how often neighbours are of one field."""
        if name and not self.arena.is_ready(name):
            yield [translate(request, "loading", name=name), gr.skip(), gr.skip()]
        try:
            started = time.perf_counter()
            agreement, near = self.inspector.near_subjects(local(name), subject)
        except Exception as error:
            yield [warning_line(request, error), gr.skip(), gr.skip()]
            return
        last = agreement[-1]
        state = translate(
            request, "look_agreement_state", share=last.share, low=last.low, high=last.high, chance=last.chance,
            embedding=agreement[0].share, subjects=last.subjects, seconds=time.perf_counter() - started,
        )  # fmt: skip
        yield [state, subjects_html(request, subject, near), agreement_chart(request, agreement)]

    def about_token(self, request, kept, labels, sampling):
        """Updates of what is shown about the chosen token."""
        name, text, position = kept["name"], kept["text"], kept["position"]
        return {
            self.bars: self.candidates_chart(request, kept, sampling),
            self.lens: lens_html(request, labels, position, self.inspector.lens(name, text, position)),
            self.near: near_html(request, labels[position], self.inspector.near_tokens(name, text, position)),
        }

    def candidates_chart(self, request, kept, sampling):
        """altair.Chart of the next tokens: the model's probabilities, and what sampling leaves of them."""
        found = self.inspector.candidates(kept["name"], kept["text"], kept["position"], *sampling)
        series = [translate(request, key) for key in ("look_by_model", "look_by_sampling")]
        order = [f"{rank}  {token.label}" for rank, token in enumerate(found, 1)]
        rows = [
            {"token": label, "series": which, "p": p, "percent": percent(p)}
            for label, token in zip(order, found, strict=True)
            for which, p in zip(series, (token.probability, token.kept), strict=True)
        ]
        axis = altair.Axis(format="%")
        x = altair.X("p:Q", title=translate(request, "look_probability"), scale=altair.Scale(domain=[0, 1]), axis=axis)
        base = altair.Chart(pandas.DataFrame(rows)).encode(
            y=altair.Y("token:N", sort=order, title=None, axis=altair.Axis(labelLimit=150, labelFontSize=13)),
            yOffset=altair.YOffset("series:N", sort=series),
            x=x,
            tooltip=["token", "series", "percent"],
        )
        colour = altair.Color(
            "series:N", sort=series, title=None, scale=altair.Scale(domain=series, range=[MODEL_COLOUR, KEPT_COLOUR]),
            legend=altair.Legend(orient="top", labelLimit=300),
        )  # fmt: skip
        numbers = base.mark_text(align="left", dx=3, fontSize=10, color="#808488").encode(text="percent")
        return style_chart(base.mark_bar().encode(color=colour) + numbers, BAR_HEIGHT * len(found) + 30)

    def attention_chart(self, request, kept, labels, layer, head):
        """altair.Chart of a head's attention weights: a row for each token, a column for each that it attends to."""
        layer = validate_number("look_layer", layer, 1, 10_000) - 1
        head = None if head == MEAN_OF_HEADS else validate_number("look_head_label", head, 1, 10_000) - 1
        rows = self.inspector.attention(kept["name"], kept["text"], layer, head)
        virtual = len(rows[0]) - 1
        columns = [f"{i}  {translate(request, 'look_virtual')}" for i in range(-virtual, 0)]
        names = [f"{i}  {label}" for i, label in enumerate(labels, 1)]
        columns += names
        frame = pandas.DataFrame(
            [(names[i], columns[j], weight) for i, row in enumerate(rows) for j, weight in enumerate(row)],
            columns=["from", "to", "weight"],
        )
        titles = {key: translate(request, f"look_{key}") for key in ("from", "to", "weight")}
        labels = {"labelOverlap": True, "labelLimit": 90}
        legend = altair.Legend(format="%", orient="top", gradientLength=200)
        scale = altair.Scale(scheme="viridis", domain=[0, 1])
        chart = altair.Chart(frame).mark_rect().encode(
            x=altair.X("to:N", sort=columns, title=titles["to"], axis=altair.Axis(labelAngle=-60, **labels)),
            y=altair.Y("from:N", sort=names, title=titles["from"], axis=altair.Axis(**labels)),
            color=altair.Color("weight:Q", title=None, scale=scale, legend=legend),
            tooltip=[
                *(altair.Tooltip(f"{key}:N", title=titles[key]) for key in ("from", "to")),
                altair.Tooltip("weight:Q", title=titles["weight"], format=".1%"),
            ],
        )  # fmt: skip
        return style_chart(chart, min(MAP_MAX_HEIGHT, MAP_MARGIN + MAP_TOKEN_HEIGHT * len(names)))


def local(name):
    """A model's name, which must be of this machine. Raises Problem."""
    if name and "@" in name:
        raise Problem("look_far", name=name)
    return name


def percent(share):
    """A probability as text: 0 is what is left out."""
    return "0" if share == 0 else "<0.1%" if share < 0.001 else f"{share:.1%}"


def escape(text):
    """A text for our HTML. Gradio fills it into a template, so the template's signs are escaped, too."""
    return "".join(f"&#{ord(c)};" if c in "${}`\\" else c for c in html.escape(text))


def bits_text(value, signed=False):
    """Bits as text; – for a token that has none."""
    return "–" if value is None else f"{value:+.2f}" if signed else f"{value:.2f}"


def tokens_html(request, read, position, pairs):
    """The tokens as buttons, coloured by surprise, and under them, for two checkpoints, by the difference."""
    buttons = []
    for i, (label, bits) in enumerate(zip(read.labels, read.bits, strict=True)):
        said = translate(request, "look_first" if bits is None else "look_bits", bits=bits_text(bits))
        strength = min(1.0, (bits or 0.0) / FULL_COLOUR_BITS)
        buttons.append(
            f'<button type="button" class="look-token" style="--look:{strength:.3f}" data-bits="{escape(said)}" '
            f'aria-label="{escape(f"{label}: {said}")}" aria-pressed="{str(i == position).lower()}" '
            f'tabindex="{0 if i == position else -1}">{escape(label)}</button>'
        )
    line = f'<div class="look-line" role="group" aria-label="{escape(translate(request, "look_tokens"))}">'
    parts = [
        f"<p class='look-legend'>{escape(translate(request, 'look_legend'))}</p>",
        line + "".join(buttons) + "</div>",
    ]
    if pairs:
        parts.append(f"<p class='look-legend'>{escape(translate(request, 'look_difference_legend'))}</p>")
        spans = []
        for pair in pairs:
            change = pair.difference or 0.0
            strength, kind = min(1.0, abs(change) / FULL_COLOUR_BITS), "more" if change > 0 else "less"
            said = translate(request, "look_bits", bits=bits_text(pair.difference, signed=True))
            spans.append(
                f'<span class="look-change look-{kind}" style="--look:{strength:.3f}" title="{escape(said)}">'
                f"{escape(pair.label)}</span>"
            )
        parts.append(f'<div class="look-line" id="look-compared">{"".join(spans)}</div>')
    return "".join(parts)


def table_html(request, read, pairs, name, other):
    """The same numbers in a table that opens: a row for each token."""
    heads = ["", translate(request, "look_token"), translate(request, "look_bits_of", name=name)]
    rows = [
        [str(i), label, bits_text(bits)] for i, (label, bits) in enumerate(zip(read.labels, read.bits, strict=True), 1)
    ]
    if pairs:
        heads += [translate(request, "look_bits_of", name=other), translate(request, "look_difference")]
        rows = [
            [*row, bits_text(pair.bits[1]), bits_text(pair.difference, True)]
            for row, pair in zip(rows, pairs, strict=False)
        ]
    title = escape(translate(request, "look_table"))
    return f"<details><summary>{title}</summary>{look_table(heads, rows)}</details>"


def look_table(heads, rows, styles=None):
    """An HTML table of texts. styles: {(row, column): a cell's style}."""
    styles = styles or {}
    top = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{styles.get((i, j), "")}">{escape(cell)}</td>' for j, cell in enumerate(row))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="look-scroll"><table class="look-cells"><tr>{top}</tr>{body}</table></div>'


def lens_html(request, labels, position, rows):
    """The logit lens as a table, the model's output first."""
    count = len(rows[0].top)
    follows = labels[position + 1] if position + 1 < len(labels) else None
    heads = [translate(request, "look_layer"), *(str(rank) for rank in range(1, count + 1))]
    heads += [translate(request, "look_follows", label=follows)] if follows is not None else []
    cells, styles = [], {}
    for i, row in enumerate(reversed(rows)):
        name = translate(request, "look_embedding" if not row.layer else "look_layer_n", layer=row.layer)
        cells.append([name, *(f"{label} {percent(p)}" for label, p in row.top)])
        styles |= {(i, j): f"--look:{p:.3f}" for j, (_, p) in enumerate(row.top, 1)}
        if follows is not None:
            said = translate(request, "look_rank", p=percent(row.next_probability), rank=row.next_rank)
            cells[-1].append(said)
            styles[i, count + 1] = f"--look:{row.next_probability:.3f}"
    title = escape(translate(request, "look_lens", label=labels[position]))
    return f"<h2>{title}</h2>{look_table(heads, cells, styles)}"


def near_html(request, label, near):
    """A token's nearest tokens."""
    title = escape(translate(request, "look_near", label=label))
    return f"<h2>{title}</h2>{chips([(other, f'{cosine:.2f}') for other, cosine in near])}"


def subjects_html(request, subject, near):
    """A subject's nearest subjects with their fields."""
    title = escape(translate(request, "look_near_subjects", subject=subject.strip()))
    pairs = [(name, f"{translate(request, f'look_field_{field}')} {cosine:.2f}") for name, field, cosine in near]
    return f"<h2>{title}</h2>{chips(pairs)}"


def chips(pairs):
    """[(text, note)] as a line of small boxes."""
    each = "".join(f"<li><b>{escape(text)}</b> <span>{escape(note)}</span></li>" for text, note in pairs)
    return f'<ul class="look-chips">{each}</ul>'


def describe(request, read, pairs, name, other, seconds):
    """The status line of a text that was read."""
    known = [bits for bits in read.bits if bits is not None]
    mean = bits_text(sum(known) / len(known) if known else None)
    line = translate(request, "look_state", name=name, tokens=len(read.labels), mean=mean, seconds=seconds)
    if pairs and any(pair.difference is not None for pair in pairs):
        second = [pair.bits[1] for pair in pairs if pair.difference is not None]
        line += translate(request, "look_state_other", name=other, mean=bits_text(sum(second) / len(second)))
    return line + (translate(request, "look_cut", count=read.left_out) if read.left_out else "")


def agreement_chart(request, agreement):
    """altair.Chart of the share of neighbours of one field by layer, with its intervals and with chance."""
    rows = [
        {"layer": layer, "share": each.share, "low": each.low, "high": each.high, "chance": each.chance}
        for layer, each in enumerate(agreement)
    ]
    base = altair.Chart(pandas.DataFrame(rows)).encode(
        x=altair.X("layer:O", title=translate(request, "look_layers_axis"), axis=altair.Axis(labelAngle=0)),
        tooltip=["layer", *(altair.Tooltip(key, format=".1%") for key in ("share", "low", "high", "chance"))],
    )
    scale = altair.Scale(domain=[0, 1])
    share = altair.Y("share:Q", title=translate(request, "look_share"), scale=scale, axis=altair.Axis(format="%"))
    intervals = base.mark_rule(strokeWidth=3, color="#8aa4f0").encode(y=altair.Y("low:Q", scale=scale), y2="high:Q")
    points = base.mark_point(filled=True, size=90, color="#5c7cfa").encode(y=share)
    chance = base.mark_line(strokeDash=[5, 4], color="#808488").encode(y=altair.Y("chance:Q", scale=scale))
    return style_chart(chance + intervals + points, 220)
