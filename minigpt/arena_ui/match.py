"""The tab of the automatic match: a file of questions through several models."""

import contextlib
from pathlib import Path

import gradio as gr
import pandas

from minigpt.arena.match import MOST_QUESTIONS, drawn, judge, play, read_match_questions, sample_questions
from minigpt.arena.problems import Problem, checked_number, printable
from minigpt.arena.votes import to_csv
from minigpt.arena_ui.asking import AskingTab, sampling_dict, sampling_fields
from minigpt.arena_ui.common import AT_ONCE, TABLE, T, explain, first_models, model_dropdown, say, status_line, warning

SKIPPED_SHOWN = 5
COLUMNS = ("model", "answered", "rouge", "exact")


class MatchTab(AskingTab):
    """Built in the Tab that is open."""

    name = "match"

    def __init__(self, page):
        super().__init__(page)
        chosen = [name for name in first_models(page, 2) if name]
        models = model_dropdown(page, "match_models", chosen, multiselect=True, elem_id="match-models")
        with gr.Row():
            file = gr.File(label=T("match_file"), file_types=[".jsonl", ".json", ".csv", ".txt"], height=140, scale=3)
            count = gr.Number(20, label=T("match_count"), precision=0, scale=1, elem_id="match-count")
        fields = sampling_fields(page)
        with gr.Row():
            start = gr.Button(T("match_start"), variant="primary", elem_id="match-start", min_width=120)
            stop = gr.Button(T("stop"), variant="stop", elem_id="match-stop", min_width=80)
        state = status_line("state-match")
        summary = gr.Dataframe(label=T("match_summary"), visible=False, elem_id="match-summary", **TABLE)
        answers = gr.Dataframe(label=T("match_answers"), visible=False, elem_id="match-answers", **TABLE)
        save = gr.DownloadButton(T("save_match"), visible=False, elem_id="save-match")
        start.click(
            self.start, [models, file, count, *fields], [state, summary, answers, save], api_name="match",
            show_progress="minimal", show_progress_on=state,
        )  # fmt: skip
        stop.click(self.stop, None, state, api_name="match_stop", **AT_ONCE)

    def start(self, request: gr.Request, models, file, count, *fields, progress=gr.Progress()):  # noqa: B008
        """The state again and again, and in the end the tables."""
        skip = [gr.skip()] * 3
        with self.ticket(request) as ticket:
            try:
                models = list(dict.fromkeys(models or []))
                if len(models) < 2:
                    raise Problem("two_models")
                params = self.arena.checked_params(*fields)
                questions, skipped = self.questions(file, count)
                total = len(models) * len(questions)
                with contextlib.closing(play(self.arena, ticket, models, questions, params)) as rounds:
                    for results, done in rounds:
                        model = list(results.answers)[-1]
                        progress((done, total), desc=model)
                        yield say(request, "match_going", model=model, done=done, total=total), *skip
                votes, tally = judge(results, sampling_dict(params))
                if ticket.stopped:
                    raise Problem("match_stopped")
                self.arena.votes.add(votes)
            except Exception as error:  # a model or a file may fail in any way, and the page lives on
                yield warning(request, error), *skip
                return
            said = [self.outcome(request, results, file, skipped, votes), *self.wins(request, results, tally)]
            yield "\n".join(said), summary_table(request, results), *self.answer_table(request, results)

    def questions(self, file, count):
        """([(question, reference)], lines skipped): of the file, or the embedded ones; as many as were asked for."""
        most_chars = self.arena.settings.max_prompt_chars
        questions, skipped = read_match_questions(file, most_chars) if file else sample_questions()
        return drawn(questions, checked_number("match_count", count or 0, 0, MOST_QUESTIONS)), skipped

    def wins(self, request, results, tally):
        """A line for each pair of models that met."""
        return [
            say(request, "match_wins", left=results.keys[a], right=results.keys[b], a=wins, b=losses, ties=ties)
            for (a, b), (wins, losses, ties) in tally.items()
            if wins + losses + ties
        ]

    def outcome(self, request, results, file, skipped, votes):
        """How the match went, in a line."""
        lines = ", ".join(map(str, skipped[:SKIPPED_SHOWN])) + ("…" if len(skipped) > SKIPPED_SHOWN else "")
        failures = [failure for each in results.failures.values() for failure in each]
        referenced = any(reference for _, reference in results.questions)
        counted = say(request, "match_counted", count=len(votes)) if referenced else say(request, "match_not_counted")
        source = printable(Path(file).name) if file else say(request, "match_embedded")
        return say(
            request,
            "match_done",
            source=source,
            questions=len(results.questions),
            models=len(results.answers),
            skipped=say(request, "match_skipped", count=len(skipped), lines=lines) if skipped else "",
            counted=counted,
            failures=say(request, "match_failures", count=len(failures), reason=explain(request, failures[0]))
            if failures
            else "",
        )

    def answer_table(self, request, results):
        """(DataFrame of the answers side by side, each with its Rouge-L F, and a download of the same as CSV)."""
        head, columns = (
            [say(request, "col_question"), say(request, "col_reference")],
            list(zip(*results.questions, strict=True)),
        )
        for number, model in enumerate(results.answers, 1):
            head += [results.keys[model], f"F ({number})"]
            columns.append([text or "" for text in results.answers[model]])
            columns.append(["" if mark is None else round(mark[0], 4) for mark in results.marks[model]])
        rows = list(zip(*columns, strict=True))
        table = pandas.DataFrame(rows, columns=head)
        download = self.page.file("match.csv", to_csv([head, *rows]))
        return gr.update(value=table, visible=True), gr.update(value=download, visible=True)


def summary_table(request, results):
    """DataFrame: each model's mean scores."""
    rows = []
    for model in results.answers:
        scores = results.scores(model)
        answered = sum(answer is not None for answer in results.answers[model])
        figures = [f"{score:.3f}" for score in scores] if scores else ["–", "–"]
        rows.append([results.keys[model], f"{answered} / {len(results.questions)}", *figures])
    table = pandas.DataFrame(rows, columns=[say(request, f"col_{column}") for column in COLUMNS])
    return gr.update(value=table, visible=True)
