"""The tab of one model: ask it, read the answer while it is generated."""

import gradio as gr

from minigpt.arena.problems import Problem
from minigpt.arena_ui.asking import AskingTab, answer_status, chat_turn, plain_chat, snapshot
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
        self.add_prompt([self.chat], [model], [self.chat], EMPTY_CHAT)
        # Load the model when it is chosen; the default one, when the page opens or the prompt is clicked.
        chosen = [page.opened, model.input, self.prompt.focus]
        chosen = gr.on(chosen, self.announce_loading, model, model, **PRIVATE)
        chosen.then(self.load, model, model, **PRIVATE)

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
