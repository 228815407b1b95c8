"""Everything that a training run consists of, set up from its settings: data, model, precision, optimizers, folder.

Several processes (torchrun) share a run, which learns what one process would: a step's loss is the sum over its
kept targets, divided by the kept targets of all processes.
"""

import functools
import itertools
import math
from pathlib import Path

import torch

from data_utils import check_tokenizer
from minigpt.adapters.adalora import AdaLoRABudget
from minigpt.adapters.attach import adapting_of, attach_adapter, trained_parameters
from minigpt.adapters.nf4 import quantized_weights, weight_bytes
from minigpt.adapters.prompts import check_room
from minigpt.checkpoint import LAST, load_checkpoint, load_model, new_output_layer, newest_intact, weights_hash
from minigpt.common.errors import UserError
from minigpt.common.files import replace_file
from minigpt.device import (
    DTYPES,
    Precision,
    choose_attention,
    choose_precision,
    dtype_by_device,
    explain_out_of_memory,
    pick_device,
    precision_text,
    use_deterministic_algorithms,
)
from minigpt.run_log import ANSWERS_LOG, LOG
from minigpt.training.compiled_loss import compile_loss
from minigpt.training.compiling import choose_buckets, choose_compiling, compile_trunk
from minigpt.training.distributed import averaging_loss, shard, start_processes
from minigpt.training.low_memory import LOW_MEMORY_LOSSES, check_low_memory
from minigpt.training.memory import merge_passes
from minigpt.training.optim import compile_muon, make_optimizers
from minigpt.training.pipeline import Pipeline
from minigpt.training.restarts import find_launch, go_on_after_restart
from minigpt.training.state import Progress, check_resumable, restore_run
from minigpt.training.tensor_parallel import TensorParallel
from minigpt.tuning.objectives import SPECIAL, check_objective, make_objective, open_data
from model import GPT, GPTConfig

FEW_STEPS = 100  # a run of fewer steps learns little
LONG_STEP_SECONDS = 10
# Fields of GPTConfig that are settings, and that a run from a checkpoint takes over from it.
SHAPE = (
    "architecture", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "tied", "bias", "vocab_size",
)  # fmt: skip
SLOW_COUNT_ROWS = 2_000_000  # rows whose batches take seconds to count


class TrainingRun:
    """The parts of one training run, and where it stands.

    device, precision, data, model, objective (an `Objective`), loss (a callable: the tensors of a micro-batch -> summed
    loss), optimizers, scaler: what a step needs; base: of an adapter {"path", "sha256"} of the model that it is trained
    on, else None; progress: a `Progress`; processes: a `Processes`; out: the run's folder; say(text): prints a line, in
    the main process only; sharded: whether the model is sharded (FSDP2).
    """

    def __init__(self, settings, say=print):
        check_settings(settings)
        if settings.deterministic:
            use_deterministic_algorithms()
        self.settings = settings
        self.progress = Progress()
        self.out = Path(settings.out_dir)

        # Processes and devices.
        self.launch = find_launch(self.out)
        self.processes = start_processes(settings.device, settings.tensor_parallel * settings.pipeline_parallel)
        check_low_memory(settings, self.processes.world_count)
        check_objective(settings, self.processes.world_count)
        self.say = say if self.processes.is_main else lambda text: None
        self.sharded = settings.fsdp and self.processes.count > 1
        several = self.processes.world_count > 1
        self.device = pick_device(settings.device, self.processes.local_rank if several else None)

        go_on_after_restart(self)

        # Data.
        place = self.processes.rank, self.processes.count
        if settings.replay_share:
            settings.replay_dir = replay_folder(settings)
        divided = self.sharded or self.processes.parts > 1
        # Where one process cannot compile, none does: all need the same batches.
        compiled, why = min(self.processes.gather(choose_compiling(settings, self.device, divided)))
        buckets = choose_buckets(settings, compiled)
        self.data = open_data(settings, *place, pinned=self.device.type == "cuda", buckets=buckets)
        if settings.stop_at_answered and self.data.meta["stage"] != "sft":
            raise UserError(
                f"stop_at_answered is {settings.stop_at_answered}, but {settings.data_dir} holds articles, not "
                "questions; it is for fine-tuning, leave it out here"
            )
        self.say(f"{len(self.data.train):,} rows for training, {len(self.data.val):,} for validation")
        if settings.replay_share:
            replay = self.data.replay
            rows = len(self.data.order.batches(0)[0]) * settings.gradient_accumulation_steps
            self.say(
                f"replay: {replay.count(rows)} of {len(replay.rows):,} pretraining rows of {replay.folder} beside "
                f"{rows} rows a step"
            )

        # Model. One that is sharded or divided may be too large for one GPU, so only the own part goes there.
        torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
        torch.manual_seed(settings.seed)
        self.model, self.base, resumed = make_model(settings, self.data)
        if not self.sharded and self.processes.parts == 1:
            with explain_out_of_memory(self.device):
                self.model.to(self.device)
        self.model.train()
        self.merged = merge_passes(self)  # passes of the settings that are one

        # What it is trained for.
        load_reference = functools.partial(load_start, settings, self.base, self.device)
        self.objective = make_objective(settings, self.data, self.model, self.device, load_reference, self.out)

        # Precision and compiling, before the model is wrapped for several processes.
        batch = self.data.typical_step((0, 0)).batches[0]
        self.precision = self.processes.from_main(choose_run_precision(self, resumed, batch[0].shape[1]))
        self.model.use_plain_attention(self.precision.plain_attention)
        self.objective.precision = self.precision
        if self.data.shapes is not None:  # cuDNN prepares its kernel anew for each shape of a batch
            choose_attention(self.device, self.model.config, self.precision.dtype, batch[0].shape[1], self.say)
        scaled = self.precision.dtype == torch.float16 and settings.optimizer != "mezo"  # which has no gradients
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        compile_loss(self, compiled)
        if compiled:
            compiled, why = compile_trunk(self, batch, why)
        self.say(speed_text(self, compiled, why))
        if self.sharded:
            shard(self.model, self.device)
        self.divided = None  # a `DividedModel`, where several processes hold parts of the model
        if self.processes.parts > 1:
            self.divided = (TensorParallel if settings.tensor_parallel > 1 else Pipeline)(self)
        # MeZO's processes exchange losses only; DDP would reserve memory for gradients.
        self.loss = (
            self.model.loss_sum
            if settings.optimizer == "mezo"
            else averaging_loss(self.model, self.objective, self.processes, self.device)
        )

        # Optimizers.
        self.optimizers = make_optimizers(
            self.model,
            settings,
            fused=self.device.type in ("cuda", "cpu"),
            muon_dtype=torch.bfloat16 if self.precision.dtype == torch.bfloat16 else torch.float32,
            module=self.objective.module,
        )
        if compiled and settings.optimizer == "muon":
            with explain_out_of_memory(self.device):
                compile_muon(self.optimizers, self.processes, self.say)
        self.budget = AdaLoRABudget(self.model, settings) if settings.adalora_rank else None
        self.lr = 0.0  # AdamW's learning rate of the last step

        # What the loop asks and sets.
        self.stop_requested = lambda: False  # whether this process got a signal; all processes stop at the same step
        self.stopped_by = None  # why the run ends early
        self.on_batch = lambda done, count: None  # called after each micro-batch of a step
        self.saved_step = None  # step of the last.pt on disk
        self.saving = None  # a `Saving`, while checkpoints are written
        self.saves_in_background = self.device.type != "cpu"  # a CPU trains with all cores, and in the same memory

        # Where the run begins.
        self.progress.max_iters = planned_steps(self)
        if resumed:
            restore_run(self, resumed)
        else:
            warn_of_few_steps(self)
            torch.manual_seed(self.dropout_seed)
            if self.processes.is_main:
                put_earlier_run_aside(self.out, self.say)
        say_duration(self)
        if self.processes.is_main:
            for unfinished in self.out.glob("*.partial"):  # a save that was killed
                unfinished.unlink(missing_ok=True)

    @property
    def dropout_seed(self):
        """By which dropout differs between processes, and between the layers of a pipeline. Only tensor parallelism
        needs the same of all processes of a group."""
        processes = self.processes
        return (
            self.settings.seed + 1 + (processes.world_rank if self.settings.pipeline_parallel > 1 else processes.rank)
        )

    @property
    def epochs(self):
        """Passes over the rows so far, with the done share of the current one."""
        p = self.progress
        return p.epoch + (p.batch / len(self.data.order.batches(p.epoch)) if p.batch else 0)

    def parameters(self):
        """The parameters of the model and of the module beside it, as a list."""
        return [*self.model.parameters(), *(self.objective.module.parameters() if self.objective.module else ())]

    def zero_grad(self):
        """Free all gradients."""
        for p in self.parameters():
            p.grad = None

    def close(self):
        """Leave the process group. Everything that refers to it is deleted first."""
        self.model = self.objective = self.loss = self.optimizers = None
        self.processes.stop()


def check_settings(settings):
    """Raise UserError for settings that contradict each other. `method=dpo` becomes `objective=dpo`, and so on."""
    if settings.method in SPECIAL:
        settings.objective, settings.method = settings.method, "full"
    if settings.max_iters < 1 and settings.max_epochs <= 0:
        raise UserError("give max_iters (steps) or max_epochs")
    if settings.n_embd % settings.n_head:
        raise UserError(f"n_embd ({settings.n_embd}) must be a multiple of n_head ({settings.n_head})")
    if settings.n_head % (settings.n_kv_head or settings.n_head):
        raise UserError(f"n_head ({settings.n_head}) must be a multiple of n_kv_head ({settings.n_kv_head})")
    if settings.architecture != "gpt2" and settings.bias:
        raise UserError(f"architecture {settings.architecture} has no biases; leave out bias, or take gpt2")
    if settings.architecture != "gpt2" and settings.n_embd // settings.n_head % 2:
        raise UserError(
            f"n_embd / n_head is {settings.n_embd // settings.n_head}; rotary positions need an even number"
        )
    if 0 < settings.batch_tokens < settings.block_size:
        raise UserError(f"batch_tokens ({settings.batch_tokens}) must hold a row of block_size ({settings.block_size})")
    if settings.adalora_rank and (
        settings.method != "lora" or settings.optimizer in LOW_MEMORY_LOSSES or settings.fsdp
    ):
        raise UserError("adalora_rank is for method lora with optimizer muon or adamw, without fsdp")
    if settings.method == "full" and settings.quantize != "none":
        raise UserError(f"quantize {settings.quantize} freezes the base; give a method that trains beside it: lora")
    if settings.fsdp and settings.quantize != "none":
        raise UserError("fsdp does not go with a quantized base, which is small; leave one out")
    if settings.both_ways and settings.objective == "mlm":
        raise UserError("objective mlm attends in both directions by itself; leave out both_ways")
    check_model_parallel(settings)
    if settings.fsdp and settings.dtype == "float16":
        raise UserError("fsdp does not go with float16 and its loss scaler; take --dtype=bfloat16 or float32")


def check_model_parallel(settings):
    """Raise UserError for settings that do not go with tensor_parallel or pipeline_parallel."""
    if settings.tensor_parallel == settings.pipeline_parallel == 1:
        return
    name = "tensor_parallel" if settings.tensor_parallel > 1 else "pipeline_parallel"
    if settings.tensor_parallel > 1 and settings.pipeline_parallel > 1:
        raise UserError("tensor_parallel and pipeline_parallel do not go together; leave one out")
    plain = {
        "method": "full", "quantize": "none", "fsdp": False, "objective": "causal", "stop_at_answered": 0.0,
    }  # fmt: skip
    for other, value in plain.items():
        if getattr(settings, other) != value:
            raise UserError(f"{name} does not go with {other}={getattr(settings, other)}; leave one of them out")
    if name == "pipeline_parallel" and settings.replay_share:
        raise UserError(
            "pipeline_parallel does not go with replay_share, whose batches have other shapes; leave it out"
        )
    if name == "pipeline_parallel" and settings.compile == "on":
        raise UserError("the stages of pipeline_parallel are not compiled; leave out compile=on")
    if settings.optimizer in LOW_MEMORY_LOSSES:
        raise UserError(f"{name} does not go with optimizer {settings.optimizer}; take muon or adamw")
    if settings.dtype == "float16":
        raise UserError(f"{name} does not go with float16 and its loss scaler; take --dtype=bfloat16 or float32")


def replay_folder(settings):
    """The folder of the pretraining rows that replay_share mixes in: replay_dir, or that of the base's training.

    Raises UserError where there is no base, where its file does not say the folder, or for another objective.
    """
    if settings.objective != "causal":
        raise UserError(f"replay_share is for objective causal, and this is {settings.objective}; leave it out")
    if settings.replay_dir:
        return settings.replay_dir
    if settings.init_from == "scratch":
        raise UserError("replay_share is for fine-tuning; name a base with --init_from=, or leave it out")
    resume = settings.init_from == "resume"
    content = newest_intact(settings.out_dir) if resume else load_checkpoint(settings.init_from, mmap=True)
    folder = content["settings"].get("replay_dir" if resume else "data_dir")
    if not folder:
        raise UserError(f"{settings.init_from} does not say what it was trained on; name the rows with --replay_dir=")
    return folder


def make_model(settings, data):
    """(model, base, checkpoint's dict) by the setting init_from. base: {"path", "sha256"} of what an adapter stands on,
    else None; the dict: of the run that is resumed, else None."""
    if settings.method == "head" and "task" not in data.meta:
        raise UserError(f"method head is for tasks, and {settings.data_dir} holds no task; see data/prepare_task.py")
    if settings.init_from == "scratch":
        return new_model(settings, data), None, None

    # From a checkpoint, which must fit the data. The settings are made to say its shape.
    resume = settings.init_from == "resume"
    path = Path(settings.out_dir) / LAST if resume else settings.init_from
    content = newest_intact(settings.out_dir) if resume else load_checkpoint(path)
    check_fits_rows(content, path, settings, data.meta)
    args = content["model_args"]
    args |= {"dropout": settings.dropout, "causal": is_causal(settings, data.meta, args), "n_labels": n_labels(data)}
    config = GPTConfig(**args)
    for name in SHAPE:
        setattr(settings, name, getattr(config, name))
    if not resume:
        return *tuned_model(content, path, settings, data), None
    model, _ = load_model(content, base=settings.base)
    base = content.get("base")
    if base and settings.base:
        base = {**base, "path": settings.base}
    settings.init_from = content["settings"]["init_from"]
    return model, base, content


def n_labels(data):
    """Number of labels of a `TrainingData`'s task; 0 where its rows are texts."""
    return len(data.meta["task"]["labels"]) if "task" in data.meta else 0


def new_model(settings, data):
    """A GPT of random weights, by the settings."""
    if settings.method != "full":
        raise UserError(f"method {settings.method} tunes a model that is there: name it with --init_from=")
    padded = -(-data.tokenizer.n_vocab // 64) * 64
    vocab_size = settings.vocab_size or padded
    if vocab_size < data.tokenizer.n_vocab:
        raise UserError(f"vocab_size is {vocab_size}, tokenizer {data.tokenizer.name} has {data.tokenizer.n_vocab} ids")
    shape = {name: getattr(settings, name) for name in (*SHAPE, "block_size", "dropout")}
    causal = is_causal(settings, data.meta, {})
    return GPT(GPTConfig(**{**shape, "vocab_size": vocab_size, "causal": causal, "n_labels": n_labels(data)}))


def check_fits_rows(content, path, settings, meta):
    """Raise UserError unless a run can start, or resume, from a checkpoint's dict with rows of meta.json `meta`."""
    check_tokenizer(settings.data_dir, meta, content["tokenizer"], f"the tokenizer of {path}")
    if settings.init_from == "resume":
        check_resumable(content, path, settings, meta["stage"])
    elif "adapter" in content:
        raise UserError(f"{path} is an adapter's file; merge it with its base first: python export.py --format=ckpt")
    elif "task" in content and "task" not in meta:
        labels = len(content["task"]["labels"])
        raise UserError(f"{path} tells {labels} labels apart and writes no text; take the model that it began as")
    block_size = content["model_args"]["block_size"]
    if block_size < settings.block_size:
        raise UserError(
            f"block_size is {settings.block_size}, but the checkpoint {path} has {block_size}; prepare with that"
        )


def tuned_model(content, path, settings, data):
    """(model, base) that a tuning begins with, from a checkpoint's dict; base: as in `make_model`."""
    base = None if settings.method == "full" else {"path": str(path), "sha256": weights_hash(content)}
    # A task's output layer is new, unless the checkpoint has been trained for the same task.
    if n_labels(data) and content.get("task") != data.meta["task"]:
        content["model"]["lm_head.weight"] = new_output_layer(GPTConfig(**content["model_args"]))
    model, tokenizer = load_model(content)
    if base:
        attach_adapter(model, adapting_of(settings), tokenizer)
        if model.virtual is not None:
            check_room(settings.virtual_tokens, model.config.block_size, data.longest_input(), settings.data_dir)
    return model, base


def load_start(settings, base, device):
    """The GPT that a tuning began with, from its checkpoint: frozen, in eval mode. base: as in `make_model`."""
    path = base["path"] if base else settings.init_from
    model, _ = load_model(load_checkpoint(path), device)
    return model.requires_grad_(False)


def is_causal(settings, meta, args):
    """Whether a model attends to earlier tokens only, by the rows' stage. args: the checkpoint's `model_args`."""
    if meta["stage"] == "task":
        return args.get("causal", True) and not settings.both_ways
    return meta["stage"] != "mlm"


def choose_run_precision(run, resumed, positions):
    """The `Precision` of a `TrainingRun`. A resumed run computes as before, so that it has the same numbers.

    resumed: the checkpoint's dict or None; positions: T of a typical micro-batch, for timing.
    """
    before = resumed and Precision.from_dict(resumed["precision"], run.device)
    divided = run.sharded or run.processes.parts > 1
    if before and divided and before.dtype == torch.float16:
        before = None  # float16's scaler does not work with divided weights
    if before and run.settings.dtype == "auto":
        return before
    unscaled = divided or run.settings.optimizer == "lomo"  # float16 and its loss scaler are left out
    if unscaled and run.settings.dtype == "auto" and run.device.type == "cuda":
        name, _ = dtype_by_device(run.device) or ("float32", "")
        return Precision(DTYPES[name], why=f"what {'a divided model' if divided else 'lomo'} can use here")
    return choose_precision(run.settings.dtype, run.device, run.model, positions, run.say)


def parallel_text(run):
    """How the processes of a `TrainingRun` share its work, such as "2 tensor-parallel parts x 4 DDP"."""
    settings, processes, kinds = run.settings, run.processes, []
    for name, parts in (("tensor", settings.tensor_parallel), ("pipeline", settings.pipeline_parallel)):
        if parts > 1:
            kinds.append(f"{parts} {name}-parallel parts")
    data = "FSDP2" if run.sharded else "DDP"
    return " x ".join([*kinds, *([f"{processes.count} {data}" if kinds else data] if processes.count > 1 else [])])


def speed_text(run, compiled, why):
    """The line that says what the run computes with. compiled, why: as `compile_trunk` returns them."""
    processes = ""
    if run.processes.world_count > 1:
        processes = f" x {run.processes.world_count} processes ({parallel_text(run)})"
    trained = ""
    if run.base:
        n = sum(p.numel() for p in trained_parameters(run.model).values())
        trained = f", of which {n:,} train"
    quantized = quantized_weights(run.model)
    if quantized:
        in_float32 = 4 * quantized + sum(p.nbytes for p in run.model.parameters())
        trained += f"; weights take {weight_bytes(run.model) / 1e6:,.1f} MB, in float32 {in_float32 / 1e6:,.1f}"
    return (
        f"number of parameters: {(run.model.num_params() + quantized) / 1e6:.2f}M{trained}; {run.device}{processes}, "
        f"{precision_text(run.precision)} ({run.precision.why}), compile {compiled} ({why})"
    )


def planned_steps(run):
    """Optimizer steps of the whole run, by max_epochs or max_iters."""
    settings, data = run.settings, run.data
    if settings.max_epochs <= 0:
        return settings.max_iters
    if settings.max_epochs * len(data.train) > SLOW_COUNT_ROWS:
        run.say(f"counting the batches of {settings.max_epochs:g} epochs …")
    return math.ceil(data.order.count(settings.max_epochs) / data.batches_a_step)


def put_earlier_run_aside(out, say):
    """Move an earlier run's files to a folder old, old-2, … within its folder; nothing is ever deleted."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [*out.glob("*.pt"), *out.glob(LOG), *out.glob(ANSWERS_LOG)]
        if files:
            numbered = (out / f"old-{number}" for number in itertools.count(2))
            old = next(path for path in itertools.chain([out / "old"], numbered) if not path.exists())
            old.mkdir()
            say(f"note: the run that was in {out} is now in {old} (--init_from=resume goes on with a run)")
            for file in files:
                replace_file(file, old / file.name)
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out_dir") from None


def warn_of_few_steps(run):
    """Warn where max_epochs over few rows makes so few steps that little is learned."""
    settings, steps = run.settings, run.progress.max_iters
    if settings.max_epochs > 0 and steps < FEW_STEPS:
        size = "batch_tokens" if settings.batch_tokens else "batch_size"
        lower = f"lower {size} ({getattr(settings, size)})"
        if settings.gradient_accumulation_steps > 1:
            lower += f" and gradient_accumulation_steps ({settings.gradient_accumulation_steps})"
        run.say(
            f"warning: {len(run.data.train):,} rows and max_epochs={settings.max_epochs:g} make {steps} "
            f"optimizer steps, in which little is learned; {lower}, or raise max_epochs"
        )


def say_duration(run):
    """Say how long a step and the run take, where a step takes long, by the speed of the block that was timed."""
    flops, p = run.precision.flops, run.progress
    if not flops:
        return
    rows = run.data.typical_step((p.epoch, p.batch))
    seconds = run.model.training_flops(rows.tokens, rows.tokens, rows.squares) / flops / run.processes.world_count
    if seconds > LONG_STEP_SECONDS:
        hours = seconds * (p.max_iters - p.step) / 3600
        run.say(f"a step takes about {seconds:.0f} s here (estimated from one block), the whole run {hours:.1f} hours")
