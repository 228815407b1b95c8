"""The tab of the automatic match: several models answer the questions of a file."""

import contextlib
from pathlib import Path

import gradio as gr
import pandas

from minigpt.arena.match import (
    MOST_QUESTIONS,
    draw_questions,
    make_match_votes,
    play_match,
    read_match_questions,
    sample_questions,
)
from minigpt.arena.problems import Problem, clean_name, validate_number
from minigpt.arena.votes import format_csv
from minigpt.arena_ui.asking import AskingTab, sampling_dict, sampling_fields
from minigpt.arena_ui.common import (
    TABLE,
    UNQUEUED,
    T,
    default_models,
    explain_error,
    model_dropdown,
    status_line,
    translate,
    warning_line,
)

MAX_SHOWN_LINES = 5  # numbers of skipped lines in the status
SUMMARY_COLUMNS = ("model", "answered", "rouge", "exact")


class MatchTab(AskingTab):
    """Adds its components to the open gr.Tab."""

    name = "match"

    def __init__(self, page):
        super().__init__(page)
        chosen = [name for name in default_models(page, 2) if name]
        models = model_dropdown(page, "match_models", chosen, multiselect=True, elem_id="match-models")
        with gr.Row():
            file = gr.File(label=T("match_file"), file_types=[".jsonl", ".json", ".csv", ".txt"], height=170, scale=3)
            count = gr.Number(20, label=T("match_count"), precision=0, scale=1, elem_id="match-count")
        fields = sampling_fields(page)
        with gr.Row():
            start = gr.Button(T("match_start"), variant="primary", elem_id="match-start", min_width=120)
            stop = gr.Button(T("stop"), variant="stop", elem_id="match-stop", min_width=80)
        self.state = status_line("state-match")
        self.summary = gr.Dataframe(label=T("match_summary"), visible=False, elem_id="match-summary", **TABLE)
        self.answers = gr.Dataframe(label=T("match_answers"), visible=False, elem_id="match-answers", **TABLE)
        self.save = gr.DownloadButton(T("save_match"), visible=False, elem_id="save-match")
        start.click(
            self.start, [models, file, count, *fields], [self.state, self.summary, self.answers, self.save],
            api_name="match", show_progress="minimal", show_progress_on=self.state,
        )  # fmt: skip
        stop.click(self.stop, None, self.state, api_name="match_stop", **UNQUEUED)

    def start(self, request: gr.Request, models, file, count, *fields, progress=gr.Progress()):  # noqa: B008
        """Yields updates of the status line, and at the end the tables."""
        with self.open_token(request) as token:
            try:
                models = list(dict.fromkeys(models or []))
                if len(models) < 2:
                    raise Problem("two_models")
                params = self.arena.check_params(*fields)
                questions, skipped = self.choose_questions(file, count)
                total = len(models) * len(questions)
                with contextlib.closing(play_match(self.arena, token, models, questions, params)) as rounds:
                    for results, done in rounds:
                        model = list(results.answers)[-1]
                        progress((done, total), desc=model)
                        yield {self.state: translate(request, "match_going", model=model, done=done, total=total)}
                votes, tally = make_match_votes(results, sampling_dict(params))
                if token.stopped:
                    raise Problem("match_stopped")
                self.arena.votes.add(votes)
            except Exception as error:  # a model or a file may raise anything
                yield {self.state: warning_line(request, error)}
                return
            lines = [self.describe_match(request, results, file, skipped, votes), *wins_lines(request, results, tally)]
            rows = answer_rows(request, results)
            download = self.page.save_download("match.csv", format_csv(rows))
            yield {
                self.state: "\n".join(lines),
                self.summary: gr.update(value=summary_table(request, results), visible=True),
                self.answers: gr.update(value=pandas.DataFrame(rows[1:], columns=rows[0]), visible=True),
                self.save: gr.update(value=download, visible=True),
            }

    def choose_questions(self, file, count):
        """([(question, reference)], [skipped line]): `count` questions of the file, or of the built-in ones."""
        most_chars = self.arena.settings.max_prompt_chars
        questions, skipped = read_match_questions(file, most_chars) if file else sample_questions()
        return draw_questions(questions, validate_number("match_count", count or 0, 0, MOST_QUESTIONS)), skipped

    def describe_match(self, request, results, file, skipped, votes):
        """One line about the whole match."""
        notes = []
        if skipped:
            lines = ", ".join(map(str, skipped[:MAX_SHOWN_LINES])) + ("…" if len(skipped) > MAX_SHOWN_LINES else "")
            notes.append(translate(request, "match_skipped", count=len(skipped), lines=lines))
        if any(reference for _, reference in results.questions):
            notes.append(translate(request, "match_counted", count=len(votes)))
        else:
            notes.append(translate(request, "match_not_counted"))
        if failures := [failure for each in results.failures.values() for failure in each]:
            reason = explain_error(request, failures[0])
            notes.append(translate(request, "match_failures", count=len(failures), reason=reason))
        source = clean_name(Path(file).name) if file else translate(request, "match_embedded")
        questions, models = len(results.questions), len(results.answers)
        done = translate(request, "match_done", source=source, questions=questions, models=models)
        return done + "".join(notes)


def wins_lines(request, results, tally):
    """A line for each pair of models with a common question."""
    return [
        translate(request, "match_wins", left=results.keys[a], right=results.keys[b], a=wins, b=losses, ties=ties)
        for (a, b), (wins, losses, ties) in tally.items()
        if wins + losses + ties
    ]


def summary_table(request, results):
    """DataFrame of each model's mean scores."""
    rows = []
    for model in results.answers:
        scores = results.mean_scores(model)
        answered = sum(answer is not None for answer in results.answers[model])
        figures = [f"{score:.3f}" for score in scores] if scores else ["–", "–"]
        rows.append([results.keys[model], f"{answered} / {len(results.questions)}", *figures])
    return pandas.DataFrame(rows, columns=[translate(request, f"col_{column}") for column in SUMMARY_COLUMNS])


def answer_rows(request, results):
    """Rows, the header first: each question with its reference, all answers, and their Rouge-L F."""
    header = [translate(request, "col_question"), translate(request, "col_reference")]
    columns = list(zip(*results.questions, strict=True))
    for number, model in enumerate(results.answers, 1):
        header += [results.keys[model], f"F ({number})"]
        columns.append([text or "" for text in results.answers[model]])
        columns.append(["" if score is None else round(score[0], 4) for score in results.scores[model]])
    return [header, *zip(*columns, strict=True)]
