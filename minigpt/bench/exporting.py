"""Asks a fine-tuned checkpoint and its exported GGUF files the same held-out questions: our engine beside llama.cpp.

All answer greedily, one question at a time. Where an answer is not that of our engine in float32, it is a near-tie if
our two likeliest tokens were at most NEAR_TIE_NATS apart at the first character that differs.
"""

import tempfile
import time
from pathlib import Path

from minigpt.bench.common import machine_name, publish_results
from minigpt.bench.llama_cpp import open_llama_cpp
from minigpt.checkpoint import newest_checkpoint, only_checkpoint
from minigpt.evaluation.asking import EvaluatedModel
from minigpt.evaluation.prompts import load_pairs
from minigpt.evaluation.tables import markdown_table
from minigpt.formats.gguf_file import write_gguf
from minigpt.inference.params import SamplingParams
from minigpt.settings.stages import RougeSettings

QUICK_QUESTIONS, NEAR_TIE_NATS = 50, 0.2


def bench_exporting(settings):
    """Ask the questions of the test part of the checkpoint's own rows; print and write the table."""
    evaluated = EvaluatedModel("the model", Path(only_checkpoint(settings) or newest_checkpoint()))
    data_dir, most = evaluated.content["settings"]["data_dir"], QUICK_QUESTIONS * settings.quick
    prompts = [prompt for prompt, _ in load_pairs(RougeSettings(data_dir=data_dir, max_samples=most), evaluated)]
    exact, int8 = (evaluated.open(RougeSettings(device="cpu", dtype=dtype)).generator for dtype in ("float32", "int8"))
    answers = {f"our engine, {name}": ask_here(one, prompts) for name, one in (("float32", exact), ("int8", int8))}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "q8_0", "q4_0"):
            file = Path(folder) / f"{dtype}.gguf"
            write_gguf(file, exact.model, exact.tokenizer, exact.stage, dtype, dtype)
            answers[f"llama.cpp, {dtype}"] = ask_llama_cpp(file, exact.model.config.block_size, prompts)
    reference, *_ = answers["our engine, float32"]
    figures = {name: compare_answers(exact, prompts, reference, *each) for name, each in answers.items()}
    names = ("side", "equal answers", "near-ties among the others", "tokens a second")
    table = markdown_table(names, [(name, *values.values()) for name, values in figures.items()])
    about = f"{len(prompts)} questions of {data_dir}; {machine_name(exact.model.wte.weight.device)}."
    publish_results(settings, "Exported models", f"{about}\n\n{table}", figures)


def ask_here(generator, prompts, **more):
    """(answers, tokens a second, their streams) of our engine; more: further sampling parameters."""
    params, started, streams, texts = SamplingParams(temperature=0, **more), time.perf_counter(), [], []
    for prompt in prompts:
        streams.append(generator.submit(generator.prompt_ids(prompt), params))
        texts.append("".join(streams[-1]))
    speed = sum(stream.completion_tokens for stream in streams) / (time.perf_counter() - started)
    return texts, speed, streams


def ask_llama_cpp(path, n_ctx, prompts):
    """(answers, tokens a second) of llama.cpp with a GGUF file. Raises UserError where it is not installed."""
    server = open_llama_cpp(path, n_ctx, 1)
    exact = {"temperature": 0, "max_tokens": SamplingParams().max_new_tokens}
    chats = [prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] for prompt in prompts]
    started = time.perf_counter()
    replies = [server.handle_chat_completions({"messages": chat, **exact}) for chat in chats]
    speed = sum(reply["usage"]["completion_tokens"] for reply in replies) / (time.perf_counter() - started)
    # Parts of characters, which our engine leaves out.
    return [reply["choices"][0]["message"]["content"].replace("\ufffd", "") for reply in replies], speed


def compare_answers(generator, prompts, reference, answers, speed, *_):
    """The figures of a side: shares of equal answers, and of near-ties among the others (None if there are none)."""
    margins = []
    for prompt, expected, answer in zip(prompts, reference, answers, strict=True):
        if answer != expected:
            _, _, (stream,) = ask_here(generator, [prompt], logprobs=2)
            same = next((i for i in range(len(answer)) if answer[: i + 1] != expected[: i + 1]), len(answer))
            (_, first), (_, second) = [token.top for token in stream.logprobs if token.start <= same][-1]
            margins.append(first - second)
    near = sum(margin <= NEAR_TIE_NATS for margin in margins) / len(margins) if margins else None
    return {"equal": 1 - len(margins) / len(prompts), "near_ties": near, "tokens_per_second": speed}
