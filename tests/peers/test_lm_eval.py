"""EleutherAI's lm-eval against server.py: the log-likelihoods that it measures are those of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import write_jsonl
from evaluation_fakes import BLOCK
from packages import require_packages
from tiny import EOT, padded_rows, tiny_meta, tiny_tokenizer

from minigpt.checkpoint import open_model
from minigpt.inference.likelihood import likelihood_of_rows

require_packages("lm_eval")

pytestmark = pytest.mark.peers

encode = tiny_tokenizer().encode


def write_questions(folder, model):
    """choices.jsonl: questions whose answer is the model's own next character, and one that fills the block."""
    rows = []
    for last in map(chr, range(ord("一"), ord("一") + 40)):
        question = f"这条河流到{last}"
        following = next_ids(model, encode(question))[-1]
        if 32 < following < 127:
            rows.append({"question": question, "choices": ["东海", chr(following), "river"], "answer": 1})
    # lm-eval asks for one token after the last choice, which the block has room for.
    filling = "x" * (BLOCK - 1 - len("abcd"))
    rows.append({"question": filling, "choices": ["abcd", "dcba"], "answer": 0})
    return len(write_jsonl(folder / "choices.jsonl", rows).read_text(encoding="utf-8").splitlines())


def write_texts(folder):
    """texts.jsonl: texts that fit into one window of lm-eval, after the token that ends a text."""
    texts = ("第3镇的河很长。", "a", "河的名字", "rivers " * 9)
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in texts])
    return len(texts)


def run_lm_eval(folder, url):
    """([the samples of both tasks as lm-eval logs them], its results)."""
    command = [sys.executable, "-m", "lm_eval", "run", "--tasks", "minigpt_choices,minigpt_texts"]
    command += ["--include_path", str(Path(__file__).parent), "--output_path", "results", "--log_samples"]
    model = f"model=base,base_url={url}/v1/completions,max_length={BLOCK},num_concurrent=2"
    command += ["--model", "local-completions", "--model_args", model, "--batch_size", "4"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "HF_HOME": str(folder / "cache")}
    ended = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    assert ended.returncode == 0, ended.stderr[-4000:]
    files = {kind: sorted(folder.glob(f"results/**/{kind}_*")) for kind in ("samples", "results")}
    lines = [line for file in files["samples"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines], json.loads(files["results"][0].read_text(encoding="utf-8"))["results"]


def split_pair(arguments):
    """(ids before, ids of the text) of a sample's request. A text without anything before it follows EOT."""
    *before, text = arguments.values()
    start = len(encode("".join(before)))
    ids = encode("".join([*before, text]))
    return ids[:start] or [EOT], ids[start:]


@torch.no_grad()
def next_ids(model, ids):
    """The likeliest id after each of ids."""
    return model(torch.tensor([ids]))[0].argmax(dim=-1).tolist()


def log_likelihoods(model, pairs):
    """[log-likelihood of each pair's second list of ids after its first], by minigpt.inference."""

    def nats(lists):
        return likelihood_of_rows(model, padded_rows(lists, BLOCK), tiny_meta("pretrain"), 8).nats

    return nats([before for before, _ in pairs]) - nats([before + ids for before, ids in pairs])


def test_log_likelihoods_are_those_of_the_model(server, project, tmp_path):
    model = open_model(project / "out/base/ckpt.pt", "", "cpu")[2]
    questions, texts = write_questions(tmp_path, model), write_texts(tmp_path)
    assert questions > 4
    samples, results = run_lm_eval(tmp_path, server.url)
    assert len(samples) == questions + texts and results["minigpt_choices"]["acc,none"] > 0.5

    pairs, measured = [], []
    for sample in samples:
        pairs += map(split_pair, sample["arguments"].values())
        measured += [response for (response,) in sample["resps"]]
    # A choice's response is [log-likelihood, whether it is what greedy decoding gives]; a text's is the first alone.
    values = [float(response[0] if isinstance(response, list) else response) for response in measured]
    assert values == pytest.approx(log_likelihoods(model, pairs), abs=1e-4)
    greedy = [response[1] == "True" for response in measured if isinstance(response, list)]
    expected = [next_ids(model, before + ids)[len(before) - 1 : -1] == ids for before, ids in pairs[: len(greedy)]]
    assert greedy == expected and sum(greedy) >= questions - 1
