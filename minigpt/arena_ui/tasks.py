"""The tab of tasks: a model with a head labels a text or a pair of texts, or marks the entities of a text."""

import time

import gradio as gr

from minigpt.arena_ui.common import PRIVATE, T, model_dropdown, status_line, translate, warning_line

MAX_BARS = 12  # likeliest labels that are shown
HIDDEN = gr.update(visible=False)


class TasksTab:
    """Adds its components to the open gr.Tab."""

    def __init__(self, page):
        self.arena = page.arena
        first = next(iter(page.arena.task_choices()), None)
        kind = first.checkpoint.task if first else ""
        self.empty = gr.Markdown(T("no_task_models"), visible=first is None, elem_id="no-tasks", elem_classes="empty")
        model = model_dropdown(
            page, "task_model", first and first.name, page.arena.task_choices, info=T("task_model_info"),
            elem_id="task-model",
        )  # fmt: skip
        text = gr.Textbox(label=T("task_text"), placeholder=T("task_hint"), lines=3, max_lines=12, elem_id="task-text")
        self.second = gr.Textbox(
            label=T("task_second"), lines=3, max_lines=12, visible=kind == "pair", elem_id="task-second"
        )
        send = gr.Button(T("task_send"), variant="primary", elem_id="task-send")
        self.state = status_line("state-tasks")
        self.bars = gr.Label(label=T("task_labels"), num_top_classes=MAX_BARS, visible=False, elem_id="task-labels")
        self.entities = gr.HighlightedText(
            label=T("task_entities"), show_legend=True, combine_adjacent=False, visible=False, elem_id="task-entities"
        )
        shown = [self.second, self.state, self.bars, self.entities]
        gr.on([model.change, page.opened], self.choose, model, [self.empty, *shown], **PRIVATE)
        gr.on(
            [send.click, text.submit], self.label, [model, text, self.second], shown,
            api_name="label", show_progress="minimal", show_progress_on=self.state,
        )  # fmt: skip

    def choose(self, name):
        """Show the second text for a model of pairs alone, and empty what another model has answered."""
        kind = next((each.checkpoint.task for each in self.arena.task_choices() if each.name == name), "")
        return {
            self.empty: gr.update(visible=not self.arena.task_choices()),
            self.second: gr.update(visible=kind == "pair"),
            self.state: "",
            self.bars: HIDDEN,
            self.entities: HIDDEN,
        }

    def label(self, request: gr.Request, name, text, second):
        """Yields the state of loading, then the labels with their probabilities, or the text with its entities."""
        if name and not self.arena.is_ready(name):
            yield {self.state: translate(request, "loading", name=name)}
        try:
            started = time.perf_counter()
            found = self.arena.label(name, text, second)
        except Exception as error:  # loading a model file may raise anything
            yield {self.state: warning_line(request, error)}
            return
        cut = translate(request, "text_cut") if found.cut else ""
        state = translate(request, "labelled", name=name, seconds=time.perf_counter() - started, cut=cut)
        if hasattr(found, "entities"):
            entities = [{"entity": each["type"], "start": each["start"], "end": each["end"]} for each in found.entities]
            text = {"text": self.arena.check_prompt(text), "entities": entities}
            yield {self.state: state, self.bars: HIDDEN, self.entities: gr.update(value=text, visible=True)}
        else:
            bars = gr.update(value=found.probabilities, visible=True)
            yield {self.state: state, self.bars: bars, self.entities: HIDDEN}
