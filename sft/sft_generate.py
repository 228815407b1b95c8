"""Generates questions and answers about your articles with a large model, through any OpenAI-compatible API.

    python sft/sft_generate.py --input_dir=my_wiki                      # the model that LM Studio has loaded
    python sft/sft_generate.py --input_dir=my_wiki --api_base=http://localhost:11434/v1 --api_model=qwen2.5:7b

Every reply is checked. The good pairs of an article are appended to sft/sft_saves.jsonl; an article whose replies all
fail is appended to sft/sft_rejects.jsonl. An article that the server refuses is asked about again in the next run. The
script can be stopped at any time and continues when it is started again.
`--help` lists the settings.
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
from minigpt.settings.stages import GenerateSettings
from minigpt.synth.articles import ArticleSource
from minigpt.synth.client import RESTART_HINT, LargeModelClient, choose_model, waiting_message
from minigpt.synth.diagnosis import THINKING_OFF, cut_trouble
from minigpt.synth.generator import PairGenerator
from minigpt.synth.rate_limit import RateLimit
from minigpt.synth.store import Appender, finished_articles, lock_saves, rejects_path

API_KEY_VARIABLE = "OPENAI_API_KEY"
REFRESH_SECONDS = 0.5


def check_generation_settings(settings):
    """Raises UserError if settings contradict each other."""
    if settings.min_pairs > settings.max_pairs:
        raise UserError(f"min_pairs is {settings.min_pairs}, more than max_pairs, {settings.max_pairs}; lower it")
    if Path(settings.saves).resolve() == rejects_path(settings).resolve():
        raise UserError(f"saves and rejects are both {settings.saves}; name another file with --rejects=…")


class GeneratorBar:
    """Progress bar: share of the bytes read, pairs, share accepted, pairs an hour, time left, pauses for the server.

    The time left is estimated from the first request on, since finished articles are skipped quickly.
    """

    def __init__(self, generator, source):
        self.generator = generator
        self.source = source
        style = "{desc}: {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}"
        # smoothing=0: the time left is estimated from the average pace. miniters=0: also refreshed without progress.
        self.bar = tqdm(
            total=source.total, desc="generate", bar_format=style, smoothing=0, miniters=0, mininterval=REFRESH_SECONDS
        )

    def __call__(self):
        if not self.generator.counts.requests:
            self.bar.initial = self.source.read
            self.bar.start_t = self.bar.last_print_t
        self.bar.set_postfix_str(self.text(), refresh=False)
        self.bar.update(min(self.source.read, self.source.total) - self.bar.n)

    def text(self):
        generator, counts = self.generator, self.generator.counts
        parts = [f"{counts.pairs} pairs"]
        if finished := counts.articles.total():
            accepted = counts.articles["accepted"] + counts.articles["in_part"]
            parts.append(f"{accepted / finished:.0%} accepted")
            parts.append(f"{counts.pairs * 3600 / max(1e-3, self.bar.format_dict['elapsed']):.0f} pairs/h")
        if (pause := generator.rate_limit.seconds_paused(time.monotonic())) and generator.last_failure:
            parts.append(waiting_message(generator.last_failure, pause, generator.settings))
        return ", ".join(parts)

    def close(self):
        self.generator.last_failure = None
        self()
        self.bar.close()


def generation_summary(settings, generator, source):
    """Text for the user: results of the run, what was dropped and why, the files, and the next command."""
    saves, rejects = Path(settings.saves), rejects_path(settings)
    counts, outcomes = generator.counts, generator.counts.articles
    lines = [
        f"articles: {outcomes['accepted']} accepted, {outcomes['in_part']} kept in part, "
        f"{outcomes['rejected']} rejected, "
        f"{counts.done_before + source.done_before} done before",
        f"pairs: {counts.pairs}; requests: {counts.requests}",
    ]
    if outcomes["unanswered"]:
        lines.append(f"not answered: {outcomes['unanswered']} articles, which the next run asks about again")
    lines += generator.troubles.lines()
    if generator.cut_limit:
        lines.append(cut_trouble(generator.cut_limit, settings).text)
    if counts.prompt_tokens:
        lines.append(f"tokens: {counts.prompt_tokens} read, {counts.completion_tokens} written")
    for name, reasons in (
        ("not asked about", source.skipped),
        ("replies' faults", counts.faults),
        ("failed requests", counts.failures),
    ):
        if reasons:
            lines.append(f"{name}: " + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    if source.problems.counts:
        lines.append(dropped_text(source.problems.about()))
    # Of a cut prompt the model does not see that it should write pairs.
    lines += hint_lines({**counts.faults, **counts.failures}, without=["no_json"] if generator.cut_limit else [])
    has_pairs = saves.exists() and saves.stat().st_size > 0
    lines.append(f"pairs are in {saves}" if has_pairs else "no pairs yet")
    if rejects.exists() and rejects.stat().st_size:
        lines.append(f"rejected articles are in {rejects}; delete a line, or the file, to ask about them again")
    if has_pairs:
        flag = f" --articles={settings.input_dir[0]}" if len(settings.input_dir) == 1 else ""
        lines.append(f"next: python data/prepare_sft.py --qa_files={settings.saves}{flag}")
    return "\n".join(lines)


# What the user can do about the replies' faults, by rule, and the failed requests, by ApiFailure.code.
HINTS = {
    "question_length": "raise --longest_question",
    "answer_length": "raise --longest_answer",
    "pair_count": "lower --min_pairs, or choose a model that follows the prompt better",
    "cut_off": f"raise --max_new_tokens, or turn the model's thinking off with {THINKING_OFF}; if the model "
    "never ends its answers, lower it and choose an instruct model",
    "no_json": "choose another model with --api_model: no pair can be read from this one's replies",
    "pronoun": "choose a larger model with --api_model",
    "no_subject": "choose a larger model with --api_model",
    "not_a_question": "choose a larger model with --api_model",
    "duplicate": "lower --max_pairs, or choose a larger model with --api_model",
    "unsupported": "lower --temperature, or choose a larger model with --api_model",
    "characters": "choose another model with --api_model",
    "busy": "lower --concurrency, or set --requests_per_minute",
    "too_slow": "raise --request_seconds, or lower --concurrency and --max_new_tokens",
    "broke_off": "look into the server's log",
    "refused": "look into the server's log",
    "unreachable": "look into the server's log, and check --api_base",
}


def hint_lines(reasons, without):
    """A line for each hint with the reasons that it mends, the most common first; reasons: {name: count}."""
    names = {}
    for reason in sorted(reasons, key=reasons.get, reverse=True):
        if reason in HINTS and reason not in without:
            names.setdefault(HINTS[reason], []).append(reason)
    return [f"to have fewer {', '.join(group)}: {hint}" for hint, group in names.items()]


def api_key():
    """The API key in the environment. Raises UserError if an HTTP header cannot contain it."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{API_KEY_VARIABLE} has characters that an HTTP header cannot contain; copy it again")
    return key


def generate(settings, signals):
    """Generate pairs for every article that is not finished. Returns False if a signal stopped it before the end."""
    client = LargeModelClient(settings, api_key(), partial(tqdm.write, file=sys.stderr))
    rate_limit = RateLimit(settings.requests_per_minute, settings.wait_minutes)
    saves, rejects = Appender(settings.saves), Appender(rejects_path(settings))
    finished = finished_articles(saves.path) | finished_articles(rejects.path)

    source = ArticleSource(settings, finished)
    chosen = choose_model(client, settings, rate_limit, lambda: signals.asked, partial(print, file=sys.stderr))
    if chosen is None:
        return False
    model, models = chosen
    others = f" (of {models} models; another one with --api_model=…)" if models > 1 else ""
    print(f"asking {model}{others} at {client.base}; {len(finished)} articles are done already")
    generator = PairGenerator(settings, client, model, rate_limit, saves, rejects, finished)
    progress = GeneratorBar(generator, source)
    try:
        generator.run(source, lambda: signals.asked, progress)
    finally:
        progress.close()
        saves.close()
        rejects.close()
        print(generation_summary(settings, generator, source))
    for line in source.loss_warnings():
        print(line)
    return not signals.asked


def main():
    settings = load_settings(GenerateSettings)
    check_generation_settings(settings)
    signals = Signals()
    with lock_saves(settings.saves):
        is_complete = generate(settings, signals)
    if not is_complete:
        print(f"everything written so far is kept; {RESTART_HINT}")
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main)
