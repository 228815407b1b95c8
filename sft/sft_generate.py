"""Questions and answers about your articles, asked of a large model through any OpenAI-compatible API.

    python sft/sft_generate.py --input_dir=my_wiki                      # the model that LM Studio has loaded
    python sft/sft_generate.py --input_dir=my_wiki --api_base=http://localhost:11434/v1 --api_model=qwen2.5:7b

Every reply is checked; good pairs are appended to sft/sft_saves.jsonl, articles that fail for good to
sft/sft_rejects.jsonl. Stop it at any time: started again, it goes on where it was. `--help` lists the settings.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from minigpt.common.cli import Signals, run_script
from minigpt.common.errors import UserError
from minigpt.corpus.records import dropped_text
from minigpt.settings.parse import load_settings
from minigpt.synth.articles import ArticleSource
from minigpt.synth.client import AGAIN, LargeModelClient, choose_model, waiting_text
from minigpt.synth.generator import Factory
from minigpt.synth.rate_limit import RateLimit
from minigpt.synth.store import Appender, finished_articles, locked, rejects_path

KEY_VARIABLE = "OPENAI_API_KEY"
REFRESH_SECONDS = 0.5


def checked(settings):
    """The settings, if they go together. Raises UserError."""
    if settings.min_pairs > settings.max_pairs:
        raise UserError(f"min_pairs is {settings.min_pairs}, more than max_pairs, {settings.max_pairs}; lower it")
    if Path(settings.saves).resolve() == rejects_path(settings).resolve():
        raise UserError(f"saves and rejects are both {settings.saves}; name another file with --rejects=…")
    return settings


class GeneratorBar:
    """The bar: bytes read of the articles, pairs, the share accepted, pairs an hour, time left, and what is waited for.

    Articles that are done already pass quickly; the time left goes by those that are asked about.
    """

    def __init__(self, factory, source):
        self.factory, self.source = factory, source
        self.started, self.skipped, self.shown = time.monotonic(), 0, 0.0
        self.bar = tqdm(
            total=source.total,
            unit="B",
            unit_scale=True,
            desc="generate",
            bar_format="{desc}: {percentage:3.0f}%|{bar:10}| {elapsed}{postfix}",
        )

    def __call__(self):
        now, tally = time.monotonic(), self.factory.tally
        if not tally.requests:
            self.started, self.skipped = now, self.source.read
        if now - self.shown >= REFRESH_SECONDS:
            self.shown, self.bar.n = now, min(self.source.read, self.source.total)
            self.bar.set_postfix_str(self.text(now, tally), refresh=True)

    def text(self, now, tally):
        seconds, asked = max(1e-3, now - self.started), self.source.read - self.skipped
        parts = [f"{tally.pairs} pairs"]
        if tally.finished:
            parts.append(f"{(tally.accepted + tally.in_part) / tally.finished:.0%} accepted")
            parts.append(f"{tally.pairs * 3600 / seconds:.0f} pairs/h")
        if tally.finished and asked > 0:
            left = seconds * max(0, self.source.total - self.source.read) / asked
            parts.append(f"{tqdm.format_interval(left)} left")
        if (waits := self.factory.pace.waiting(now)) and self.factory.last_failure:
            parts.append(waiting_text(self.factory.last_failure, waits, self.factory.settings))
        return ", ".join(parts)

    def close(self):
        self.factory.last_failure, self.shown = None, 0.0
        self()
        self.bar.close()


def summary(settings, factory, source):
    """Lines for a person: what a run made, what it dropped and why, where it is, and what comes next."""
    tally, files = factory.tally, rejects_path(settings)
    lines = [
        f"articles: {tally.accepted} accepted, {tally.in_part} kept in part, {tally.rejected} rejected, "
        f"{tally.done_before + source.done_before} done before",
        f"pairs: {tally.pairs}; requests: {tally.requests}",
    ]
    if tally.prompt_tokens:
        lines.append(f"tokens: {tally.prompt_tokens} read, {tally.completion_tokens} written")
    for name, counts in (
        ("not asked about", source.skipped),
        ("replies' faults", tally.faults),
        ("failed requests", tally.failures),
    ):
        if counts:
            lines.append(f"{name}: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
    if source.problems.counts:
        lines.append(dropped_text(source.problems.about()))
    if hint := hint_on(tally.faults):
        lines.append(hint)
    saves = Path(settings.saves)
    some = saves.exists() and saves.stat().st_size > 0
    lines.append(f"pairs are in {saves}" if some else "no pairs yet")
    if files.exists() and files.stat().st_size:
        lines.append(f"articles that failed are in {files}; delete a line, or the file, to ask about them again")
    articles = f" --articles={settings.input_dir[0]}" if len(settings.input_dir) == 1 else ""
    if some:
        lines.append(f"next: python data/prepare_sft.py --qa_files={settings.saves}{articles}")
    return "\n".join(lines)


# What may be done where one rule refuses more than the others.
HINTS = {
    "question_length": "raise --longest_question",
    "answer_length": "raise --longest_answer",
    "pair_count": "lower --min_pairs, or take a model that follows the prompt better",
    "cut_off": "raise --max_new_tokens, or turn the model's thinking off",
    "no_json": "take another model with --api_model: this one does not write JSON",
    "pronoun": "take a larger model with --api_model",
    "no_subject": "take a larger model with --api_model",
    "not_a_question": "take a larger model with --api_model",
    "duplicate": "lower --max_pairs, or take a larger model with --api_model",
    "unsupported": "lower --temperature, or take a larger model with --api_model",
    "characters": "take another model with --api_model",
}


def hint_on(faults):
    """A line about the rule that most replies broke; "" where none did."""
    leading = max(faults, key=faults.get, default=None)
    return f"most faults are {leading}: to have fewer, {HINTS[leading]}" if leading in HINTS else ""


def key_of_user():
    """The key in the environment. Raises UserError where no header can bear it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE} has characters that no header can bear; copy it again")
    return key


def generate(settings, signals):
    """Ask about every article that is not done; returns whether all were, not stopped."""
    server = LargeModelClient(settings, key_of_user())
    pace = RateLimit(settings.requests_per_minute, settings.wait_minutes)
    saves, rejects = Appender(settings.saves), Appender(rejects_path(settings))
    done = finished_articles(saves.path) | finished_articles(rejects.path)

    source = ArticleSource(settings, done)
    chosen = choose_model(server, settings, pace, lambda: signals.asked, partial(print, file=sys.stderr))
    if chosen is None:
        return False
    model, models = chosen
    others = f" (of {models} models; another one with --api_model=…)" if models > 1 else ""
    print(f"asking {model}{others} at {server.base}; {len(done)} articles are done already")
    factory = Factory(settings, server, model, pace, saves, rejects, done)
    progress = GeneratorBar(factory, source)
    try:
        factory.run(source, lambda: signals.asked, progress)
    finally:
        progress.close()
        saves.close()
        rejects.close()
        print(summary(settings, factory, source))
    return not signals.asked


def main():
    settings = checked(load_settings("generate"))
    signals = Signals()
    with locked(settings.saves):
        finished = generate(settings, signals)
    if not finished:
        print(f"what is written stays; {AGAIN}")
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
