"""Shared by the page's tabs: texts in the visitor's language, permissions, lists of models, charts, status lines."""

import ipaddress
import shutil
import sys
import tempfile
import threading
import traceback
from collections import deque
from pathlib import Path

import gradio as gr

from minigpt.arena.problems import describe_error
from minigpt.arena_ui.i18n import PREFIX, TEXTS, fill_text, language_for
from minigpt.common.errors import UserError
from minigpt.common.net import LOOPBACK_HOSTS, host_name

# Headers by which a proxy or tunnel on this machine shows that the request came from another one.
FORWARDING_HEADERS = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
CHART_GREY = "#808488"  # readable on white and on black
CHART_PADDING = {"left": 8, "right": 24, "top": 30, "bottom": 8}  # pixels; Gradio puts the plot's label at the top
MAX_DOWNLOADS = 100  # files; beyond these the oldest is deleted
# Options of handlers that return once. They bypass Gradio's queue, whose event stream may be closing at that moment.
UNQUEUED = {"queue": False, "show_progress": "hidden"}
PRIVATE = {**UNQUEUED, "api_visibility": "private"}
TABLE = {"interactive": False, "wrap": True}


class PageContext:
    """Passed to each tab. opened: the event of a visitor opening the page; models: {drop-down that lists models: the
    function that gives its [ModelChoice]}."""

    def __init__(self, arena, opened):
        self.arena, self.opened, self.models = arena, opened, {}
        self._folders, self._lock = deque(), threading.Lock()

    def save_download(self, name, content):
        """Write a file that a visitor can download, and return its path. Deletes the oldest beyond MAX_DOWNLOADS."""
        folder = Path(tempfile.mkdtemp(dir=self.arena.downloads.name))
        (folder / name).write_text(content, encoding="utf-8", errors="replace", newline="")
        with self._lock:
            self._folders.append(folder)
            old = [self._folders.popleft() for _ in range(len(self._folders) - MAX_DOWNLOADS)]
        for each in old:
            shutil.rmtree(each, ignore_errors=True)
        return str(folder / name)


def T(key):
    """The label of a key; the browser shows it in its language. Raises KeyError for an unknown key."""
    if key not in TEXTS:
        raise KeyError(key)
    return gr.I18n()(PREFIX + key)


def translate(request, key, **values):
    """The text of a key in the language of a request (gr.Request; None: English)."""
    return fill_text(key, language_for(request), **values)


def explain_error(request, error):
    """The message for a visitor about an exception. The traceback of an unexpected one is printed."""
    if isinstance(error, UserError):
        return describe_error(error, lambda key, **values: translate(request, key, **values))
    print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return translate(request, "failed_unknown")


def warning_line(request, error):
    """An exception as a status line."""
    return f"⚠ {explain_error(request, error)}"


def is_trusted(request):
    """Whether a request comes from a browser on this machine, or from a user who has logged in."""
    if request is None:
        return False
    if request.username:
        return True
    forwarded = any(
        key in FORWARDING_HEADERS or key.startswith("x-forwarded-") for key in map(str.lower, request.headers)
    )
    if forwarded or host_name(request.headers.get("host", "")) not in LOOPBACK_HOSTS:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def visitor_key(request, tab):
    """The key of a visitor's request in a tab, for arena.running."""
    return (request.session_hash if request else None, tab)


def choice_label(request, choice):
    """A ModelChoice as a drop-down shows it."""
    if choice.checkpoint is None:
        return translate(request, "choice_far", name=choice.name, ms=choice.seconds * 1000)
    info = choice.checkpoint
    loss = "" if info.val_loss is None else translate(request, "choice_loss", loss=info.val_loss)
    kind = translate(request, f"task_{info.task}" if info.task else f"stage_{info.stage}")
    return translate(
        request, "choice_near", name=info.name, size=f"{info.parameters / 1e6:.1f}M", stage=kind,
        step=f"{info.step:,}", loss=loss,
    )  # fmt: skip


def update_model_lists(page, request):
    """Updates for all drop-downs of page.models: the models that can be chosen now."""
    listed = {choose: labelled_choices(request, choose) for choose in page.models.values()}
    return [gr.update(choices=listed[choose]) for choose in page.models.values()]


def labelled_choices(request, choose):
    """The choices of a drop-down, as Gradio takes them. choose(): gives the [ModelChoice]."""
    return [(choice_label(request, choice), choice.name) for choice in choose()]


def default_models(page, count):
    """Names chosen when the page opens, None where there are too few: first the best checkpoint of each run, the newest
    run first."""
    names = [choice.name for choice in page.arena.choices()]
    runs = {}
    for name in names:
        runs.setdefault(name.split("/")[0], name)
    first = [*runs.values(), *[name for name in names if name not in runs.values()]]
    return [first[i] if i < len(first) else None for i in range(count)]


def model_dropdown(page, label, value, choose=None, **options):
    """A drop-down of models, updated together with the others. choose: gives its [ModelChoice]; None: the models that
    generate text."""
    choose = choose or page.arena.choices
    choices = labelled_choices(None, choose)
    # allow_custom_value: a model that has left the list is explained by our handlers, not by Gradio's own error.
    dropdown = gr.Dropdown(choices, value=value, label=T(label), allow_custom_value=True, **options)
    page.models[dropdown] = choose
    return dropdown


def style_chart(chart, height):
    """An altair.Chart as wide as its container and `height` pixels high, for light and dark pages."""
    grey = {"labelColor": CHART_GREY, "titleColor": CHART_GREY}
    chart = chart.properties(width="container", height=height, padding=CHART_PADDING, background="transparent")
    chart = chart.configure_axis(
        gridColor=CHART_GREY, gridOpacity=0.25, domainColor=CHART_GREY, tickColor=CHART_GREY, **grey
    )
    return chart.configure_legend(**grey).configure_view(stroke=None)


def status_line(elem_id, value=""):
    """A read-only text box for messages of one or a few lines."""
    return gr.Textbox(
        value, label=T("state"), interactive=False, container=False, lines=1, max_lines=8, elem_classes="status",
        elem_id=elem_id,
    )  # fmt: skip
