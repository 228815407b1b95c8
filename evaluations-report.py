"""The report card of a checkpoint: one page that can be sent to a friend, with its plots in a folder beside it.

    python evaluations-report.py                                    # the newest checkpoint, on the data of its training
    python evaluations-report.py --ckpt=out/demo_sft/ckpt.pt --page=cards/demo.md --max_samples=300
    python evaluations-report.py --ckpt=out/sft/ckpt.pt --questions=my_questions.jsonl

It says what the model is and was trained on, whether it has seen what it is asked, its perplexity (and that of the
pretrained model that it began from), how near its answers come, what decoding changes, and how its training went. What
cannot be measured is left out, and the page says why.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

from tqdm import tqdm

from minigpt.checkpoint import load_checkpoint
from minigpt.common.cli import run_script
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic, write_json
from minigpt.device import pick_device
from minigpt.evaluation import report_figures as measure
from minigpt.evaluation.asking import Entrant, only_one
from minigpt.evaluation.contamination import gravest, leak_of, leak_of_part
from minigpt.evaluation.decoding_sweep import NOTES, draw_sweep, table
from minigpt.evaluation.models import find_models
from minigpt.evaluation.plots import save_plot
from minigpt.evaluation.prompts import load_pairs, part_asked
from minigpt.evaluation.report_figures import shown_path
from minigpt.evaluation.report_page import page_of
from minigpt.evaluation.report_words import glance
from minigpt.evaluation.run_plots import draw_runs
from minigpt.evaluation.tables import write_csv
from minigpt.inference.params import SamplingParams
from minigpt.run_log import best_line, overfitting, summary
from minigpt.settings.parse import load_settings

SCRIPT = "evaluations-report.py"
SMOOTH = 0.9  # of the training loss that is drawn
OWN = ("perplexity", "bits_per_char", "bits_per_token")


def at_home(text):
    """A text without where on this machine the project lies."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")


class Card:
    """What is known of a checkpoint so far; `found` goes into the JSON and to report_page.py."""

    def __init__(self, entrant, settings):
        self.entrant, self.settings, self.found = entrant, settings, {"missing": [], "plots": {}, "perplexity": []}
        self.found["resamples"] = settings.resamples
        self.content = {key: value for key, value in load_checkpoint(entrant.path).items() if key != "optimizers"}
        self.pairs, self.figures, self.leaks = [], {}, []
        page = Path(settings.page)
        self.plots = page.with_name(f"{page.stem}_files")

    @contextlib.contextmanager
    def part(self, what):
        """A part of the card, with its bar; where it cannot be measured, it is left out, and the card says why."""
        bar = tqdm(desc=what.split()[-1], unit="", leave=False)

        def progress(n, of):
            if bar.n >= (bar.total or 0):
                bar.reset(of)
            bar.update(n)

        try:
            yield progress
        except UserError as error:
            self.found["missing"].append((what, at_home(str(error))))
            print(f"note: {what}: not measured ({error})")
        finally:
            bar.close()

    def tell_about(self):
        path, content = self.entrant.path, self.content
        told = {"name": self.entrant.name, "about": measure.about(content, path)}
        told["settings"] = measure.changed_settings(content)
        given = dataclasses.asdict(SamplingParams.from_settings(self.settings))
        told["params"] = ", ".join(f"{name} {value}" for name, value in given.items() if value != ())
        precision = "float32" if self.settings.precision == "auto" else self.settings.precision
        told["made_by"] = f"MiniGPT, {SCRIPT}; {precision}, {pick_device(self.settings.device).type}"
        self.found.update(told)

    def measure_perplexity(self):
        settings, rows, name = self.settings, self.found["perplexity"], self.entrant.name
        with self.part("困惑度 perplexity") as progress:
            on_eot = self.content["settings"].get("train_on_eot", True)
            for part in measure.parts_of(settings.data_dir, settings):
                where = settings.data_dir, part, settings, progress, on_eot
                self.check_part(settings.data_dir, part)
                rows.append(measure.measured(self.content, name, *where)[0])
        if self.content["stage"] == "sft":
            with self.part("微调前后的困惑度 perplexity before and after fine-tuning") as progress:
                path, before = measure.chain_of(self.content)
                self.check_part(before["settings"]["data_dir"], "val")
                pair = before, path, self.content, name
                more, self.found["change"] = measure.before_and_after(*pair, settings, progress)
                rows += more

    def check_part(self, folder, part):
        """Look for the rows of a part, before they are measured, in what the checkpoint was trained on."""
        if self.settings.check_leak:
            self.note_leak(f"{shown_path(folder)} {part}", leak_of_part(self.content, folder, part))

    def note_leak(self, of, leak):
        """Keep a `Leak` for the card, and print it; "leak" in the figures is the gravest of all."""
        print(f"{of}: {leak.line()}")
        self.leaks.append(leak)
        told = {"of": of, **leak.to_dict(), "line": at_home(leak.line())}
        self.found["leaks"] = [*self.found.get("leaks", ()), told]
        self.found["leak"] = self.found["leaks"][self.leaks.index(gravest(self.leaks))]

    def ask(self):
        """Questions (or beginnings of articles), sentences to correct, and what decoding changes."""
        settings = self.settings
        with self.part("问答 answers") as progress:
            pairs = load_pairs(settings, self.entrant)
            if settings.check_leak and settings.questions:  # rows of data_dir were looked at with their perplexity
                self.note_leak(shown_path(settings.questions), leak_of(self.content, pairs=pairs))
            model = self.entrant.open(settings)
            self.asked = measure.answers(self.entrant, model, pairs, settings, progress)
            self.pairs = pairs
            self.found["answers"] = self.asked.figures(settings.resamples, settings.seed)
            self.found["asked"] = (settings.questions and shown_path(settings.questions)) or (
                f"{shown_path(settings.data_dir)} {part_asked(settings, self.entrant)}"
            )
        if "answers" not in self.found:
            self.found["missing"].append(("解码参数 decoding", self.found["missing"][-1][1]))
            return
        with self.part("句子纠错 sentence correction"):
            self.found["corrections"] = measure.corrected(self.asked, pairs, settings)
        with self.part("解码参数 decoding") as progress:
            rows = measure.swept(model, pairs, settings, progress)
            self.found["decoding"] = [
                {**row, "as_given": row["given"] and row["temperature"] == settings.temperature} for row in rows
            ]
            self.figures["decoding"] = draw_sweep(rows)

    def draw_training(self):
        with self.part("训练曲线 training curves"):
            log = measure.run_of(self.entrant.path)
            found, best = overfitting(log.columns), best_line(log.columns)
            self.figures["training"] = draw_runs([log], smooth=SMOOTH)
            self.found["training"] = {
                "best_step": None if best is None else int(log.columns["step"][best]),
                "overfitting": found and dataclasses.asdict(found),
                "lines": [line.strip() for line in summary(log, SMOOTH)],
            }

    def write(self):
        """The plots and the page; the figures as JSON and CSV where they are wanted. Raises UserError."""
        settings, found, answers = self.settings, self.found, self.found.get("answers") or {}
        pairs = []
        if answers:
            scores = self.asked.scores["rouge_l_f"].tolist()
            texts = zip(self.pairs, self.asked.predictions, scores, strict=True)
            pairs = [(*pair, prediction, score) for pair, prediction, score in texts]
        for name, figure in self.figures.items():
            png, _ = save_plot(figure, self.plots / name)
            found["plots"][name] = f"{self.plots.name}/{png.name}"
        table_of = {"decoding_table": table(found["decoding"]), "decoding_notes": NOTES} if "decoding" in found else {}
        text = page_of({**found, **table_of, "pairs": pairs})
        try:
            write_atomic(settings.page, lambda file: file.write(text.encode(errors="backslashreplace")))
        except OSError as error:
            raise UserError(
                f"{settings.page} could not be written ({error.strerror}); name another place with --page=…"
            ) from None
        if settings.csv:
            write_csv(settings.csv, ["prompt", "reference", "prediction", "rouge_l_f"], pairs)
        if settings.json:
            row = next((row for row in found["perplexity"] if not row.get("chain")), None)
            own = {key: row[key] for key in OWN} if row else {}
            about = {"checkpoint": str(self.entrant.path), "name": self.entrant.name, "step": self.entrant.step}
            write_json(settings.json, {**about, **own, **answers, "card": found})


def find_entrant(settings):
    """The one checkpoint that the card is of. Raises UserError."""
    found = find_models(settings.ckpt, settings.out_root)
    for name, path in found:
        if not isinstance(path, Path):
            raise UserError(f"{name} is behind an API; a card is of a checkpoint, such as --ckpt=out/sft/ckpt.pt")
    return only_one([Entrant(*one) for one in found], SCRIPT)


def main():
    settings = load_settings("card")
    entrant = find_entrant(settings)
    settings.data_dir = measure.folder_of(settings, entrant.content)
    print(f"the card of {entrant.path}, on {settings.data_dir}")
    card = Card(entrant, settings)
    try:
        card.tell_about()
        card.measure_perplexity()
        card.ask()
        card.draw_training()
    except KeyboardInterrupt:
        print("stopped; no card is written, and an older one is as it was")
        raise
    card.write()
    for _, english in glance(card.found):
        print(english.replace("*", ""))
    print(f"written: {settings.page}, its plots in {card.plots}")


if __name__ == "__main__":
    run_script(main)
