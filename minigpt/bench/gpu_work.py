"""What `bench.py gpu` measures, each function in a fresh process: training, memory, generation, checkpoints.

A process keeps what it has opened in OPENED, so that two processes can take turns. What a device cannot tell is a
`LeftOut`, or in figures {"missing": why}.
"""

import functools
import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import time

import torch
from torch._dynamo.utils import calculate_time_spent, counters

from minigpt.bench import gpu_checks
from minigpt.bench.adapting import start_peak
from minigpt.bench.generating import generate_by_hugging_face, to_hugging_face
from minigpt.bench.training import device_time
from minigpt.checkpoint import LAST
from minigpt.common.errors import UserError, first_line
from minigpt.device import (
    choose_precision,
    dtype_by_device,
    is_out_of_memory,
    peak_flops,
    peak_memory,
    pick_device,
    should_compile,
    wait_for,
)
from minigpt.inference.engine import TextGenerator
from minigpt.inference.params import SamplingParams
from minigpt.inference.quantize import convert_weights
from minigpt.inference.static_step import StaticStep
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer
from minigpt.training import compiling
from minigpt.training.setup import TrainingRun
from minigpt.training.state import begin_saving, finish_saving
from model import GPTConfig
from train import add_gradients, train_step

OLDEST_TORCH = "2.11"
CONTEXT_GB = 0.8  # of a GPU's memory, which CUDA's context takes beside torch's tensors
QUIET_STEPS = 3  # without a new graph, after which a run has warmed up
LAUNCH_ROUNDS = 3
GPU_PROMPT_TOKENS = 32
GENERATION_TYPES = ("bfloat16", "int8")
# Of a token's logit behind the largest, over the logits' standard deviation. int8 rounds weights.
GENERATION_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
# CUDA's calls in a profile: those that start work, and those that wait for it.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
FAILED = "failed:"  # begins why there are no figures where it is an error
OPENED = {}  # what this process has opened


class LeftOut(Exception):
    """Why something is not measured here, which is no failure."""


def missing(why):
    """The place of a figure that is not there."""
    return {"missing": why}


def describe_machine(name):
    """The device's kind and everything about the machine that figures depend on, as a dict. name: setting device.

    Raises UserError where the device, or torch, is not one to measure.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise UserError(f"bench.py gpu needs torch {OLDEST_TORCH} or newer, and this is {torch.__version__}")
    device = pick_device(name)
    return {
        "device": device.type,
        **(describe_gpu(device) if device.type == "cuda" else {"gpu": f"no GPU, {device.type}"}),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        **{package: version_of(package) for package in ("triton", "transformers", "torchao")},
    }


def version_of(package):
    """Version of an installed package, without importing it; missing: it is not installed."""
    for name in (package, f"{package}-windows", f"pytorch-{package}"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return missing("not installed")


def describe_gpu(device):
    """Name, capability, memory, driver and power limit of a CUDA device, as a dict."""
    about = torch.cuda.get_device_properties(device)
    driver, watts = ask_nvidia_smi(str(getattr(about, "uuid", "")))
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "processors": about.multi_processor_count,
        "memory_gb": round(about.total_memory / 2**30, 2),
        "cuda": torch.version.cuda or missing("torch is built for another make of GPU"),
        "driver": driver,
        "power_limit_watts": watts,
    }


def ask_nvidia_smi(uuid):
    """(driver, power limit in watts) of the GPU with a uuid, each as text; missing where nvidia-smi cannot tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits", "-i"]
    try:
        done = subprocess.run([*command, f"GPU-{uuid}"], capture_output=True, text=True, timeout=20, check=True)
        driver, watts = done.stdout.strip().split(", ")
        return driver, watts
    except (OSError, subprocess.SubprocessError, ValueError):
        unknown = missing("nvidia-smi could not be asked")
        return unknown, unknown


# Training.


def compile_cheaply():
    """From now on torch.compile traces, and generates no code: what a CPU can do in a second."""
    compile_it = torch.compile
    torch.compile = lambda function, dynamic=None, **_: compile_it(function, backend="aot_eager", dynamic=dynamic)


def train_settings(config, flags):
    """`TrainSettings` of a settings file and flags."""
    return load_settings(TrainSettings, [config, *flags])


def open_eager(config, flags, trace_only=False):
    """As `open_training`, without torch.compile."""
    return open_training(config, [*flags, "--compile=off"])


def open_compiled(config, flags, trace_only=False):
    """As `open_training`, compiled as a run is by default on a GPU. trace_only: see `compile_cheaply`.

    Raises LeftOut where the device cannot compile.
    """
    device = pick_device(train_settings(config, flags).device)
    possible, why = should_compile("on", device)
    if not possible:
        raise LeftOut(why)
    if trace_only:
        compile_cheaply()
    return open_training(config, [*flags, f"--compile={'auto' if device.type == 'cuda' else 'on'}"])


def open_any_width(config, flags, trace_only=False):
    """As `open_compiled`, with one graph for batches of any width in the place of one for each bucket."""
    compiling.BUCKETS = None
    return open_compiled(config, flags, trace_only)


def open_training(config, flags):
    """Set up a `TrainingRun` in this process; returns what it said, and the seconds that it took, as a dict."""
    started, said = time.perf_counter(), []
    counters.clear()
    OPENED["before"] = calculate_time_spent()["total_wall_time"]
    run = OPENED["run"] = TrainingRun(train_settings(config, flags), say=said.append)
    OPENED["said"] = said
    wait_for(run.device)
    return {"said": said, "setup_seconds": time.perf_counter() - started}


def n_graphs():
    """Number of graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def train_steps(seconds, quiet_steps=0):
    """Train for `seconds`, a step at least; returns the figures of each step, a list of dicts.

    quiet_steps: end once so many steps in a row made no graph; 0: do not. Memory that is only reserved is freed then,
    for a process that takes turns with this one.
    """
    run, steps, began = OPENED["run"], [], time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        graphs, started = n_graphs(), device_time(run.device)
        rows, kept = train_step(run)
        steps.append(
            {
                "seconds": device_time(run.device) - started,
                "tokens": rows.tokens,
                "inputs": rows.tokens - rows.rows,  # the last token of a row is a target only
                "positions": sum(batch[0].numel() for batch in rows.batches),
                "shapes": [tuple(batch[0].shape) for batch in rows.batches],
                "flops": float(run.model.training_flops(rows.tokens, kept, rows.squares)),
                "graphs": n_graphs() - graphs,
            }
        )
        last = steps[-quiet_steps:] if quiet_steps else []
        if len(last) == quiet_steps > 0 and not any(step["graphs"] for step in last):
            break
    free_reserved(run.device)
    return steps


def free_reserved(device):
    """Give memory that is only reserved back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def warm_up(seconds):
    """Train until every graph is made, for `seconds` at most; returns what compiling took, as a dict."""
    run = OPENED["run"]
    steps = train_steps(seconds, QUIET_STEPS)
    start_peak(run.device)
    return {
        "warm_up_steps": len(steps),
        "warm_up_seconds": sum(step["seconds"] for step in steps),
        "first_step_graphs": steps[0]["graphs"],
        "compile_seconds": calculate_time_spent()["total_wall_time"] - OPENED["before"],
    }


def training_figures(steps):
    """Figures of the run in this process, a dict, from those of its timed steps. Steps that made graphs are left out.

    Raises RuntimeError where compiled code was given up.
    """
    run = OPENED["run"]
    if given_up := [line for line in OPENED["said"] if "compiled code failed" in line]:
        raise RuntimeError(given_up[0])
    timed = [step for step in steps if not step["graphs"]] or steps
    seconds, peak = sum(step["seconds"] for step in timed), peak_flops(run.device)
    total = {key: sum(step[key] for step in timed) for key in ("tokens", "inputs", "positions", "flops")}
    memory, _ = peak_memory(run.device)
    shapes = {shape for step in steps for shape in step["shapes"]}
    launches = launch_figures(run)
    free_reserved(run.device)
    return {
        "steps": len(timed),
        "tokens_per_second": total["tokens"] / seconds,
        "seconds_per_step": seconds / len(timed),
        "tokens_per_step": total["tokens"] / len(timed),
        "mfu": total["flops"] / seconds / peak if peak else missing("the peak FLOP/s of this device are not known"),
        "padding_share": 1 - total["inputs"] / total["positions"],
        "micro_batches_per_step": len(timed[0]["shapes"]),
        "shapes": sorted(shapes),
        "graphs": n_graphs(),
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs_while_timed": sum(step["graphs"] for step in steps),
        "peak_memory_gb": memory / 2**30 if memory else missing("this system does not tell"),
        **launches,
    }


def launch_figures(run):
    """Milliseconds of one micro-batch, forward and backward: until all is launched, and until all is done; and the
    calls of CUDA in it. Where the two times are equal the host waited for the GPU."""
    batches, host, whole = run.data.typical_step((0, 0)).batches[:1], [], []
    for _ in range(1 + LAUNCH_ROUNDS):
        started = device_time(run.device)
        add_gradients(run, batches, 1)
        host.append(time.perf_counter() - started)
        whole.append(device_time(run.device) - started)
        run.zero_grad()
    calls = calls_of_each(lambda count: add_gradients(run, batches * count, 1), 1, run.device)
    run.zero_grad()
    return {
        "host_ms_per_micro_batch": 1e3 * statistics.median(host[1:]),
        "ms_per_micro_batch": 1e3 * statistics.median(whole[1:]),
        "launches_per_micro_batch": calls["launches"],
        "waits_per_micro_batch": calls["waits"],
    }


def count_calls(work, device):
    """{"launches", "waits"}: how often `work()` starts work on a CUDA device, and how often it waits for it."""
    if device.type != "cuda":
        return dict.fromkeys(("launches", "waits"), missing("counted on CUDA only"))
    wait_for(device)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        work()
    return calls_of({event.key: event.count for event in profile.key_averages()})


def calls_of_each(work, count, device):
    """{"launches", "waits"} of each repetition in `work(1 + count)` but the first: the profiler waits once, too."""
    one, more = (count_calls(functools.partial(work, n), device) for n in (1, 1 + count))
    return {kind: (more[kind] - one[kind]) / count if isinstance(more[kind], int) else more[kind] for kind in more}


def calls_of(counts):
    """{"launches", "waits"} of the counts {name: number} of a profile's events."""
    found = {
        kind: sum(counts.get(name, 0) for name in names) for kind, names in (("launches", LAUNCHES), ("waits", WAITS))
    }
    return found if found["launches"] else dict.fromkeys(found, missing("the profiler saw no call of CUDA"))


def check_compiled_run():
    """Checks of the compiled run in this process against plain code."""
    checks = gpu_checks.check_compiled(OPENED["run"])
    free_reserved(OPENED["run"].device)
    return checks


def time_saves(saves, seconds):
    """For how long saving the run in this process holds training up, as a dict: medians of `saves` savings.

    stall_seconds: the call and the steps of `seconds` after it, less what as many steps take without a saving. So
    what is written in the background counts, too, where it slows the steps.
    """
    run = OPENED["run"]
    usual = [step["seconds"] for step in train_steps(seconds)]
    calls, stalls = [], []
    for _ in range(saves):
        started = device_time(run.device)
        finish_saving(run)
        begin_saving(run, [LAST])
        if not run.saves_in_background:
            finish_saving(run)
        calls.append(time.perf_counter() - started)
        for _ in usual:
            train_step(run)
        stalls.append(device_time(run.device) - started - sum(usual))
    finish_saving(run)
    run.close()
    return {
        "call_seconds": statistics.median(calls),
        "stall_seconds": statistics.median(stalls),
        "steps_after_each": len(usual),
        "usual_step_seconds": statistics.median(usual),
        "gigabytes": (run.out / LAST).stat().st_size / 1e9,
    }


# Memory.


def limit_memory(gb, cuda=torch.cuda):
    """Let this process have `gb` of a GPU's memory."""
    total = cuda.get_device_properties(cuda.current_device()).total_memory
    cuda.set_per_process_memory_fraction(min(1.0, gb * 2**30 / total))


def train_within(gb, config, flags, steps):
    """Train `steps` in this process with the memory of a smaller GPU; returns whether it could, and how, as a dict."""
    limit_memory(gb)  # passes are merged by that
    try:
        run = OPENED["run"] = TrainingRun(train_settings(config, [*flags, "--compile=off"]), say=gpu_checks.silent)
        limit_memory(gb - CONTEXT_GB)  # what torch has of it
        taken = [step for _ in range(steps) for step in train_steps(0)]
    except (UserError, torch.OutOfMemoryError) as error:
        if not (is_out_of_memory(error) or "out of memory" in str(error)):
            raise
        return {"trains": False, "why": first_line(error)}
    last = taken[-1]
    return {
        "trains": True,
        "micro_batches_per_step": len(last["shapes"]),
        "positions_per_micro_batch": max(rows * width for rows, width in last["shapes"]),
        "passes_merged": run.merged,
        "peak_memory_gb": peak_memory(run.device)[0] / 2**30,
        "tokens_per_second": last["tokens"] / last["seconds"],
    }


# Checks.


def run_precision(config, device, dtype):
    """The `Precision` that training takes for a GPT of a shape on a device; dtype: as in the settings."""
    model = gpu_checks.spread_model(GPTConfig(**config), device)
    return choose_precision(dtype, device, model, config["block_size"], say=gpu_checks.silent)


def check_numbers(shape, sure_shape, rows, name, dtype):
    """Checks of loss and gradients against float64. shape, sure_shape: fields of GPTConfig, those of the model and of
    the one with sure targets."""
    device = pick_device(name)
    precision = run_precision({**shape, "n_layer": 1}, device, dtype)
    checks = gpu_checks.check_precision(GPTConfig(**shape), rows, precision, device)
    return [*checks, gpu_checks.check_confident(GPTConfig(**sure_shape), rows, precision, device)]


# Generation.


def open_generation(shape, name, streams):
    """Set up generation in this process: ways {name: function(prompts, n_new) -> answers, lists of ids}. streams: the
    numbers of streams that are measured. Returns {way: None, or why it is left out}."""
    device, tokenizer, about = pick_device(name), load_tokenizer(), {}
    make = functools.partial(gpu_checks.spread_model, GPTConfig(**shape), device)
    plain, ways = make(), {}
    random = torch.Generator().manual_seed(2)
    prompts = torch.randint(tokenizer.eot_id, (max(streams), GPU_PROMPT_TOKENS), generator=random).tolist()
    half = half_type(device)
    for dtype in dict.fromkeys(("float32", half, *GENERATION_TYPES[1:])):
        try:
            ways[f"ours, {dtype}"] = our_generation(convert_weights(make(), dtype), tokenizer, streams)
        except UserError as error:
            about[f"ours, {dtype}"] = str(error)
        except Exception as error:  # another library's
            about[f"ours, {dtype}"] = f"{FAILED} {first_line(error)}"
    theirs = f"Hugging Face, {half}"
    if importlib.util.find_spec("transformers") is None:
        about[theirs] = "transformers is not installed (pip install transformers)"
    else:
        model = to_hugging_face(plain).to(device, getattr(torch, half))
        ways[theirs] = lambda asked, n_new: generate_by_hugging_face(model, asked, n_new)[:, len(asked[0]) :].tolist()
    OPENED.update(device=device, plain=plain, tokenizer=tokenizer, ways=ways, prompts=prompts)
    return dict.fromkeys(ways) | about


def half_type(device):
    """The type in which generation is measured: bfloat16, or float32 on a GPU that lacks it."""
    known = dtype_by_device(device)
    return "float32" if device.type == "cuda" and known is None else GENERATION_TYPES[0]


def our_generation(model, tokenizer, streams):
    """Function(prompts, n_new) -> answers, lists of ids, by a `TextGenerator` of a model, compiled as by default.
    streams: as in `open_generation`."""
    generator = TextGenerator(model, tokenizer, "pretrain", max(streams))
    generator.engine.stop_ids = set()  # no token ends a text early
    if generator.should_compile("auto") and generator.make_kernels():
        if isinstance(generator.kernels, StaticStep):  # the other numbers of rows would take minutes of the measurement
            generator.kernels.row_counts = streams
        generator.compile()

    def generate(prompts, n_new):
        params = SamplingParams(temperature=0, max_new_tokens=n_new)
        return [stream.ids for stream in generator.generate_streams(prompts, params)]

    return generate


def time_generation(way, streams, n_new):
    """(seconds to the first token, seconds of n_new tokens) of each of `streams` by a way of this process."""
    device, generate, prompts = OPENED["device"], OPENED["ways"][way], OPENED["prompts"][:streams]
    started = device_time(device)
    generate(prompts, 1)
    first = device_time(device) - started
    started = device_time(device)
    generate(prompts, n_new)
    return first, device_time(device) - started


def calls_per_token(way, n_new):
    """{"launches", "waits"} of each further token of one stream by a way of this process."""
    generate, prompts = OPENED["ways"][way], OPENED["prompts"][:1]
    return calls_of_each(functools.partial(generate, prompts), n_new, OPENED["device"])


def check_generation(way, streams, n_new):
    """Check, as a list, of the greedy tokens of one of our ways against a plain pass over prompt and answer."""
    tokenizer, plain, prompts = OPENED["tokenizer"], OPENED["plain"], OPENED["prompts"][:streams]
    allowed = torch.zeros(plain.config.vocab_size, dtype=torch.bool, device=plain.wte.weight.device)
    allowed[: tokenizer.eot_id + 1] = True  # GPT-2's PAD is behind EOT
    gap = gpu_checks.greedy_gap(plain, prompts, OPENED["ways"][way](prompts, n_new), allowed)
    return [gpu_checks.check(f"{way}: greedy tokens against a plain pass", gap, GENERATION_TOLERANCE[way.split()[-1]])]
