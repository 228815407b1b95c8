"""What the page's tabs share: the reader's language, who may change things, model lists, sampling fields, results."""

import functools
import ipaddress
import shutil
import sys
import tempfile
import threading
import traceback
from collections import deque
from pathlib import Path

import gradio as gr

from minigpt.arena.problems import in_words
from minigpt.arena_ui.i18n import PREFIX, TEXTS, language_of, text
from minigpt.common.errors import UserError

# By these a proxy or tunnel on this machine tells that the request came from elsewhere.
FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
GREY = "#808488"
PADDING = {"left": 8, "right": 24, "top": 30, "bottom": 8}  # of a chart; its label is at the top
# Of handlers that answer once: not through the queue, whose stream of events may be closing just then.
AT_ONCE = {"queue": False, "show_progress": "hidden"}
QUIET = {**AT_ONCE, "api_visibility": "private"}
TABLE = {"interactive": False, "wrap": True}
KEPT_FILES = 100  # for downloads


class Page:
    """What the tabs are built with. opened: the event of a visitor's coming; models: drop-downs that list models."""

    def __init__(self, arena, opened):
        self.arena, self.opened, self.models = arena, opened, []
        self._files, self._lock = deque(), threading.Lock()

    def file(self, name, content):
        """The path of a new file for a download; the oldest of many is deleted."""
        folder = Path(tempfile.mkdtemp(dir=self.arena.downloads.name))
        (folder / name).write_text(content, encoding="utf-8", errors="replace", newline="")
        with self._lock:
            self._files.append(folder)
            old = [self._files.popleft() for _ in range(len(self._files) - KEPT_FILES)]
        for each in old:
            shutil.rmtree(each, ignore_errors=True)
        return str(folder / name)


def T(key):
    """The label of a key, in the language of the browser."""
    if key not in TEXTS:
        raise KeyError(key)
    return gr.I18n()(PREFIX + key)


def say(request, key, **values):
    """A text in the language of whoever sent the request (gr.Request, or None)."""
    header = request.headers.get("accept-language") if request else None
    return text(key, language_of(header), **values)


def explain(request, error):
    """What an exception says to a person; one that is nobody's mistake is written to the console."""
    if isinstance(error, UserError):
        return in_words(error, lambda key, **values: say(request, key, **values))
    print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return say(request, "failed_unknown")


def warning(request, error):
    """The line that tells of an error."""
    return f"⚠ {explain(request, error)}"


def may_change(request):
    """Whether a request is from who sits at this machine, or has logged in."""
    if request is None:
        return False
    if request.username:
        return True
    name = request.headers.get("host", "").rsplit(":", 1)[0] if "host" in request.headers else ""
    passed_on = any(key in FORWARDED or key.startswith("x-forwarded-") for key in map(str.lower, request.headers))
    if passed_on or name not in LOCAL_NAMES:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def session(request, tab):
    """Who is asking, for arena.running."""
    return (request.session_hash if request else None, tab)


def choice_label(request, choice):
    """A model as the drop-downs list it."""
    if choice.checkpoint is None:
        return say(request, "choice_far", name=choice.name, ms=choice.seconds * 1000)
    about = choice.checkpoint
    loss = "" if about.val_loss is None else say(request, "choice_loss", loss=about.val_loss)
    return say(
        request, "choice_near", name=about.name, size=f"{about.parameters / 1e6:.1f}M",
        stage=say(request, f"stage_{about.stage}"), step=f"{about.step:,}", loss=loss,
    )  # fmt: skip


def model_lists(page, request):
    """Updates for all drop-downs of page.models: what can be chosen now."""
    choices = [(choice_label(request, choice), choice.name) for choice in page.arena.choices()]
    return [gr.update(choices=choices) for _ in page.models]


def first_models(page, count):
    """Names that are chosen when the page opens: the best checkpoint of each run, the newest run first."""
    names = [choice.name for choice in page.arena.choices()]
    runs = {}
    for name in names:
        runs.setdefault(name.split("/")[0], name)
    first = [*runs.values(), *[name for name in names if name not in runs.values()]]
    return [first[i] if i < len(first) else None for i in range(count)]


def model_dropdown(page, label, value, **more):
    """A drop-down of models, which refreshes with the others."""
    choices = [(choice_label(None, choice), choice.name) for choice in page.arena.choices()]
    # A value that is no longer in the list is the handlers' to explain, not Gradio's.
    dropdown = gr.Dropdown(choices, value=value, label=T(label), allow_custom_value=True, **more)
    page.models.append(dropdown)
    return dropdown


def styled(chart, pixels):
    """An altair.Chart as wide as its place, so many pixels high, to be read on white and on black."""
    grey = {"labelColor": GREY, "titleColor": GREY}
    chart = chart.properties(width="container", height=pixels, padding=PADDING, background="transparent")
    chart = chart.configure_axis(gridColor=GREY, gridOpacity=0.25, domainColor=GREY, tickColor=GREY, **grey)
    return chart.configure_legend(**grey).configure_view(stroke=None)


def status_line(elem_id):
    """A line or a few of plain text, which tells how something stands."""
    return gr.Textbox(
        label=T("state"),
        interactive=False,
        container=False,
        lines=1,
        max_lines=8,
        elem_classes="status",
        elem_id=elem_id,
    )


def reporting(handler):
    """A handler that returns one line, whose errors become that line."""

    @functools.wraps(handler)
    def safe(*arguments):
        request = next((a for a in arguments if isinstance(a, gr.Request)), None)
        try:
            return handler(*arguments)
        except Exception as error:  # whatever it is, the page lives on and says so
            return warning(request, error)

    return safe
