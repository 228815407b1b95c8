"""The way from votes to a model, on the leaderboard's tab: pairs of answers, their file, and the command to train."""

import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import gradio as gr

from minigpt.arena.leaderboard import select_votes
from minigpt.arena.problems import Problem
from minigpt.arena.votes import pairs_text, preference_pairs, write_pairs
from minigpt.arena_ui.common import UNQUEUED, T, is_trusted, model_dropdown, status_line, translate, warning_line

WANTED_PAIRS = 60  # fewer change a model little
TUNED_SUFFIX = "_votes"  # of the folder of a run that is tuned by votes


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
                label=T("preferences_command"), language="shell", interactive=False, lines=1, wrap_lines=True,
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
            self.command: self.training_command(choice),
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
            self.command: self.training_command(choice),
        }

    def pairs(self, kind):
        """([vote], [pair]) of a kind of `select_votes`; votes on two answers of one model count here."""
        votes = select_votes(self.arena.votes.all()[0], kind, against_itself=True)
        return votes, preference_pairs(votes)

    def training_command(self, choice):
        """The command that tunes a ModelChoice by the written pairs, in a run's folder of its own; "" for None."""
        if choice is None:
            return ""
        path = choice.checkpoint.path
        flags = {
            "preferences": self.arena.preferences.as_posix(),
            "init_from": path.as_posix(),
            "out_dir": free_run_folder(Path(self.arena.settings.out_root), path).as_posix(),
        }
        given = [f"--{key}={value}" for key, value in flags.items()]
        return shlex.join(["python", "train.py", "config/dpo.py", *given])


def chosen_or_most_voted(choices, name, votes):
    """The ModelChoice of a name; where none has it, the one with the most votes; None without any choice."""
    counts = Counter(key for vote in votes for key in (vote["left"], vote["right"]))
    return max(choices, key=lambda choice: (choice.name == name, counts[choice.checkpoint.key]), default=None)


def free_run_folder(root, checkpoint):
    """A folder under `root` that does not exist yet, named after the checkpoint's run: demo_sft_votes, demo_sft_votes2,
    … The run may itself be one that was tuned by votes."""
    run = checkpoint.name if checkpoint.is_dir() else checkpoint.parent.name
    name = re.sub(rf"{TUNED_SUFFIX}\d*$", "", run) + TUNED_SUFFIX
    numbered = (root / f"{name}{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain([root / name], numbered) if not path.exists())


def describe_pairs(request, votes, pairs):
    """The status line: how many votes there are, how many of them make pairs, and how many pairs one should have."""
    few = translate(request, "pairs_few", wanted=WANTED_PAIRS) if len(pairs) < WANTED_PAIRS else ""
    return translate(request, "pairs_state", votes=len(votes), pairs=len(pairs)) + few
