"""Shared by the tabs in which a visitor asks models: the way of a request, its inputs, and how answers are shown."""

import contextlib
import html
from types import SimpleNamespace

import gradio as gr

from minigpt.arena.answers import follow_answers
from minigpt.arena.problems import Problem
from minigpt.arena.votes import SAMPLING_KEYS, flag_answers
from minigpt.arena_ui.common import UNQUEUED, T, explain_error, status_line, translate, visitor_key, warning_line
from minigpt.inference.params import SamplingParams


class AskingTab:
    """A tab that asks models. name: of the tab, part of its visitors' keys in arena.running.

    A tab that calls `answer` has the methods `progress`, `finished` and `cleared`. Each returns updates
    {component: value}; components that are not in it stay as they are.
    """

    name = ""
    state = None  # the status line, if the tab has added it before the prompt

    def __init__(self, page):
        self.page, self.arena = page, page.arena

    def add_prompt(self, chats, inputs, shown, kept, prefix="", buttons=()):
        """Add the status line (unless it is there), the prompt, its buttons and the sampling fields, and connect them.

        chats: chatbots, whose own clear button works like ours; inputs: components whose values `ask` gets first;
        shown, buttons: further components that `ask` updates; kept: initial value of the tab's gr.State; prefix: of the
        element ids and API names.
        """
        self.state = self.state or status_line(f"state-{self.name}")
        self.prompt = gr.Textbox(
            label=T("prompt"), placeholder=T("prompt_hint"), lines=1, max_lines=6, elem_id=f"{prefix}prompt"
        )
        with gr.Row(elem_classes="actions"):
            variants = {"send": "primary", "stop": "stop", "clear": "secondary", "flag": "secondary"}
            send, stop, clear, flag = (
                gr.Button(T(key), variant=variant, elem_id=f"{prefix}{key}", min_width=70)
                for key, variant in variants.items()
            )
            self.add_buttons()
        gr.Markdown(T(f"{self.name}_keys"), elem_classes="hint")
        fields = self.fields = sampling_fields(self.page)
        self.kept = gr.State(kept)
        outputs, api = [*shown, self.prompt, self.state, self.kept, *buttons], prefix.replace("-", "_")
        gr.on(
            [send.click, self.prompt.submit], self.ask, [*inputs, self.prompt, self.kept, *fields], outputs,
            api_name=f"{api}ask", show_progress="hidden",
        )  # fmt: skip
        stop.click(self.stop, None, self.state, api_name=f"{api}stop", **UNQUEUED)
        cleared = [clear.click, *(chat.clear for chat in chats)]
        gr.on(cleared, self.clear, None, outputs, api_name=f"{api}clear", **UNQUEUED)
        flag.click(self.flag, self.kept, self.state, api_name=f"{api}flag", **UNQUEUED)

    def add_buttons(self):
        """Add further buttons to those of the prompt."""

    def open_token(self, request):
        """Context manager of a new CancelToken for the visitor."""
        return self.arena.running.open_token(visitor_key(request, self.name))

    def answer(self, request, kept, choose_models, prompt, fields, blind=False):
        """Ask models; yields updates until all have answered.

        kept: value of the tab's gr.State; choose_models(): names of the models, may raise Problem; fields: values of
        `sampling_fields`; blind: models' names are not shown.
        """
        with self.open_token(request) as token:
            try:
                prompt_text, params = self.arena.check_prompt(prompt), self.arena.check_params(*fields)
                names = choose_models()
                if waiting := [name for name in names if not self.arena.is_ready(name)]:
                    yield {self.state: translate(request, "loading", name="…" if blind else ", ".join(waiting))}
                answers = self.arena.ask_all([(name, prompt_text) for name in names], params)
            except Exception as error:  # loading a model file may raise anything
                yield {self.prompt: prompt, self.state: warning_line(request, error)}
                return
            token.add(answers)
            # The prompt is emptied once only, because the visitor may type the next one during the answer.
            once = {self.prompt: "", **self.begun()}
            with contextlib.closing(follow_answers(answers)) as updates:
                for _ in updates:
                    if not token.discarded:
                        yield {**once, **self.progress(request, kept, prompt_text, answers, blind)}
                        once = {}
            if token.discarded:
                yield self.cleared()
            else:
                yield self.finished(request, kept, prompt_text, answers, sampling_dict(params), blind)

    def begun(self):
        """Updates at the start of an answer."""
        return {}

    def stop(self, request: gr.Request):
        """Stop the visitor's request; its text so far stays. Returns a status line."""
        stopped = self.arena.running.stop(visitor_key(request, self.name))
        return translate(request, "stopped" if stopped else "nothing_runs")

    def clear(self, request: gr.Request):
        """Stop the visitor's request and empty the tab."""
        self.arena.running.stop(visitor_key(request, self.name), discard=True)
        return self.cleared()

    def flag(self, request: gr.Request, kept):
        """Write the last answers to the CSV file, with the models' names even if the page hides them."""
        if not kept["last"]:
            return translate(request, "nothing_to_flag")
        try:
            flag_answers(self.arena.flagged, *kept["last"])
        except Problem as error:
            return warning_line(request, error)
        return translate(request, "flagged", path=self.arena.flagged.name)


def slider_ranges(arena):
    """{key: (low, high)} of the sampling parameters that have a slider; whole numbers where both are int."""
    return {
        "max_new_tokens": (1, arena.settings.max_tokens_limit), "temperature": (0.0, 2.0), "top_k": (0, 200),
        "top_p": (0.0, 1.0), "frequency_penalty": (-2.0, 2.0),
    }  # fmt: skip


def sampling_fields(page):
    """The inputs of the sampling parameters, in the order of SAMPLING_KEYS."""
    default, ranges = SamplingParams(), slider_ranges(page.arena)

    def slider(key, step):
        return gr.Slider(*ranges[key], getattr(default, key), step=step, label=T(key))

    with gr.Accordion(T("sampling"), open=False):
        with gr.Row():
            longest, temperature = slider("max_new_tokens", 1), slider("temperature", 0.05)
        with gr.Row():
            top_k, top_p = slider("top_k", 1), slider("top_p", 0.01)
        with gr.Row():
            penalty = slider("frequency_penalty", 0.05)
            seed = gr.Textbox("", label=T("seed"), max_length=16)  # gr.Number would return 0 for an empty field
    return [longest, temperature, top_k, top_p, penalty, seed]


def sampling_dict(params):
    """SamplingParams as votes and flagged answers store them."""
    return {key: getattr(params, key) for key in SAMPLING_KEYS}


def plain_chat(label, **options):
    """A chatbot that shows plain text: no Markdown, HTML, formulas or files."""
    return gr.Chatbot(
        label=T(label), render_markdown=False, sanitize_html=True, latex_delimiters=[], allow_tags=False,
        allow_file_downloads=False, group_consecutive_messages=False, **options,
        buttons=[],  # Gradio's copy button would copy the escaped HTML: see answer_footer
    )  # fmt: skip


def answer_footer(chat, elem_id, name):
    """The status line of a chatbot, with a button that copies its last answer as plain text. Returns the status line.

    elem_id: of the status line; name: the button's id is copy-<name>.
    """
    with gr.Row(elem_classes="answer-footer"):
        state = status_line(elem_id)
        copy = gr.Button(T("copy"), size="sm", scale=0, min_width=64, elem_id=f"copy-{name}")
    copy.click(None, chat, None, js="(chat) => minigpt.copyAnswer(chat)", api_visibility="private")
    return state


def plain_message(role, content):
    """A chatbot's message that shows exactly this text. It is escaped, because Gradio renders it as HTML even without
    Markdown."""
    return {"role": role, "content": [{"type": "text", "text": html.escape(content, quote=False)}]}


def chat_turn(request, prompt, answer):
    """The two messages of a prompt and the ModelAnswer so far."""
    text = translate(request, "no_answer") if answer.ended and not answer.text else answer.text
    return [plain_message("user", prompt), plain_message("assistant", text)]


def answer_status(request, answer):
    """The status line of a ModelAnswer: its error, or its times and why it ended."""
    if answer.failure:
        return translate(request, "failed", name=answer.name, reason=explain_error(request, answer.failure))
    if answer.seconds_to_first is None and not answer.ended:
        return translate(request, "answering", name=answer.name)
    notes = [end_key(answer)] if answer.ended else []
    notes += ["prompt_cut"] if answer.stream.prompt_cut else []
    first = f"{answer.seconds_to_first:.2f} s" if answer.seconds_to_first is not None else "–"
    return translate(
        request, "time_taken", first=first, total=answer.seconds, tokens=answer.tokens, rate=answer.rate or 0.0,
        end="".join(translate(request, key) for key in notes if key),
    )  # fmt: skip


def end_key(answer):
    """The key of the text that says why an answer ended; "" if the model ended it."""
    reason = answer.stream.finish_reason
    if answer.stopped:
        return "end_stopped"
    if answer.cut:
        return f"end_{answer.cut}"
    return {"cancelled": "end_time", "length": "end_length"}.get(reason, "")


def snapshot(answer):
    """The part of a ModelAnswer that is kept in a gr.State."""
    return SimpleNamespace(key=answer.key, text=answer.text)
