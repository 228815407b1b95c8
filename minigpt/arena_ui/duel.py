"""The tab of two models: both answer at the same time, blind or by name, and the visitor votes for the better one."""

import gradio as gr

from minigpt.arena.problems import Problem
from minigpt.arena_ui.asking import AskingTab, answer_footer, answer_status, chat_turn, plain_chat, snapshot
from minigpt.arena_ui.common import (
    PRIVATE,
    UNQUEUED,
    T,
    default_models,
    model_dropdown,
    translate,
    warning_line,
)

EMPTY_DUEL = {"battle": None, "last": None}


class DuelTab(AskingTab):
    """Adds its components to the open gr.Tab. prompt: the text box that examples fill."""

    name = "duel"

    def __init__(self, page):
        super().__init__(page)
        blind = gr.Checkbox(True, label=T("blind"), elem_id="blind")
        left_model, right_model = default_models(page, 2)
        with gr.Row(visible=False) as choosers:
            left = model_dropdown(page, "left_model", left_model, elem_id="left-model")
            right = model_dropdown(page, "right_model", right_model, elem_id="right-model")
        self.chats, self.statuses = [], []
        with gr.Row():
            for side in ("left", "right"):
                with gr.Column(min_width=260):
                    self.chats.append(plain_chat(f"{side}_answer", height="38vh", elem_id=f"{side}-chat"))
                    self.statuses.append(answer_footer(self.chats[-1], f"state-{side}", side))
        with gr.Row(elem_id="votes"):
            self.buttons = {
                result: gr.Button(T(f"vote_{result}"), interactive=False, elem_id=f"vote-{result}", min_width=120)
                for result in ("left", "tie", "bad", "right")
            }
        shown, buttons = [*self.chats, *self.statuses], self.buttons.values()
        self.add_prompt(self.chats, [blind, left, right], shown, EMPTY_DUEL, "duel-", buttons)
        blind.change(lambda blind: gr.Row(visible=not blind), blind, choosers, **PRIVATE)
        voted = [self.state, *self.statuses, self.kept, *buttons]
        for result, button in self.buttons.items():
            inputs = [gr.State(result), self.kept]
            button.click(self.vote, inputs, voted, api_name=f"vote_{result}", **UNQUEUED)

    def allow_votes(self, allowed):
        """Updates of the vote buttons."""
        return {button: gr.update(interactive=allowed) for button in self.buttons.values()}

    def ask(self, request: gr.Request, blind, left, right, prompt, kept, *fields):
        """Yields updates of both chats until both answers have ended; then a vote is possible."""

        def choose_models():
            names = self.arena.draw_models() if blind else [left, right]
            if not all(names):
                raise Problem("no_model_chosen")
            return names

        yield from self.answer(request, kept, choose_models, prompt, fields, blind)

    def begun(self):
        """The previous battle can no longer be voted on."""
        return {self.state: "", self.kept: EMPTY_DUEL, **self.allow_votes(False)}

    def progress(self, request, kept, prompt, answers, blind):
        """Both chats and statuses. Blind statuses contain nothing that could identify a model, such as its speed."""
        updates = dict(zip(self.chats, [chat_turn(request, prompt, answer) for answer in answers], strict=True))
        if blind:
            lines = ["✓" if answer.ended else "…" for answer in answers]
        else:
            lines = [named_status(request, answer) for answer in answers]
        return {**updates, **dict(zip(self.statuses, lines, strict=True))}

    def finished(self, request, kept, prompt, answers, settings, blind):
        """A vote is possible unless one answer failed; then the names are shown at once."""
        failed = any(answer.failure for answer in answers)
        battle = None if failed else self.arena.battles.begin(prompt, answers, blind, settings)
        return {
            **self.progress(request, kept, prompt, answers, blind and not failed),
            self.state: translate(request, "battle_failed" if failed else "vote_now" if blind else "vote_open"),
            self.kept: {"battle": battle, "last": (prompt, [snapshot(answer) for answer in answers], settings)},
            **self.allow_votes(not failed),
        }

    def vote(self, request: gr.Request, result, kept):
        """Count a vote, then show the models' names."""
        battle = self.arena.battles.get(kept["battle"])
        try:
            vote = self.arena.battles.cast(kept["battle"], result)
        except Exception as error:  # the battle stays open for another try
            return {self.state: warning_line(request, error)}
        lines = [named_status(request, answer) for answer in battle["answers"]]
        return {
            self.state: translate(request, "voted", left=vote["left"], right=vote["right"]),
            **dict(zip(self.statuses, lines, strict=True)),
            self.kept: {**kept, "battle": None},
            **self.allow_votes(False),
        }

    def cleared(self):
        """Empty chats; the battle can no longer be voted on."""
        return {**{chat: [] for chat in self.chats}, **dict.fromkeys(self.statuses, ""), **self.begun()}


def named_status(request, answer):
    """The status of an answer after the model's name in votes."""
    return f"{answer.key}: {answer_status(request, answer)}"
