"""The tab of the models: a card for each run, with its size, origin, losses and measured figures."""

import html
import time
from urllib.parse import urlencode

import gradio as gr

from minigpt.arena_ui.common import PRIVATE, UNQUEUED, explain_error, translate

SPARK_WIDTH, SPARK_HEIGHT = 240, 44  # units of the small curve; it is as wide as its card
SHARES = ("exact_match",)  # figures that are shown in percent


class ModelsTab:
    """Adds its components to the open gr.Tab, `tab`; selecting it reads the cards again."""

    def __init__(self, page, tab):
        self.arena = page.arena
        self.html = gr.HTML(elem_id="model-cards", js_on_load=None, apply_default_css=False)
        tab.select(self.render, None, self.html, api_name="models", **UNQUEUED)
        page.opened(self.render, None, self.html, **PRIVATE)

    def render(self, request: gr.Request):
        """The cards as HTML, all texts in it escaped."""
        cards = "".join(card_html(request, card) for card in self.arena.cards.read())
        cards += "".join(remote_html(request, choice) for choice in self.arena.choices() if choice.checkpoint is None)
        problems = "".join(
            f"<li>{html.escape(explain_error(request, problem))}</li>" for problem in self.arena.models.checkpoints()[1]
        )
        notes = f'<ul class="broken">{problems}</ul>' if problems else ""
        return (f'<ul class="cards">{cards}</ul>' if cards else "") + notes


def card_html(request, card):
    """A ModelCard as a list item."""
    info = card.info
    kind = translate(request, f"task_{info.task}" if info.task else f"stage_{info.stage}")
    badges = [badge(kind, info.stage)]
    if info.is_adapter:
        badges.append(badge(translate(request, "card_adapter"), "adapter"))
    if card.active:
        badges.append(badge(translate(request, "card_active"), "active"))
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.seconds))
    facts = [
        (translate(request, "card_size"), f"{info.parameters / 1e6:.1f}M"),
        (translate(request, "card_loss"), "–" if info.val_loss is None else f"{info.val_loss:.3f}"),
        *(figure_fact(request, key, figure) for key, figure in card.figures.items()),
    ]
    chain = " → ".join(card.chain)
    parts = [
        f'<header><h2>{html.escape(info.name)}</h2><span class="badges">{"".join(badges)}</span></header>',
        f'<p class="chain">{html.escape(chain)}</p>' if len(card.chain) > 1 else
        f'<p class="chain">{html.escape(translate(request, "card_scratch"))}</p>' if info.stage == "pretrain" else "",
        "<dl>" + "".join(fact_html(*fact) for fact in facts) + "</dl>",
        sparkline(request, card.curve),
        f"<footer><span>{html.escape(translate(request, 'card_saved', step=f'{info.step:,}', when=saved))}</span>",
        ask_link(request, info.name) if info.stage in ("pretrain", "sft") else "",
        "</footer>",
    ]  # fmt: skip
    return f'<li class="card">{"".join(parts)}</li>'


def remote_html(request, choice):
    """A remote ModelChoice as a list item."""
    facts = fact_html(translate(request, "card_response"), f"{choice.seconds * 1000:.0f} ms")
    kind = badge(translate(request, "card_remote"), "remote")
    head = f'<header><h2>{html.escape(choice.name)}</h2><span class="badges">{kind}</span></header>'
    footer = f"<footer><span></span>{ask_link(request, choice.name)}</footer>"
    return f'<li class="card">{head}<dl>{facts}</dl>{footer}</li>'


def badge(text, kind):
    """A short label in a colour of page.css."""
    return f'<span class="badge badge-{kind}">{html.escape(text)}</span>'


def fact_html(name, value, *notes):
    """A name and a value of a card; notes: smaller lines below."""
    small = "".join(f"<small>{html.escape(note)}</small>" for note in notes)
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}{small}</dd></div>"


def figure_fact(request, key, figure):
    """(name, value, notes …) of a measured figure: its interval, the questions, and whether it was trained on them."""
    notes = [] if figure.low is None else [f"{show(key, figure.low)} – {show(key, figure.high)}"]
    if figure.pairs is not None:
        notes.append(translate(request, "card_pairs", count=int(figure.pairs)))
    notes += [] if figure.clean else [translate(request, "card_not_clean")]
    return translate(request, f"card_{key}"), show(key, figure.value), *notes


def show(key, value):
    """The value of a figure as text."""
    return f"{value:.1%}" if key in SHARES else f"{value:.3f}" if value < 100 else f"{value:.0f}"


def ask_link(request, name):
    """A link that opens the page with this model chosen."""
    href = html.escape("?" + urlencode({"model": name}), quote=True)
    label = html.escape(translate(request, "card_ask_label", name=name), quote=True)
    return f'<a href="{href}" aria-label="{label}">{html.escape(translate(request, "card_ask"))}</a>'


def sparkline(request, curve):
    """The validation losses [(step, loss)] as a small SVG, and in words; "" for less than two."""
    if len(curve) < 2:
        return ""
    steps, losses = zip(*curve, strict=True)
    low, high, first, last = min(losses), max(losses), steps[0], steps[-1]
    points = " ".join(
        f"{(step - first) / max(last - first, 1) * SPARK_WIDTH:.1f},"
        f"{4 + (high - loss) / max(high - low, 1e-9) * (SPARK_HEIGHT - 8):.1f}"
        for step, loss in curve
    )
    said = translate(
        request, "card_curve", first=f"{losses[0]:.3f}", last=f"{losses[-1]:.3f}", best=f"{low:.3f}", count=len(curve)
    )
    return (
        f'<figure><svg viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{points}"/></svg><figcaption>{html.escape(said)}</figcaption></figure>'
    )
