"""What the tabs in which one asks have in common: the prompt and its buttons, sampling, chats, times, Stop and Flag."""

import html
from dataclasses import asdict
from types import SimpleNamespace

import gradio as gr

from minigpt.arena.votes import flag
from minigpt.arena_ui.common import T, explain, reporting, say, session
from minigpt.inference.params import SamplingParams

SHOWN_TURNS = 20  # of a chat; what is older leaves the page


class AskingTab:
    """name: of the tab, by which arena.running knows its answers."""

    name = ""

    def __init__(self, page):
        self.page, self.arena = page, page.arena

    def ticket(self, request):
        """A ticket of arena.running for whoever sent the request."""
        return self.arena.running.ticket(session(request, self.name))

    def stop(self, request: gr.Request):
        """Stop what is being made for this reader."""
        return say(request, "stopped" if self.arena.running.stop(session(request, self.name)) else "nothing_runs")

    def discard(self, request):
        """Stop it, and show nothing of it."""
        self.arena.running.stop(session(request, self.name), discard=True)

    @reporting
    def flag(self, request: gr.Request, kept):
        """Write what was answered last down; of a blind battle, the names too, which the page does not tell."""
        if not kept["last"]:
            return say(request, "nothing_to_flag")
        flag(self.arena.flagged, *kept["last"])
        return say(request, "flagged", path=self.arena.flagged.name)


def sampling_fields(page):
    """The components of SamplingParams, in the order of Arena.checked_params."""
    default = SamplingParams()
    most = page.arena.settings.max_tokens_limit
    with gr.Accordion(T("sampling"), open=False):
        with gr.Row():
            longest = gr.Slider(1, most, default.max_new_tokens, step=1, label=T("max_new_tokens"))
            temperature = gr.Slider(0, 2, default.temperature, step=0.05, label=T("temperature"))
        with gr.Row():
            top_k = gr.Slider(0, 200, default.top_k, step=1, label=T("top_k"))
            top_p = gr.Slider(0, 1, default.top_p, step=0.01, label=T("top_p"))
        with gr.Row():
            penalty = gr.Slider(-2, 2, default.frequency_penalty, step=0.05, label=T("frequency_penalty"))
            seed = gr.Textbox("", label=T("seed"), max_length=16)  # a Number would make 0 of an empty one
    return [longest, temperature, top_k, top_p, penalty, seed]


def sampling_dict(params):
    """SamplingParams as votes and flags keep them."""
    values = asdict(params)
    return {
        key: values[key] for key in ("max_new_tokens", "temperature", "top_k", "top_p", "frequency_penalty", "seed")
    }


def plain_chat(label, **more):
    """A chatbot that shows text as text: no Markdown, no HTML, no formulas, no files."""
    return gr.Chatbot(
        label=T(label), render_markdown=False, sanitize_html=True, latex_delimiters=[], allow_tags=False,
        allow_file_downloads=False, group_consecutive_messages=False, **more,
        buttons=[],  # one that copies would copy the HTML
    )  # fmt: skip


def message(role, content):
    """A chatbot's message that shows exactly this text. Gradio takes it for HTML, also where Markdown is off."""
    return {"role": role, "content": [{"type": "text", "text": html.escape(content, quote=False)}]}


def turn(request, prompt, answer):
    """The two messages of a prompt and an Answer so far."""
    shown = answer.text
    if answer.ended and not shown:
        shown = say(request, "no_answer")
    return [message("user", prompt), message("assistant", shown)]


def time_line(request, answer, name=""):
    """An answer's times, and how it ended; before its first token, that it is on its way."""
    if answer.failure:
        return say(request, "failed", name=name or answer.name, reason=explain(request, answer.failure))
    if answer.seconds_to_first is None and not answer.ended:
        return say(request, "answering", name=name or answer.name)
    end = ""
    if answer.ended:
        reason = answer.stream.finish_reason
        late = reason == "cancelled" and not answer.stopped
        key = (
            "end_stopped" if answer.stopped
            else f"end_{answer.cut}" if answer.cut
            else "end_time" if late
            else "end_length" if reason == "length"
            else ""
        )  # fmt: skip
        end = say(request, key) if key else ""
    if answer.stream.prompt_cut:
        end += say(request, "prompt_cut")
    first = f"{answer.seconds_to_first:.2f} s" if answer.seconds_to_first is not None else "–"
    return say(
        request, "time_taken", first=first, total=answer.seconds, tokens=answer.tokens, rate=answer.rate or 0.0, end=end
    )


def frozen(answer):
    """What is kept of an answer once it has been shown."""
    return SimpleNamespace(key=answer.key, text=answer.text)


def prompt_row(prefix):
    """(prompt, send, stop, clear, flag): the box to write in, and its buttons. prefix: of their ids."""
    prompt = gr.Textbox(
        label=T("prompt"), placeholder=T("prompt_hint"), lines=1, max_lines=6, elem_id=f"{prefix}prompt"
    )
    with gr.Row():
        looks = {"send": "primary", "stop": "stop", "clear": "secondary", "flag": "secondary"}
        buttons = [gr.Button(T(k), variant=v, elem_id=f"{prefix}{k}", min_width=70) for k, v in looks.items()]
    return prompt, *buttons
