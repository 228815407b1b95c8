"""Measures generation beside a plain loop and Hugging Face's `generate` on the same weights, and the server under load.

A model of 124M parameters is trained for a few minutes, so that its perplexity means something and its text is not
that of a random model. EOT is never learned, so all texts have the same length. The ways of generating take turns in
one process. The server and its clients are processes of their own, and idle meanwhile.
"""

import itertools
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_utils import loss_mask, open_rows, row_lengths
from minigpt.adapters.attach import attach_adapter, trained_parameters
from minigpt.adapters.mixing import share_layers
from minigpt.bench.common import call_in_process, machine_name, medians, publish_results, reading_flags, run_quietly
from minigpt.bench.load import ServedModel, load_server
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.device import pick_device, wait_for
from minigpt.evaluation.tables import markdown_table
from minigpt.formats.weights import to_huggingface
from minigpt.inference.engine import Engine, EngineWorker, TextGenerator
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import convert_weights
from minigpt.settings.stages import Adapting

TOKENIZER_VOCAB = 8192  # trained on the articles; the output layer has GPT-2's 50304
MODEL_FLAGS = ["--n_layer=12", "--n_head=12", "--n_embd=768", "--block_size=512", "--vocab_size=50304"]
TRAIN_STEPS, QUICK_TRAIN_STEPS = 80, 20
PROMPT_TOKENS, NEW_TOKENS = 32, 100
GENERATION_ROUNDS, QUICK_GENERATION_ROUNDS = 5, 2
BATCH_SIZES = (1, 8)
REQUESTS_OF_EACH = {1: 6, 8: 5, 32: 3}  # number of clients: requests of each
SCORED_ROWS = 24
COMPARED_TYPES = ("float32", "bfloat16", "int8")
CPU_DTYPE, GPU_DTYPE = "int8", "bfloat16"  # the fastest
N_ADAPTERS, ADAPTER_STD = 8, 0.02
DEMO_MODEL, DEMO_ROWS = "out/demo_sft/ckpt.pt", "data/processed_demo_sft"


def make_checkpoint(folder, settings, steps):
    """Pretrain the 124M model for `steps` on the settings' articles; returns the path of its checkpoint."""
    data, out = f"--data_dir={folder}/rows", f"--out_dir={folder}/run"
    articles = [f"--input_dir={','.join(settings.input_dir)}", *reading_flags(settings)]
    tokenizer, vocab = f"{folder}/own.tiktoken", f"--tokenizer_vocab={TOKENIZER_VOCAB}"
    run_quietly("data/train_tokenizer.py", *articles, f"--tokenizer_path={tokenizer}", vocab)
    run_quietly("data/prepare.py", *articles, data, f"--tokenizer={tokenizer}", "--block_size=512", "--overflow=split")
    length = [f"--max_iters={steps}", "--warmup_iters=5", "--eval_interval=2000", "--eval_iters=1"]
    run_quietly("train.py", data, out, *MODEL_FLAGS, *length, "--batch_tokens=1024", "--train_on_eot=False")
    return Path(folder) / "run" / "last.pt"


def to_hugging_face(model):
    """A transformers GPT2LMHeadModel with a GPT's weights. Raises UserError where transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UserError("pip install -r requirements-dev.txt: Hugging Face's transformers is measured too") from None
    c = model.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
            activation_function="gelu", bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    theirs.load_state_dict(to_huggingface(model.state_dict(), c) | {"lm_head.weight": model.lm_head.weight})
    return theirs.eval()


@torch.inference_mode()
def generate_plainly(model, prompts, n_new):
    """Greedy ids (n, T + n_new) after prompts (n, T), as nanoGPT: a pass over the whole context for each token."""
    ids = torch.tensor(prompts, device=model.wte.weight.device)
    for _ in range(n_new):
        logits = model.lm_head(model.hidden(ids)[:, -1])
        ids = torch.cat([ids, logits.argmax(dim=1, keepdim=True)], dim=1)
    return ids


def generate_by_hugging_face(model, prompts, n_new):
    """Greedy ids (n, T + n_new) after prompts (n, T), by the `generate` of a transformers model."""
    ids = torch.tensor(prompts, device=model.device)
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), min_new_tokens=n_new, max_new_tokens=n_new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip


class GenerationWays:
    """The ways to generate that are compared, with the weights of one checkpoint.

    ways: {name: function(prompts, n_new)}; models: {compute type: model}; compiled: names of the compute types that are
    also compiled. Raises UserError where compiling fails.
    """

    def __init__(self, path, device, compiled):
        self.device, content = device, load_checkpoint(path)
        model, self.tokenizer = load_model(content, device)
        theirs = to_hugging_face(model).to(device)
        self.ways = {
            "plain loop, float32": partial(generate_plainly, model),
            "Hugging Face, float32": partial(generate_by_hugging_face, theirs),
        }
        if device.type == "cuda":
            half = to_hugging_face(model).to(device, torch.bfloat16)
            self.ways["Hugging Face, bfloat16"] = partial(generate_by_hugging_face, half)
        self.models = {}
        for name in COMPARED_TYPES:
            if name == "int8" and device.type != "cpu":
                continue
            self.models[name] = convert_weights(load_model(content, device)[0], name)
            self.add(f"ours, {name}", self.models[name], False)
            self.add_adapters(name, load_model(content, device)[0])
            if name in compiled:
                self.add(f"ours, {name}, compiled", self.models[name], True)

    def add(self, name, model, compiled):
        """Add a way: our generation with a model, compiled or not."""
        generator = TextGenerator(model, self.tokenizer, "pretrain")
        generator.engine.stop_ids = set()  # no token ends a text early
        if compiled:
            print(f"  compiling: {name} …", flush=True)
            generator.compile()
            if not generator.compiled:
                raise UserError(f"{name}: the model was not compiled (the reason is above), so it is not measured")
        self.ways[name] = lambda prompts, n_new: generator.generate(
            prompts, SamplingParams(temperature=0, max_new_tokens=n_new)
        )

    def add_adapters(self, dtype, base):
        """Add a way: each prompt has one of N_ADAPTERS LoRA adapters on one base, of random numbers, in turn.

        dtype: the compute type; base: a GPT in float32, which is converted.
        """
        models = [share_layers(base) for _ in range(N_ADAPTERS)]
        for model in models:
            attach_adapter(model, Adapting(method="lora"), self.tokenizer)
            for p in trained_parameters(model).values():
                nn.init.normal_(p, std=ADAPTER_STD)
            model.eval()
        convert_weights(models[0], dtype, sharing=models[1:])
        worker = EngineWorker(Engine(models, self.tokenizer, max(BATCH_SIZES)))
        worker.engine.stop_ids = set()
        generators = [TextGenerator(model, self.tokenizer, "pretrain", worker=worker) for model in models]

        def generate(prompts, n_new):
            params = SamplingParams(temperature=0, max_new_tokens=n_new)
            asked = zip(prompts, itertools.cycle(generators))
            streams = [generator.new_stream(prompt, params) for prompt, generator in asked]
            worker.run(generators[0], streams)
            return ["".join(stream) for stream in streams]

        self.ways[adapters_way(dtype)] = generate

    def time(self, name, prompts, n_new):
        """Seconds that a way takes for `n_new` tokens after prompts."""
        wait_for(self.device)
        started = time.perf_counter()
        self.ways[name](prompts, n_new)
        wait_for(self.device)
        return time.perf_counter() - started


def adapters_way(dtype):
    """Name of the way that mixes adapters on a base of a compute type."""
    return f"ours, {dtype}, {N_ADAPTERS} LoRA adapters mixed"


def take_prompts(rows, n):
    """n prompts, lists of PROMPT_TOKENS ids: the beginnings of rows (N, T), used again where N is too small."""
    long = [row[:PROMPT_TOKENS].tolist() for row in rows if row[PROMPT_TOKENS] != row[-1]]
    if not long:
        raise UserError(
            f"no validation article is longer than {PROMPT_TOKENS} tokens; give more articles by --input_dir="
        )
    return [long[i % len(long)] for i in range(n)]


def measure_generation(ways, server, prompts, rounds):
    """({(way, batch size): {"tokens_per_second", "first_token"}}, {clients: figures of `load_server`}): medians.

    A round has every way once, then the server with each number of clients. The plain loop with eight prompts takes
    most of a minute, so it is in the first and the last round only.
    """
    cases = [(name, batch) for batch in BATCH_SIZES for name in ways.ways]
    found, loads = {case: [] for case in cases}, {clients: [] for clients in REQUESTS_OF_EACH}
    for turn in range(rounds + 1):  # the first, which is not counted, warms kernels and caches up
        print(f"  round {turn} of {rounds} …", flush=True)
        for name, batch in cases:
            if "plain" in name and batch > 1 and turn not in (1, rounds):
                continue
            first = ways.time(name, prompts[:batch], 1)
            seconds = ways.time(name, prompts[:batch], NEW_TOKENS)
            found[name, batch].append({"tokens_per_second": batch * NEW_TOKENS / seconds, "first_token": first})
        for clients, requests in REQUESTS_OF_EACH.items():
            loads[clients].append(call_in_process(load_server, server.address, prompts, clients, requests, NEW_TOKENS))
    measured = ({case: each[-rounds:] for case, each in part.items()} for part in (found, loads))
    return tuple({case: medians(each) for case, each in part.items()} for part in measured)


@torch.no_grad()
def perplexity(model, rows, meta):
    """Perplexity of rows (n, T) under their loss mask, one token at a time with the KV cache, as in generation."""
    rows = rows[:, : int(row_lengths(rows, meta["special_ids"]["pad"]).max())]
    mask = torch.from_numpy(loss_mask(rows, meta["special_ids"], meta["stage"], train_on_eot=False))
    ids, nats, kept = torch.from_numpy(rows.astype(np.int64)), 0.0, 0
    runner = ModelRunner(model, len(ids))
    logits = runner.prefill(ids[:, :1].tolist())
    for t in range(1, ids.shape[1]):
        losses = F.cross_entropy(logits.float().cpu(), ids[:, t], reduction="none")
        nats, kept = nats + float(losses[mask[:, t - 1]].sum()), kept + int(mask[:, t - 1].sum())
        logits = runner.step(ids[:, t].tolist(), [t] * len(ids))
    return math.exp(nats / kept)


def demo_perplexities():
    """{compute type: perplexity} of the demo's model on its test part; {} where the demo has not run."""
    if not Path(DEMO_MODEL).exists() or not Path(DEMO_ROWS).exists():
        return {}
    rows, meta = open_rows(DEMO_ROWS, "test")
    models = {name: convert_weights(load_model(load_checkpoint(DEMO_MODEL))[0], name) for name in COMPARED_TYPES}
    return {name: perplexity(model, rows[:SCORED_ROWS], meta) for name, model in models.items()}


def generation_ratios(speed, loads, large, demo):
    """Speeds of ours over those of the others, and perplexities of ours over that in float32.

    large, demo: {compute type: perplexity} of the 124M model and of the demo's.
    """

    def fastest(batch, beginning):
        return max(
            f["tokens_per_second"] for (name, b), f in speed.items() if b == batch and name.startswith(beginning)
        )

    def mixed_adapters(name):
        mixed = speed.get((adapters_way(name), N_ADAPTERS))
        return mixed and mixed["tokens_per_second"] / speed[f"ours, {name}", N_ADAPTERS]["tokens_per_second"]

    def loss_of_quality(perplexities, name):
        return perplexities[name] / perplexities["float32"] if name in perplexities else None

    one, eight = fastest(1, "ours"), loads[8]["tokens_per_second"]
    theirs = {batch: speed["Hugging Face, float32", batch]["tokens_per_second"] for batch in BATCH_SIZES}
    ratios = {
        "one_stream_vs_hf": one / theirs[1],
        "one_stream_vs_plain": one / fastest(1, "plain"),
        "float32_vs_hf": fastest(1, "ours, float32") / theirs[1],
        "eight_streams_vs_hf8": eight / theirs[8],
        "eight_streams_vs_one": eight / one,
        "int8_perplexity_ratio": loss_of_quality(large, "int8"),
        "bf16_perplexity_ratio": loss_of_quality(large, "bfloat16"),
        "demo_int8_perplexity_ratio": loss_of_quality(demo, "int8"),
        "demo_bf16_perplexity_ratio": loss_of_quality(demo, "bfloat16"),
        **{f"mixed_adapters_{name}_vs_base": mixed_adapters(name) for name in COMPARED_TYPES},
    }
    if ("Hugging Face, bfloat16", 1) in speed:
        ratios["one_stream_vs_hf_bf16"] = one / speed["Hugging Face, bfloat16", 1]["tokens_per_second"]
    return ratios


def generation_table(speed, loads, ratios, characters_a_token):
    """Markdown tables of the figures of `measure_generation` and `generation_ratios`."""
    speeds = []
    for (name, batch), f in speed.items():
        rate = f["tokens_per_second"]
        first_ms = f["first_token"] * 1e3
        speeds.append([name, batch, f"{rate:.1f}", f"{rate * characters_a_token:.1f}", f"{first_ms:.0f}"])
    served = []
    for clients, f in loads.items():
        times = [f[key] * 1e3 for key in ("first_50", "first_99", "between_50", "between_99")]
        served.append([clients, *(f"{figure:.1f}" for figure in (f["tokens_per_second"], *times))])
    names = ["the server, clients", "tokens/s in all", "first token, ms: median", "99%"]
    names += ["between pieces, ms: median", "99%"]
    shown = [[name, "not measured" if value is None else value] for name, value in ratios.items()]
    tables = [
        markdown_table(["way", "prompts together", "tokens/s", "characters/s", "first token, ms"], speeds),
        markdown_table(names, served),
        markdown_table(["ratio", ""], shown),
    ]
    return "\n\n".join(tables)


def bench_generation(settings):
    """Measure generation; print the tables, and write JSON and docs by the settings of bench.py."""
    device, quick = pick_device(settings.device), settings.quick
    name = machine_name(device)
    print(f"{name}\ntraining a model of 124M parameters for a few minutes …", flush=True)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        path = make_checkpoint(folder, settings, QUICK_TRAIN_STEPS if quick else TRAIN_STEPS)
        rows, meta = open_rows(f"{folder}/rows", "val")
        best = CPU_DTYPE if device.type == "cpu" else GPU_DTYPE
        compiled = () if device.type != "cpu" else (CPU_DTYPE,) if quick else COMPARED_TYPES
        prompts = take_prompts(rows, max(REQUESTS_OF_EACH))
        rounds = QUICK_GENERATION_ROUNDS if quick else GENERATION_ROUNDS
        with ServedModel(path, f"--device={settings.device}", f"--dtype={best}") as server:
            ways = GenerationWays(path, device, compiled)
            server.wait_until_compiled()
            speed, loads = measure_generation(ways, server, prompts, rounds)
        print("  perplexities …", flush=True)
        large = {name: perplexity(model, rows[:SCORED_ROWS], meta) for name, model in ways.models.items()}
    demo = demo_perplexities()
    counts = meta["parts"]["val"]
    ratios = generation_ratios(speed, loads, large, demo)
    table = generation_table(speed, loads, ratios, counts["characters"] / counts["tokens"])
    flat = {f"{way}, {batch}": f for (way, batch), f in speed.items()}
    perplexities = {"124M": large, "demo": demo}
    values = {"machine": name, **ratios, "speed": flat, "server": loads, "perplexity": perplexities}
    publish_results(settings, f"Generation: {name}", table, values)
