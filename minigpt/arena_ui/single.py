"""The tab of one model: ask it, read the answer while it is generated."""

import gradio as gr

from minigpt.arena.problems import Problem
from minigpt.arena.votes import SAMPLING_KEYS
from minigpt.arena_ui.asking import (
    AskingTab,
    answer_footer,
    answer_status,
    chat_turn,
    plain_chat,
    slider_ranges,
    snapshot,
)
from minigpt.arena_ui.common import PRIVATE, T, default_models, model_dropdown, translate, warning_line

MAX_SHOWN_TURNS = 20  # older ones leave the page
EMPTY_CHAT = {"chat": [], "last": None}


class SingleTab(AskingTab):
    """Adds its components to the open gr.Tab. prompt: the text box that examples fill."""

    name = "single"

    def __init__(self, page):
        super().__init__(page)
        model = model_dropdown(page, "model", *default_models(page, 1), info=T("model_info"), elem_id="model")
        self.chat = plain_chat("answers", placeholder=T("chat_hint"), height="45vh", elem_id="chat")
        self.state = answer_footer(self.chat, "state-single", "answer")
        self.model = model
        self.add_prompt([self.chat], [model], [self.chat], EMPTY_CHAT)
        inputs = [model, self.prompt, self.chat, *self.fields]
        self.link.click(None, inputs, None, js="(...values) => minigpt.copyLink(...values)", api_visibility="private")
        query = gr.Textbox(visible=False)  # its value is never shown: the browser fills it in for open_link
        filled = [self.prompt, model, *self.fields, self.state]
        page.opened(self.open_link, query, filled, js="() => [location.search]", **PRIVATE)
        # Load the model when it is chosen; the default one, when the page opens or the prompt is clicked.
        chosen = [page.opened, model.input, self.prompt.focus]
        chosen = gr.on(chosen, self.announce_loading, model, model, **PRIVATE)
        chosen.then(self.load, model, model, **PRIVATE)

    def add_buttons(self):
        self.link = gr.Button(T("copy_link"), elem_id="copy-link", min_width=70)

    def open_link(self, request: gr.Request, query):
        """Fill the fields with what the page's address says; nothing is sent."""
        link = self.arena.read_link(query, slider_ranges(self.arena))
        fields = [str(link.params[key]) if key == "seed" and key in link.params else link.params.get(key, gr.skip())
                  for key in SAMPLING_KEYS]  # fmt: skip
        said = [f"{key} {value:g}" for key, value in link.params.items()]
        state = translate(request, "link_opened", params=", ".join(said) or "–") if link.prompt or said else gr.skip()
        return [link.prompt or gr.skip(), link.model or gr.skip(), *fields, state]

    def announce_loading(self, request: gr.Request, model):
        """Show below the drop-down that the chosen checkpoint is being loaded."""
        ready = not model or self.arena.is_ready(model)
        return gr.skip() if ready else gr.update(info=translate(request, "loading", name=model))

    def load(self, request: gr.Request, model):
        """Load the chosen checkpoint before it is asked."""
        if not model or self.arena.is_ready(model):
            return gr.update(info=T("model_info"))
        try:
            self.arena.preload(model)
            return gr.update(info=translate(request, "loaded", name=model))
        except Exception as error:  # loading a model file may raise anything
            return gr.update(info=warning_line(request, error))

    def ask(self, request: gr.Request, model, prompt, kept, *fields):
        """Yields updates of the chat and the status line until the answer has ended."""

        def choose_models():
            if not model:
                raise Problem("no_model_chosen")
            return [model]

        yield from self.answer(request, kept, choose_models, prompt, fields)

    def progress(self, request, kept, prompt, answers, blind):
        """The chat with the answer so far, and its status."""
        (answer,) = answers
        before = kept["chat"][-2 * (MAX_SHOWN_TURNS - 1) :]
        return {
            self.chat: before + chat_turn(request, prompt, answer),
            self.state: answer_status(request, answer),
        }

    def finished(self, request, kept, prompt, answers, settings, blind):
        """The answer, which is also kept for the next turn and for Flag."""
        (answer,) = answers
        updates = self.progress(request, kept, prompt, answers, blind)
        last = (prompt, [snapshot(answer)], {"model": answer.name, **settings})
        return {**updates, self.kept: {"chat": updates[self.chat], "last": last}}

    def cleared(self):
        """An empty chat."""
        return {self.chat: [], self.state: "", self.kept: EMPTY_CHAT}
