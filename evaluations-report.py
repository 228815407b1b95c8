"""Writes the report of a checkpoint: one Markdown page for other people, with its plots in a folder beside it.

    python evaluations-report.py                                    # the newest checkpoint, on the data of its training
    python evaluations-report.py --ckpt=out/demo_sft/ckpt.pt --page=reports/demo.md --max_samples=300
    python evaluations-report.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl

The report describes the model and its training data, checks for contamination, and gives the perplexity (also that of
the pretrained model that it started from), the figures of its answers, the effect of sampling settings, its grammar by
minimal pairs (over training, where the run kept checkpoints), and the training curves. What cannot be measured is left
out, and the page says why.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

from tqdm import tqdm

from minigpt.checkpoint import load_checkpoint
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.device import pick_device
from minigpt.evaluation import report_figures as measure
from minigpt.evaluation.asking import EvaluatedModel, collect_answers, require_one_model
from minigpt.evaluation.contamination import VERDICTS_BY_WEIGHT, check_contamination
from minigpt.evaluation.decoding_sweep import draw_sweep
from minigpt.evaluation.grammar import draw_grammar
from minigpt.evaluation.models import find_models
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.prompts import evaluated_part, load_pairs, prompt_text
from minigpt.evaluation.report_figures import public_path
from minigpt.evaluation.report_page import report_markdown
from minigpt.evaluation.report_words import summary_sentences
from minigpt.evaluation.tables import write_csv, write_text
from minigpt.evaluation.training_plots import draw_runs
from minigpt.inference.params import SamplingParams
from minigpt.run_log import best_line, overfitting, summarize_run
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import ReportSettings

SCRIPT = "evaluations-report.py"
SMOOTHING = 0.9  # weight of the past in the training loss that is drawn
SUMMARY_FIGURES = ("perplexity", "bits_per_char", "bits_per_token")  # on the JSON's top level


def without_home(text):
    """A text without the path of the current folder."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")


class Report:
    """The measurements so far. `found` is what the JSON ("card") and report_page.py get."""

    def __init__(self, model, settings):
        self.model, self.settings = model, settings
        self.content = {key: value for key, value in load_checkpoint(model.path).items() if key != "optimizers"}
        self.found = {"missing": [], "plots": {}, "perplexity": [], "resamples": settings.resamples}
        self.figures = {}  # matplotlib's
        page = Path(settings.page)
        self.plots = page.with_name(f"{page.stem}_files")

    @contextlib.contextmanager
    def section(self, title):
        """A part of the report, with a progress bar. If it raises UserError, it is noted as missing."""
        bar = tqdm(desc=title.split()[-1], unit="", leave=False)

        def progress(n, total):
            if bar.n >= (bar.total or 0):
                bar.reset(total)
            bar.update(n)

        try:
            yield progress
        except UserError as error:
            self.found["missing"].append((title, without_home(str(error))))
            print(f"note: {title}: not measured ({error})")
        finally:
            bar.close()

    def describe(self):
        params = dataclasses.asdict(SamplingParams.from_settings(self.settings))
        precision = "float32" if self.settings.dtype == "auto" else self.settings.dtype
        self.found |= {
            "name": self.model.name,
            "about": measure.describe_checkpoint(self.content, self.model.path),
            "settings": measure.changed_settings(self.content),
            "params": ", ".join(f"{name} {value}" for name, value in params.items() if value != ()),
            "made_by": f"MiniGPT, {SCRIPT}; {precision}, {pick_device(self.settings.device).type}",
        }

    def measure_perplexity(self):
        settings, rows, name = self.settings, self.found["perplexity"], self.model.name
        with self.section("困惑度 perplexity") as progress:
            train_on_eot = self.content["settings"].get("train_on_eot", True)
            for part in measure.parts_to_measure(settings.data_dir, settings):
                self.check_part(settings.data_dir, part)
                where = settings.data_dir, part, settings, progress, train_on_eot
                rows.append(measure.measure_part(self.content, name, *where)[0])
        if self.content["stage"] == "sft":
            with self.section("微调前后的困惑度 perplexity before and after fine-tuning") as progress:
                path, base = measure.pretrained_base(self.content)
                self.check_part(base["settings"]["data_dir"], "val")
                before_and_after, self.found["change"] = measure.measure_before_and_after(
                    base, path, self.content, name, settings, progress
                )
                rows += before_and_after

    def check_part(self, folder, part):
        """Check all rows of a part for contamination, before they are measured."""
        if self.settings.check_leak:
            result = check_contamination(self.content, source=(folder, part))
            self.add_contamination(f"{public_path(folder)} {part}", result)

    def add_contamination(self, name, result):
        """Print and keep a `Contamination`. "leak" in the JSON is the worst of all."""
        print(f"{name}: {result.line()}")
        entry = {"of": name, **dataclasses.asdict(result), "line": without_home(result.line())}
        self.found["leaks"] = [*self.found.get("leaks", ()), entry]
        self.found["leak"] = min(self.found["leaks"], key=lambda leak: VERDICTS_BY_WEIGHT.index(leak["verdict"]))

    def measure_answers(self):
        """Measure answers (or continuations of articles), sentence correction, and sampling settings."""
        settings = self.settings
        with self.section("问答 answers") as progress:
            pairs = load_pairs(settings, self.model)
            if settings.check_leak and settings.questions:  # rows of data_dir were checked before their perplexity
                self.add_contamination(public_path(settings.questions), check_contamination(self.content, pairs))
            opened = self.model.open(settings)
            self.pairs = pairs
            params = SamplingParams.from_settings(settings)
            self.answers = collect_answers(
                self.model, opened, pairs, params, progress=lambda n: progress(n, len(pairs))
            )
            self.found["answers"] = self.answers.figures(settings.resamples, settings.seed)
            self.found["asked"] = (settings.questions and public_path(settings.questions)) or (
                f"{public_path(settings.data_dir)} {evaluated_part(settings, self.model)}"
            )
        if "answers" not in self.found:
            self.found["missing"].append(("解码参数 decoding", self.found["missing"][-1][1]))
            return
        with self.section("句子纠错 sentence correction"):
            self.found["corrections"] = measure.measure_corrections(self.answers, pairs, settings)
        with self.section("解码参数 decoding") as progress:
            rows = measure.measure_sweep(opened, pairs, settings, progress)
            self.found["decoding"] = [
                {**row, "as_given": row["given"] and row["temperature"] == settings.temperature} for row in rows
            ]
            self.figures["decoding"] = draw_sweep(rows)

    def measure_grammar(self):
        """Measure minimal pairs, also over the checkpoints that the run kept."""
        with self.section("语法 grammar") as progress:
            model = self.model
            entries = measure.measure_grammar(model.path, model.name, self.settings, progress)
            own = next(entry for entry in entries if entry["is_own"])
            asked = ", ".join(map(public_path, self.settings.grammar_files))
            self.found["grammar"] = {**own, "asked": asked, "curve": [(e["step"], e["grammar"]) for e in entries]}
            self.figures["grammar"] = draw_grammar(entries)

    def draw_training(self):
        with self.section("训练曲线 training curves"):
            log = measure.log_of_checkpoint(self.model.path)
            found, best = overfitting(log.columns), best_line(log.columns)
            self.figures["training"] = draw_runs([log], smooth=SMOOTHING)
            self.found["training"] = {
                "best_step": None if best is None else int(log.columns["step"][best]),
                "overfitting": found and dataclasses.asdict(found),
                "lines": [line.strip() for line in summarize_run(log, SMOOTHING)],
            }

    def write(self):
        """Write the plots and the page, and the JSON and CSV if they are wanted. Raises UserError."""
        settings, found, answers = self.settings, self.found, self.found.get("answers") or {}
        pairs = []
        if answers:
            scores = self.answers.scores["rouge_l_f"].tolist()
            texts = [(prompt_text(prompt), reference) for prompt, reference in self.pairs]
            pairs = [(*p, *more) for p, *more in zip(texts, self.answers.predictions, scores, strict=True)]
        for name, figure in self.figures.items():
            png, _ = save_plot(figure, self.plots / name)
            found["plots"][name] = f"{self.plots.name}/{png.name}"
        write_text(settings.page, report_markdown({**found, "pairs": pairs}))
        if settings.csv:
            write_csv(settings.csv, ["prompt", "reference", "prediction", "rouge_l_f"], pairs)
        if settings.json:
            row = next((row for row in found["perplexity"] if not row.get("chain")), None)
            own = {key: row[key] for key in SUMMARY_FIGURES} if row else {}
            write_json(settings.json, {**self.model.about(), **own, **answers, "card": found})


def find_checkpoint(settings):
    """The `EvaluatedModel` to report on. Raises UserError unless --ckpt names exactly one checkpoint."""
    found = find_models(settings.ckpt, settings.out_root)
    for name, path in found:
        if not isinstance(path, Path):
            raise UserError(f"{name} is behind an API; a report is of a checkpoint, such as --ckpt=out/sft/ckpt.pt")
    return require_one_model([EvaluatedModel(*one) for one in found], SCRIPT)


def main():
    settings = load_settings(ReportSettings)
    model = find_checkpoint(settings)
    settings.data_dir = measure.evaluated_folder(settings, model.content)
    print(f"the report of {model.path}, on {settings.data_dir}")
    report = Report(model, settings)
    try:
        report.describe()
        report.measure_perplexity()
        report.measure_answers()
        report.measure_grammar()
        report.draw_training()
    except KeyboardInterrupt:
        print("stopped; no report is written, and an older one is unchanged")
        raise
    report.write()
    for _, english in summary_sentences(report.found):
        print(english.replace("*", ""))
    print(f"written: {settings.page}, its plots in {report.plots}")


if __name__ == "__main__":
    run_script(main)
