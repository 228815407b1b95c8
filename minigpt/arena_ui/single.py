"""The tab of one model: ask, read the answer as it is made, with its time."""

import contextlib

import gradio as gr

from minigpt.arena.answers import follow
from minigpt.arena.problems import Problem
from minigpt.arena_ui.asking import (
    SHOWN_TURNS,
    AskingTab,
    frozen,
    plain_chat,
    prompt_row,
    sampling_dict,
    sampling_fields,
    time_line,
    turn,
)
from minigpt.arena_ui.common import AT_ONCE, QUIET, T, first_models, model_dropdown, say, status_line, warning

NOTHING = {"chat": [], "last": None}


class SingleTab(AskingTab):
    """Built in the Tab that is open. prompt: the box that examples fill."""

    name = "single"

    def __init__(self, page):
        super().__init__(page)
        model = model_dropdown(page, "model", *first_models(page, 1), info=T("model_info"), elem_id="model")
        chat = plain_chat("answers", placeholder=T("chat_hint"), height="45vh", elem_id="chat")
        state = status_line("state-single")
        self.prompt, send, stop, clear, mark = prompt_row("")
        fields = sampling_fields(page)
        kept = gr.State(NOTHING)

        gr.on(
            [send.click, self.prompt.submit], self.ask, [model, self.prompt, kept, *fields],
            [chat, self.prompt, state, kept], api_name="ask", show_progress="hidden",
        )  # fmt: skip
        stop.click(self.stop, None, state, api_name="stop", **AT_ONCE)
        gr.on([clear.click, chat.clear], self.clear, None, [chat, state, kept], api_name="clear", **AT_ONCE)
        mark.click(self.flag, kept, state, api_name="flag", **AT_ONCE)
        # When the page is opened, the model that stands in the list is the chosen one.
        chosen = gr.on([page.opened, model.input, self.prompt.focus], self.announce, model, model, **QUIET)
        chosen.then(self.load, model, model, **QUIET)

    def announce(self, request: gr.Request, model):
        """Under the drop-down: that the chosen checkpoint is being loaded."""
        ready = not model or self.arena.is_ready(model)
        return gr.skip() if ready else gr.update(info=say(request, "loading", name=model))

    def load(self, request: gr.Request, model):
        """Have the chosen checkpoint in memory before it is asked."""
        if not model or self.arena.is_ready(model):
            return gr.update(info=T("model_info"))
        try:
            self.arena.warm(model)
            return gr.update(info=say(request, "loaded", name=model))
        except Exception as error:  # whatever the file does to its loader
            return gr.update(info=warning(request, error))

    def ask(self, request: gr.Request, model, prompt, kept, *fields):
        """The chat with the answer so far, and its time, again and again until it has ended."""
        with self.ticket(request) as ticket:
            try:
                if not model:
                    raise Problem("no_model_chosen")
                prompt_text, params = self.arena.checked_prompt(prompt), self.arena.checked_params(*fields)
                if not self.arena.is_ready(model):
                    yield gr.skip(), gr.skip(), say(request, "loading", name=model), gr.skip()
                answer = self.arena.ask(model, prompt_text, params)
            except Exception as error:  # a model file may fail in any way, and the page lives on
                yield kept["chat"], prompt, warning(request, error), kept
                return
            ticket.add([answer])
            before = kept["chat"][-2 * (SHOWN_TURNS - 1) :]
            emptied = ""  # once: the next question may be typed while this one is answered
            with contextlib.closing(follow([answer])) as news:
                for _ in news:
                    if not ticket.discarded:
                        chat = before + turn(request, prompt_text, answer)
                        yield chat, emptied, time_line(request, answer), gr.skip()
                        emptied = gr.skip()
            if ticket.discarded:
                yield [], gr.skip(), "", NOTHING
                return
            last = (prompt_text, [frozen(answer)], {"model": model, **sampling_dict(params)})
            yield chat, gr.skip(), time_line(request, answer), {"chat": chat, "last": last}

    def clear(self, request: gr.Request):
        """Empty the chat; an answer under way is stopped, and not shown."""
        self.discard(request)
        return [], "", NOTHING
