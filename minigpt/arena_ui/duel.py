"""The tab of two models: both answer at once, blind or by name, and a vote says which was better."""

import contextlib

import gradio as gr

from minigpt.arena.answers import follow
from minigpt.arena.problems import Problem
from minigpt.arena.votes import RESULTS
from minigpt.arena_ui.asking import (
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

NOTHING = {"battle": None, "last": None}


class DuelTab(AskingTab):
    """Built in the Tab that is open. prompt: the box that examples fill."""

    name = "duel"

    def __init__(self, page):
        super().__init__(page)
        blind = gr.Checkbox(True, label=T("blind"), elem_id="blind")
        left_model, right_model = first_models(page, 2)
        with gr.Row(visible=False) as choosers:
            left = model_dropdown(page, "left_model", left_model, elem_id="left-model")
            right = model_dropdown(page, "right_model", right_model, elem_id="right-model")
        with gr.Row():
            with gr.Column(min_width=260):
                left_chat = plain_chat("left_answer", height="38vh", elem_id="left-chat")
                left_state = status_line("state-left")
            with gr.Column(min_width=260):
                right_chat = plain_chat("right_answer", height="38vh", elem_id="right-chat")
                right_state = status_line("state-right")
        with gr.Row():
            self.buttons = {
                result: gr.Button(T(f"vote_{result}"), interactive=False, elem_id=f"vote-{result}", min_width=120)
                for result in ("left", "tie", "bad", "right")
            }
        state = status_line("state-duel")
        self.prompt, send, stop, clear, mark = prompt_row("duel-")
        fields = sampling_fields(page)
        kept = gr.State(NOTHING)
        chats, lines = [left_chat, right_chat], [left_state, right_state]
        everything = [*chats, *lines, self.prompt, state, kept, *self.buttons.values()]

        gr.on(
            [send.click, self.prompt.submit], self.ask, [blind, left, right, self.prompt, kept, *fields], everything,
            api_name="duel", show_progress="hidden",
        )  # fmt: skip
        stop.click(self.stop, None, state, api_name="duel_stop", **AT_ONCE)
        cleared = [clear.click, left_chat.clear, right_chat.clear]
        gr.on(cleared, self.clear, None, everything, api_name="duel_clear", **AT_ONCE)
        mark.click(self.flag, kept, state, api_name="duel_flag", **AT_ONCE)
        blind.change(lambda blind: gr.Row(visible=not blind), blind, choosers, **QUIET)
        for result, button in self.buttons.items():
            button.click(
                self.vote, [gr.State(result), kept], [state, *lines, kept, *self.buttons.values()],
                api_name=f"vote_{result}", **AT_ONCE,
            )  # fmt: skip

    def votable(self, possible):
        """Updates for the vote's buttons."""
        return [gr.update(interactive=possible) for _ in RESULTS]

    def ask(self, request: gr.Request, blind, left, right, prompt, kept, *fields):
        """Both chats with the answers so far, again and again until both have ended; then a vote is possible."""
        skip = [gr.skip()]
        with self.ticket(request) as ticket:
            try:
                prompt_text, params = self.arena.checked_prompt(prompt), self.arena.checked_params(*fields)
                names = self.names(blind, left, right)
                if waiting := [name for name in names if not self.arena.is_ready(name)]:
                    shown = "…" if blind else ", ".join(waiting)
                    yield [*skip * 5, say(request, "loading", name=shown), *skip, *self.votable(False)]
                answers = self.arena.ask_all([(name, prompt_text) for name in names], params)
            except Exception as error:  # a model file may fail in any way, and the page lives on
                open_still = self.votable(bool(kept["battle"]))
                yield [*skip * 4, prompt, warning(request, error), kept, *open_still]
                return
            ticket.add(answers)
            rest = ["", "", {**NOTHING}, *self.votable(False)]  # once: the next question may be typed meanwhile
            with contextlib.closing(follow(answers)) as news:
                for _ in news:
                    if not ticket.discarded:
                        yield [*self.progress(request, prompt_text, answers, blind), *rest]
                        rest = skip * 7
            if ticket.discarded:
                yield [[], [], "", "", *skip, "", {**NOTHING}, *self.votable(False)]
                return
            yield self.outcome(request, prompt_text, answers, blind, sampling_dict(params))

    def names(self, blind, left, right):
        """The two models that are asked. Raises Problem."""
        names = self.arena.draw() if blind else [left, right]
        if not all(names):
            raise Problem("no_model_chosen")
        if names[0] == names[1]:
            raise Problem("same_model")
        return names

    def outcome(self, request, prompt, answers, blind, settings):
        """What is shown when both have ended: a vote is possible, unless one side failed."""
        failed = any(answer.failure for answer in answers)
        battle = None if failed else self.arena.battles.begin(prompt, answers, blind, settings)
        kept = {"battle": battle, "last": (prompt, [frozen(answer) for answer in answers], settings)}
        line = say(request, "battle_failed" if failed else "vote_now" if blind else "vote_open")
        progress = self.progress(request, prompt, answers, blind and not failed)
        return [*progress, gr.skip(), line, kept, *self.votable(not failed)]

    def progress(self, request, prompt, answers, blind):
        """Both chats and both lines; blind: the lines tell nothing that gives a name away."""
        chats = [turn(request, prompt, answer) for answer in answers]
        if blind:
            return [*chats, *("✓" if answer.ended else "…" for answer in answers)]
        return [*chats, *(f"{answer.key}: {time_line(request, answer)}" for answer in answers)]

    def vote(self, request: gr.Request, result, kept):
        """Count a vote, and tell whose the answers were."""
        battle = self.arena.battles.look(kept["battle"])
        try:
            vote = self.arena.battles.cast(kept["battle"], result)
        except Exception as error:  # the vote is not lost: the battle stays open
            return [warning(request, error), *[gr.skip()] * 7]
        said = say(request, "voted", left=vote["left"], right=vote["right"])
        lines = [f"{answer.key}: {time_line(request, answer)}" for answer in battle["answers"]]
        return [said, *lines, {**kept, "battle": None}, *self.votable(False)]

    def clear(self, request: gr.Request):
        """Empty both chats; answers under way are stopped, and a vote that was not cast is none."""
        self.discard(request)
        return [[], [], "", "", "", "", {**NOTHING}, *self.votable(False)]
