"""Training from the page, on the tab of training: start the demo or a fine-tuning, stop it, go on with it."""

import gradio as gr

from minigpt.arena.job_files import MAX_EPOCHS, QUESTION_FORMATS
from minigpt.arena.problems import Problem
from minigpt.arena_ui.common import UNQUEUED, T, is_trusted, model_dropdown, status_line, translate, warning_line

DEFAULT_EPOCHS = 4
OUTPUT_LINES = 14


class JobsSection:
    """Adds its components to the open gr.Tab, `tab`. Visitors who are not trusted do not see it.

    timer: the gr.Timer by which the tab's contents are renewed.
    """

    def __init__(self, page, tab, timer):
        self.arena = page.arena
        with gr.Column(visible=False, elem_id="jobs") as self.section:
            gr.Markdown(T("jobs_title"))
            self.state = status_line("state-job")
            with gr.Row():
                self.stop_button = gr.Button(T("job_stop"), variant="stop", visible=False, elem_id="job-stop")
                self.resume_button = gr.Button(T("job_resume"), visible=False, elem_id="job-resume")
            self.output = gr.Textbox(
                label=T("job_output"), lines=OUTPUT_LINES, max_lines=OUTPUT_LINES, interactive=False, visible=False,
                elem_id="job-output",
            )  # fmt: skip
            gr.Markdown(T("jobs_demo"))
            demo = gr.Button(T("job_start_demo"), variant="primary", elem_id="job-demo")
            gr.Markdown(T("jobs_tune"))
            with gr.Row():
                choices = page.arena.trainable_choices()
                checkpoint = model_dropdown(
                    page, "job_checkpoint", choices[0].name if choices else None, page.arena.trainable_choices,
                    elem_id="job-checkpoint",
                )  # fmt: skip
                epochs = gr.Slider(1, MAX_EPOCHS, DEFAULT_EPOCHS, step=1, label=T("job_epochs"))
            file = gr.File(label=T("job_file"), file_types=list(QUESTION_FORMATS), height=120)
            tune = gr.Button(T("job_start_tuning"), variant="primary", elem_id="job-tune")
        outputs = [self.section, self.state, self.stop_button, self.resume_button, self.output]
        for event in (tab.select, timer.tick):
            event(self.show, None, outputs, api_visibility="private", **UNQUEUED)
        form = [checkpoint, file, epochs]
        demo.click(self.start_demo, None, outputs, api_name="start_demo", **UNQUEUED)
        tune.click(self.start_tuning, form, outputs, api_name="start_tuning", **UNQUEUED)
        self.stop_button.click(self.stop, None, outputs, api_name="stop_job", **UNQUEUED)
        self.resume_button.click(self.resume, None, outputs, api_name="resume_job", **UNQUEUED)

    def show(self, request: gr.Request):
        """The state of the last job and the end of its output; nothing for a visitor who is not trusted."""
        if not is_trusted(request):
            return {self.section: gr.update(visible=False)}
        job = self.arena.jobs.state()
        return {
            self.section: gr.update(visible=True),
            self.state: describe_job(request, job) if job else translate(request, "job_never"),
            self.stop_button: gr.update(visible=bool(job and job.is_running)),
            self.resume_button: gr.update(visible=bool(job and job.can_resume)),
            self.output: gr.update(value=job.output if job else "", visible=job is not None),
        }

    def act(self, request, action):
        """Do what a trusted visitor has asked for; the updates that show what came of it."""
        try:
            if not is_trusted(request):
                raise Problem("not_allowed")
            action()
        except Exception as error:  # a checkpoint or a file may contain anything
            return {self.state: warning_line(request, error)}
        return self.show(request)

    def start_demo(self, request: gr.Request):
        return self.act(request, self.arena.jobs.start_demo)

    def start_tuning(self, request: gr.Request, checkpoint, file, epochs):
        def start():
            self.arena.jobs.start_tuning(self.arena.trainable_checkpoint(checkpoint), file, epochs)

        return self.act(request, start)

    def stop(self, request: gr.Request):
        return self.act(request, self.arena.jobs.stop)

    def resume(self, request: gr.Request):
        return self.act(request, self.arena.jobs.resume)


def describe_job(request, job):
    """A `JobState` in a line."""
    what = translate(request, f"job_kind_{job.kind}", name=job.name)
    return translate(request, f"job_{job.status}", what=what, step=job.step, steps=job.steps)
