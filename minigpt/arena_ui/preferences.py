"""The way from votes to a model, on the leaderboard's tab: pairs of answers, their file, and the command to train."""

import gradio as gr

from minigpt.arena.leaderboard import select_votes
from minigpt.arena.preferences import (
    chosen_or_most_voted,
    pairs_text,
    preference_pairs,
    training_command,
    write_pairs,
)
from minigpt.arena.problems import Problem
from minigpt.arena_ui.common import UNQUEUED, T, is_trusted, model_dropdown, status_line, translate, warning_line

WANTED_PAIRS = 60  # fewer change a model little


class PreferencesSection:
    """Adds its components to the open gr.Tab. Visitors who are not trusted do not see it: pairs have what others wrote.

    shown_by: events that update it; kind: the gr.Radio of the votes that are counted.
    """

    def __init__(self, page, shown_by, kind):
        self.page, self.arena = page, page.arena
        with gr.Column(visible=False, elem_id="votes-to-model") as self.section:
            gr.Markdown(T("preferences_title"))
            gr.Markdown(T("preferences_steps"))
            self.model = model_dropdown(
                page, "preferences_model", None, page.arena.tunable_choices, elem_id="preferences-model"
            )
            with gr.Row():
                write = gr.Button(T("write_preferences"), variant="primary", elem_id="write-preferences")
                self.download = gr.DownloadButton(T("save_preferences"), elem_id="save-preferences")
            self.state = status_line("state-preferences")
            self.command = gr.Code(
                label=T("preferences_command"), language=None, interactive=False, lines=1, wrap_lines=True,
                show_line_numbers=False, buttons=["copy"], elem_id="preferences-command",
            )  # fmt: skip
        shown = [self.section, self.model, self.state, self.download, self.command]
        inputs = [kind, self.model]
        gr.on([*shown_by, self.model.input], self.show, inputs, shown, api_name="preferences", **UNQUEUED)
        write.click(self.write, inputs, [self.state, self.command], api_name="write_preferences", **UNQUEUED)

    def show(self, request: gr.Request, kind, model):
        """The numbers of votes and pairs, the pairs as a download, and the command that trains the chosen model (of
        `tunable_choices`; None: the one with the most votes)."""
        if not is_trusted(request):
            return {self.section: gr.update(visible=False)}
        try:
            votes, pairs = self.pairs(kind)
        except Exception as error:  # the file may contain anything
            return {self.section: gr.update(visible=True), self.state: warning_line(request, error)}
        choice = chosen_or_most_voted(self.arena.tunable_choices(), model, votes)
        return {
            self.section: gr.update(visible=True),
            self.model: gr.update(value=choice and choice.name),
            self.state: describe_pairs(request, votes, pairs),
            self.download: gr.update(value=self.page.save_download("preferences.jsonl", pairs_text(pairs))),
            self.command: self.command_for(choice),
        }

    def write(self, request: gr.Request, kind, model):
        """Write the pairs to the file that the command names."""
        try:
            if not is_trusted(request):
                raise Problem("not_allowed")
            votes, pairs = self.pairs(kind)
            choice = chosen_or_most_voted(self.arena.tunable_choices(), model, votes)
            if not pairs:
                raise Problem("no_pairs")
            if choice is None:
                raise Problem("no_tunable_model")
            write_pairs(self.arena.preferences, pairs)
        except Exception as error:
            return {self.state: warning_line(request, error)}
        return {
            self.state: translate(request, "pairs_written", pairs=len(pairs), path=self.arena.preferences.as_posix()),
            self.command: self.command_for(choice),
        }

    def pairs(self, kind):
        """([vote], [pair]) of a kind of `select_votes`; votes on two answers of one model count here."""
        votes = select_votes(self.arena.votes.all()[0], kind, against_itself=True)
        return votes, preference_pairs(votes)

    def command_for(self, choice):
        """The command that tunes a ModelChoice by the written pairs; "" for None."""
        if choice is None:
            return ""
        return training_command(self.arena.preferences, choice.checkpoint.path, self.arena.settings.out_root)


def describe_pairs(request, votes, pairs):
    """The status line: how many votes there are, how many of them make pairs, and how many pairs one should have."""
    few = translate(request, "pairs_few", wanted=WANTED_PAIRS) if len(pairs) < WANTED_PAIRS else ""
    return translate(request, "pairs_state", votes=len(votes), pairs=len(pairs)) + few
