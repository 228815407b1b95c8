"""Measures generation beside a plain loop, Hugging Face's `generate` and llama.cpp, all with the same weights; and the
server under load, beside llama.cpp's.

A model of 124M parameters is trained for a few minutes, so that its perplexity means something and its text is not
that of a random model. EOT is never learned, so all texts have the same length. The ways of generating take turns: ours
and Hugging Face's in one process, llama.cpp with each of its files in one of its own. The servers and their clients are
processes, too. Whoever is not asked is idle.
"""

import itertools
import math
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_utils import loss_mask, open_rows, row_lengths
from minigpt.adapters.attach import attach_adapter, trained_parameters
from minigpt.adapters.mixing import share_layers
from minigpt.bench.common import fresh_process, machine_name, medians, publish_results, reading_flags, run_quietly
from minigpt.bench.llama_cpp import GREEDY_REQUEST, check_same_text, llama_cpp_way, open_llama_cpps, round_as_gguf
from minigpt.bench.load import ServedModel, load_server, seconds_to_full_speed
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.device import pick_device, wait_for
from minigpt.evaluation.tables import markdown_table
from minigpt.formats.weights import to_huggingface
from minigpt.inference.engine import Engine, EngineWorker, TextGenerator
from minigpt.inference.kernels import KernelStep, can_run
from minigpt.inference.model_runner import ModelRunner
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import WEIGHT_TYPES, convert_weights
from minigpt.settings.stages import Adapting

TOKENIZER_VOCAB = 8192  # trained on the articles; the output layer has GPT-2's 50304
MODEL_FLAGS = ["--n_layer=12", "--n_head=12", "--n_embd=768", "--block_size=512", "--vocab_size=50304"]
TRAIN_STEPS, QUICK_TRAIN_STEPS = 80, 20
PROMPT_TOKENS, NEW_TOKENS = 32, 100
GENERATION_ROUNDS, QUICK_GENERATION_ROUNDS = 3, 2
WARM_TOKENS = 8  # of each answer in the round that is not counted
BATCH_SIZES = (1, 8)
REQUESTS_OF_EACH = {1: 3, 8: 2, 32: 1}  # number of clients: requests of each
MOST_CLIENTS_OF_SLOW = 8  # of servers in float32, and of a quick measurement
SCORED_ROWS, SCORED_POSITIONS = 24, 256
QUICK_SCORED_ROWS, QUICK_SCORED_POSITIONS = 8, 128
COMPARED_TYPES = tuple(name for name in WEIGHT_TYPES if name != "float16")
CPU_DTYPE, GPU_DTYPE = "int8", "bfloat16"  # the fastest
# Our types and llama.cpp's of as many bits. Its q4_0 is measured whether or not there is one of ours.
LLAMA_CPP_TYPES = {"float32": "float32", "int8": "q8_0", "int4": "q4_0"}
ROUNDED_GGUF_TYPES = ("q8_0", "q4_0")
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

    ways: {name: function(prompts, n_new)}; generators: {compute type: `TextGenerator`}. On a CPU the steps of ours are
    compiled; UserError where that fails.
    """

    def __init__(self, path, device):
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
        self.generators = {}
        for name in types_of_ours(device):
            self.generators[name] = self.add(our_way(name), convert_weights(load_model(content, device)[0], name))
            self.add_adapters(name, load_model(content, device)[0])

    def add(self, name, model):
        """Add a way: our generation with a model. Returns its `TextGenerator`."""
        generator = TextGenerator(model, self.tokenizer, "pretrain")
        generator.engine.stop_ids = set()  # no token ends a text early
        if self.device.type == "cpu":
            generator.compile()
            if not generator.compiled:
                raise UserError(f"{name}: the steps were not compiled (the reason is above), so it is not measured")
        self.ways[name] = lambda prompts, n_new: generator.generate(
            prompts, SamplingParams(temperature=0, max_new_tokens=n_new)
        )
        return generator

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


def types_of_ours(device):
    """Names of the compute types that are compared on a device: those of integers are for CPUs."""
    return [name for name in COMPARED_TYPES if device.type == "cpu" or "float" in name]


def our_way(dtype):
    """Name of our way in a compute type."""
    return f"ours, {dtype}"


def adapters_way(dtype):
    """Name of the way that mixes adapters on a base of a compute type."""
    return f"{our_way(dtype)}, {N_ADAPTERS} LoRA adapters mixed"


def take_prompts(rows, n):
    """n prompts, lists of PROMPT_TOKENS ids: the beginnings of rows (N, T), used again where N is too small."""
    long = [row[:PROMPT_TOKENS].tolist() for row in rows if row[PROMPT_TOKENS] != row[-1]]
    if not long:
        raise UserError(
            f"no validation article is longer than {PROMPT_TOKENS} tokens; give more articles by --input_dir="
        )
    return [long[i % len(long)] for i in range(n)]


def measure_generation(ways, servers, prompts, rounds):
    """({(way, batch size): {"tokens_per_second", "first_token"}}, {(server, clients): figures of `load_server`}).

    The figures are medians of the rounds. A round has every way once, then each server with each number of clients. The
    plain loop, which takes most of a minute for several prompts, has a single one; adapters are mixed in a full batch
    only. servers: {name: (address, further fields of its requests, numbers of clients)}.
    """
    only = {"plain loop, float32": 1} | {adapters_way(dtype): N_ADAPTERS for dtype in COMPARED_TYPES}
    cases = [(name, batch) for batch in BATCH_SIZES for name in ways.ways if only.get(name, batch) == batch]
    asked = [(name, clients) for name, (_, _, numbers) in servers.items() for clients in numbers]
    found, loads = {case: [] for case in cases}, {case: [] for case in asked}
    with fresh_process() as call:
        for turn in range(rounds + 1):  # the first, which is not counted, warms kernels and caches up
            print(f"  round {turn} of {rounds} …", flush=True)
            n_new = NEW_TOKENS if turn else WARM_TOKENS
            for name, batch in cases:
                first = ways.time(name, prompts[:batch], 1)
                seconds = ways.time(name, prompts[:batch], n_new)
                found[name, batch].append({"tokens_per_second": batch * n_new / seconds, "first_token": first})
            for name, clients in asked:
                address, fields, _ = servers[name]
                requests = REQUESTS_OF_EACH[clients] if turn else 1
                loads[name, clients].append(call(load_server, address, prompts, clients, requests, n_new, fields))
    return tuple({case: medians(each[1:]) for case, each in part.items()} for part in (found, loads))


@torch.no_grad()
def perplexity(model, rows, meta):
    """Perplexity of rows (n, T) under their loss mask, one token at a time with the KV cache, as in generation.

    Integer weights are multiplied by the compiled kernels where there are any, since these round rows their own way.
    """
    rows = rows[:, : int(row_lengths(rows, meta["special_ids"]["pad"]).max())]
    mask = torch.from_numpy(loss_mask(rows, meta["special_ids"], meta["stage"], train_on_eot=False))
    ids, nats, kept = torch.from_numpy(rows.astype(np.int64)), 0.0, 0
    runner = ModelRunner(model, len(ids))
    runner.kernels = KernelStep(model) if can_run(model) else None
    logits = runner.prefill(ids[:, :1].tolist())
    for t in range(1, ids.shape[1]):
        losses = F.cross_entropy(logits.float().cpu(), ids[:, t], reduction="none")
        nats, kept = nats + float(losses[mask[:, t - 1]].sum()), kept + int(mask[:, t - 1].sum())
        logits = runner.step(ids[:, t].tolist(), [t] * len(ids))
    return math.exp(nats / kept)


def measure_perplexities(path, rows, meta, device):
    """{type: perplexity of rows} of a checkpoint in our compute types and in llama.cpp's.

    llama.cpp's is that of our engine in float32 with the weights that are in the GGUF file. So it has the rounding of
    the weights, and not that of activations, which llama.cpp rounds to 8 bits before a product with such weights.
    """
    content, found = load_checkpoint(path), {}
    for name in types_of_ours(device):
        found[name] = perplexity(convert_weights(load_model(content, device)[0], name), rows, meta)
    for name in ROUNDED_GGUF_TYPES:
        found[llama_cpp_way(name)] = perplexity(round_as_gguf(load_model(content)[0], name), rows, meta)
    return found


def demo_perplexities(device):
    """`measure_perplexities` of the demo's model on its test part; {} where the demo has not run."""
    if not Path(DEMO_MODEL).exists() or not Path(DEMO_ROWS).exists():
        return {}
    rows, meta = open_rows(DEMO_ROWS, "test")
    return measure_perplexities(DEMO_MODEL, rows[:SCORED_ROWS], meta, device)


def measure_starts(path, flags, prompts, warm, folder):
    """{start: `seconds_to_full_speed`} of the server at a first start, with no compiled kernels, and at a later one.

    warm: address of a server that has long been running; folder: where the compiled kernels are kept.
    """
    kept = {"NUMBA_CACHE_DIR": folder}
    return {start: seconds_to_full_speed(path, flags, prompts, warm, kept) for start in ("first", "later")}


def generation_ratios(speed, loads, large, demo, fastest_type):
    """Speeds of ours over those of the others, and perplexities over that of ours in float32.

    large, demo: {type: perplexity} of the 124M model and of the demo's; fastest_type: that of our server.
    """

    def rate(way, batch):
        return speed[way, batch]["tokens_per_second"] if (way, batch) in speed else None

    def served(way, clients):
        return loads[way, clients]["tokens_per_second"] if (way, clients) in loads else None

    def quotient(ours, theirs):
        return ours / theirs if ours and theirs else None

    def fastest(batch, dtype=""):
        mine = [name for name, b in speed if b == batch and name.startswith(our_way(dtype)) and "adapters" not in name]
        return max((rate(name, batch) for name in mine), default=None)

    one, eight = fastest(1), served(our_way(fastest_type), 8)
    ratios = {
        "one_stream_vs_hf": quotient(one, rate("Hugging Face, float32", 1)),
        "one_stream_vs_plain": quotient(one, rate("plain loop, float32", 1)),
        "float32_vs_hf": quotient(fastest(1, "float32"), rate("Hugging Face, float32", 1)),
        "eight_streams_vs_hf8": quotient(eight, rate("Hugging Face, float32", 8)),
        "eight_streams_vs_one": quotient(eight, one),
        "server_vs_engine_8": quotient(eight, fastest(8, fastest_type)),
    }
    for dtype, theirs in LLAMA_CPP_TYPES.items():
        if dtype not in COMPARED_TYPES:
            continue
        for n in BATCH_SIZES:
            ratios[f"{dtype}_vs_llama_cpp_{n}"] = quotient(fastest(n, dtype), rate(llama_cpp_way(theirs), n))
        for n in REQUESTS_OF_EACH:
            both = served(our_way(dtype), n), served(llama_cpp_way(theirs), n)
            ratios[f"{dtype}_server_vs_llama_cpp_{n}"] = quotient(*both)
    for beginning, perplexities in (("", large), ("demo_", demo)):
        for name in (*COMPARED_TYPES[1:], *map(llama_cpp_way, ROUNDED_GGUF_TYPES)):
            short = name.replace("bfloat16", "bf16").replace("llama.cpp, ", "llama_cpp_")
            ratio = quotient(perplexities.get(name), perplexities.get("float32"))
            ratios[f"{beginning}{short}_perplexity_ratio"] = ratio
    for dtype in COMPARED_TYPES:
        base = rate(our_way(dtype), N_ADAPTERS)
        ratios[f"mixed_adapters_{dtype}_vs_base"] = quotient(rate(adapters_way(dtype), N_ADAPTERS), base)
    if ("Hugging Face, bfloat16", 1) in speed:
        ratios["one_stream_vs_hf_bf16"] = quotient(one, rate("Hugging Face, bfloat16", 1))
    return ratios


def generation_table(speed, loads, starts, ratios, characters_a_token):
    """Markdown tables of the figures of `measure_generation`, `measure_starts` and `generation_ratios`."""
    speeds = []
    for (name, batch), f in speed.items():
        rate = f["tokens_per_second"]
        first_ms = f["first_token"] * 1e3
        speeds.append([name, batch, f"{rate:.1f}", f"{rate * characters_a_token:.1f}", f"{first_ms:.0f}"])
    served = []
    for (name, clients), f in loads.items():
        times = [f[key] * 1e3 for key in ("first_50", "first_99", "between_50", "between_99")]
        served.append([name, clients, *(f"{figure:.1f}" for figure in (f["tokens_per_second"], *times))])
    names = ["server", "clients", "tokens/s in all", "first token, ms: median", "99%"]
    names += ["between pieces, ms: median", "99%"]
    begun = [
        [start, clients, "not reached" if seconds is None else f"{seconds:.1f}"]
        for start, each in starts.items()
        for clients, seconds in each.items()
    ]
    shown = [[name, "not measured" if value is None else value] for name, value in ratios.items()]
    tables = [
        markdown_table(["way", "prompts together", "tokens/s", "characters/s", "first token, ms"], speeds),
        markdown_table(names, served),
        *([markdown_table(["start of the server", "clients", "at full speed after, s"], begun)] if begun else []),
        markdown_table(["ratio", ""], shown),
    ]
    return "\n\n".join(tables)


def choose_served(device, quick):
    """{compute type: numbers of clients} of our servers on a device. The fastest type is the first."""
    fastest = CPU_DTYPE if device.type == "cpu" else GPU_DTYPE
    few = [clients for clients in REQUESTS_OF_EACH if clients <= MOST_CLIENTS_OF_SLOW]
    if quick:
        return {fastest: few}
    slow = {"float32": few} if device.type == "cpu" else {}
    return {fastest: list(REQUESTS_OF_EACH), **slow}


def measure_speeds(path, folder, prompts, device, quick):
    """Speeds of generating with a checkpoint: (speed, loads) of `measure_generation`, (starts) of `measure_starts`,
    (equal) of `check_same_text`, and (about) a line about llama.cpp, "" without it.

    prompts: lists of ids; folder: for files of llama.cpp's and compiled kernels.
    """
    served, on_cpu = choose_served(device, quick), device.type == "cpu"
    fastest = next(iter(served))
    with ExitStack() as stack:
        flags = {dtype: [f"--device={device}", f"--dtype={dtype}"] for dtype in served}
        ours = {dtype: stack.enter_context(ServedModel(path, *flags[dtype])) for dtype in served}
        ways = GenerationWays(path, device)
        llamas = open_llama_cpps(stack, path, folder, LLAMA_CPP_TYPES.values(), max(REQUESTS_OF_EACH)) if on_cpu else {}
        equal = check_same_text(ways.generators["float32"], llamas, prompts)
        ways.ways |= {llama_cpp_way(name): llama.generate for name, llama in llamas.items()}
        servers = {}
        for dtype, clients in served.items():
            if on_cpu:
                ours[dtype].wait_until_compiled()
            servers[our_way(dtype)] = ours[dtype].address, {}, clients
            if theirs := llamas.get(LLAMA_CPP_TYPES.get(dtype)):
                servers[llama_cpp_way(LLAMA_CPP_TYPES[dtype])] = theirs.address, GREEDY_REQUEST, clients
        rounds = QUICK_GENERATION_ROUNDS if quick else GENERATION_ROUNDS
        speed, loads = measure_generation(ways, servers, prompts, rounds)
        starts = {}
        if on_cpu and not quick:
            print("  starts of the server …", flush=True)
            starts = measure_starts(path, flags[fastest], prompts, ours[fastest].address, f"{folder}/kernels")
        return speed, loads, starts, equal, next((llama.about for llama in llamas.values()), "")


def bench_generation(settings):
    """Measure generation; print the tables, and write JSON and docs by the settings of bench.py."""
    device, quick = pick_device(settings.device), settings.quick
    name = machine_name(device)
    print(f"{name}\ntraining a model of 124M parameters for a few minutes …", flush=True)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        path = make_checkpoint(folder, settings, QUICK_TRAIN_STEPS if quick else TRAIN_STEPS)
        rows, meta = open_rows(f"{folder}/rows", "val")
        prompts = take_prompts(rows, max(REQUESTS_OF_EACH))
        speed, loads, starts, equal, about = measure_speeds(path, folder, prompts, device, quick)
        print("  perplexities …", flush=True)
        n, end = (QUICK_SCORED_ROWS, QUICK_SCORED_POSITIONS) if quick else (SCORED_ROWS, SCORED_POSITIONS)
        large = measure_perplexities(path, rows[:n, :end], meta, device)
    demo = demo_perplexities(device)
    counts = meta["parts"]["val"]
    ratios = generation_ratios(speed, loads, large, demo, next(iter(choose_served(device, quick))))
    table = generation_table(speed, loads, starts, ratios, counts["characters"] / counts["tokens"])
    values = {"machine": name, "llama_cpp": about, **ratios}
    values["speed"] = {f"{way}, {batch}": f for (way, batch), f in speed.items()}
    values["server"] = {f"{way}, {clients}": f for (way, clients), f in loads.items()}
    values |= {"starts": starts, "perplexity": {"124M": large, "demo": demo}, "llama_cpp_equal_share": equal}
    publish_results(settings, f"Generation: {name}", f"{about}\n\n{table}" if about else table, values)
