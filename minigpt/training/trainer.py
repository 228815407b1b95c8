"""One training run: model, data, optimizers, and where it stands; a step at a time.

`train.py` and `bench.py` drive it. Several processes (torchrun) share a run, which learns what one process
would: a step's loss is the sum over its kept tokens, divided by the kept tokens of all processes.
"""

import contextlib
import dataclasses
import itertools
import math
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from data_utils import TrainingData, check_tokenizer
from minigpt.checkpoint import LAST, load_checkpoint, load_model, newest_intact, save_checkpoint
from minigpt.common.errors import UserError
from minigpt.common.files import replace_file
from minigpt.device import (
    Precision,
    out_of_memory_is_said,
    pick_device,
    pick_precision,
    should_compile,
    show,
    use_deterministic_algorithms,
)
from minigpt.inference.engine import TextGenerator
from minigpt.inference.likelihood import likelihood
from minigpt.inference.params import SamplingParams
from minigpt.run_log import LOG, cut_log
from minigpt.training.compiling import CompiledTrunk
from minigpt.training.distributed import (
    averaging_loss,
    exchange_gradients,
    local_part,
    shard,
    shard_state,
    start_processes,
    whole,
)
from minigpt.training.optim import lr_scale, make_optimizers, set_learning_rate
from model import GPT, GPTConfig

SAMPLE = SamplingParams(temperature=0.0, max_new_tokens=40)
SAMPLE_PROMPT_TOKENS = 8
TRIAL_TOKENS = 1024  # in the batch that compiled code is tried on
FEW_STEPS = 100  # of a run from which little can be expected
LONG_STEP_SECONDS = 10
MANY_ROWS = 2_000_000  # whose order takes more than a moment to draw


@dataclasses.dataclass
class Progress:
    """How far a run has come; travels in its checkpoints."""

    step: int = 0
    epoch: int = 0  # the epoch in hand, and its next batch
    batch: int = 0
    epoch_batches: int = 0  # in the epoch in hand
    tokens: int = 0  # real tokens drawn, PAD left out
    seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    checks_without_best: int = 0
    max_iters: int = 0  # steps of the whole run, once they are known
    loss_sum: float = 0.0  # since the last line of the log
    loss_tokens: int = 0
    last_losses: tuple = (math.inf, math.inf)  # training and validation loss of the last check
    checks_overfitting: int = 0  # since the best one, that showed over-fitting
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0


def check_settings(settings):
    """Raise UserError for settings that no run can have together."""
    if settings.max_iters < 1 and settings.max_epochs <= 0:
        raise UserError("give max_iters (steps) or max_epochs")
    if not settings.batch_size:
        raise UserError("batch_size is 0; it must be at least 1 in training")
    if settings.n_embd % settings.n_head:
        raise UserError(f"n_embd ({settings.n_embd}) must be a multiple of n_head ({settings.n_head})")
    if 0 < settings.batch_tokens < settings.block_size:
        raise UserError(f"batch_tokens ({settings.batch_tokens}) must hold a row of block_size ({settings.block_size})")
    if not 0 <= settings.stop_at_answered <= 1:
        raise UserError(f"stop_at_answered is a share from 0 to 1, not {settings.stop_at_answered}")
    if settings.fsdp and settings.dtype == "float16":
        raise UserError("fsdp does not go with float16 and its loss scaler; take --dtype=bfloat16 or float32")


def check_resumed(content, path, settings, stage):
    """Raise UserError unless a run can go on with a checkpoint's dict."""
    if content["stage"] != stage:
        raise UserError(f"{path} is a {content['stage']} run, {settings.data_dir} holds {stage} data")
    known = {f.name for f in dataclasses.fields(Progress)}
    if "optimizers" not in content or not set(content["progress"]) <= known:
        raise UserError(f"{path} is not a last.pt of this version: start from it with --init_from={path}")
    before = content["settings"]["optimizer"]
    if before != settings.optimizer:
        raise UserError(f"{path} was trained with optimizer={before}, whose state {settings.optimizer} cannot use")


def make_model(settings, data):
    """(model, checkpoint's dict or None) by init_from."""
    if settings.init_from == "scratch":
        padded = -(-data.tokenizer.n_vocab // 64) * 64
        vocab_size = settings.vocab_size or padded
        if vocab_size < data.tokenizer.n_vocab:
            raise UserError(
                f"vocab_size is {vocab_size}, tokenizer {data.tokenizer.name} has {data.tokenizer.n_vocab} ids"
            )
        names = [f.name for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"]
        return GPT(GPTConfig(vocab_size=vocab_size, **{n: getattr(settings, n) for n in names})), None
    resume = settings.init_from == "resume"
    path = Path(settings.out_dir) / LAST if resume else settings.init_from
    content = newest_intact(settings.out_dir) if resume else load_checkpoint(path)
    check_tokenizer(settings.data_dir, data.meta, content["tokenizer"], f"the tokenizer of {path}")
    if resume:
        check_resumed(content, path, settings, data.meta["stage"])
    block_size = content["model_args"]["block_size"]
    if block_size < settings.block_size:
        raise UserError(
            f"block_size is {settings.block_size}, but the checkpoint {path} has {block_size}; prepare with that"
        )
    content["model_args"]["dropout"] = settings.dropout
    for name in ("n_layer", "n_head", "n_embd", "bias", "vocab_size"):  # the checkpoint's shape is the run's
        setattr(settings, name, content["model_args"][name])
    if resume:  # what the run began from is still that
        settings.init_from = content["settings"]["init_from"]
    model, _ = load_model(content)
    return model, content if resume else None


class Trainer:
    """One run: model, data, optimizers, and where it stands.

    say(text) prints a line; only the main of several processes does.
    """

    def __init__(self, settings, say=print):
        check_settings(settings)
        if settings.deterministic:
            use_deterministic_algorithms()
        self.settings, self.progress = settings, Progress()
        self.processes = start_processes(settings.device)
        self.say = say if self.processes.is_main else lambda text: None
        self.sharded = settings.fsdp and self.processes.count > 1
        self.device = pick_device(settings.device, self.processes.local_rank if self.processes.count > 1 else None)
        place = self.processes.rank, self.processes.count
        self.data = TrainingData(settings, *place, pinned=self.device.type == "cuda")
        if settings.stop_at_answered and self.data.meta["stage"] != "sft":
            raise UserError(
                f"stop_at_answered is {settings.stop_at_answered}, but {settings.data_dir} holds articles, not "
                "questions; it is for fine-tuning, leave it out here"
            )
        self.say(f"{len(self.data.train):,} rows for training, {len(self.data.val):,} for validation")
        torch.set_float32_matmul_precision("high")  # TF32 where the card has it
        torch.manual_seed(settings.seed)
        self.model, resumed = make_model(settings, self.data)
        if not self.sharded:  # a model that is too large for one card goes there in shards only
            with out_of_memory_is_said(self.device):
                self.model.to(self.device)
        self.model.train()
        self.out = Path(settings.out_dir)
        self.pick_speed(resumed)
        if self.sharded:
            shard(self.model, self.device)
        self.loss = averaging_loss(self.model, self.processes, self.device)
        fused = self.device.type in ("cuda", "cpu")
        muon_dtype = torch.bfloat16 if self.precision.dtype == torch.bfloat16 else torch.float32
        self.optimizers = make_optimizers(self.model, settings, fused, muon_dtype)
        self.progress.max_iters = self.planned_steps()
        if resumed:
            self.restore(resumed)
        else:
            self.warn_of_few_steps()
            torch.manual_seed(settings.seed + 1 + self.processes.rank)  # dropout differs between processes
            if self.processes.is_main:
                self.put_aside()
        self.say_duration()
        for left in self.out.glob("*.partial") if self.processes.is_main else ():  # of a save that was killed
            left.unlink(missing_ok=True)
        self.asked_to_stop = lambda: False  # whether a signal came to this process; all stop at the same step
        self.stopped_by = None
        self.on_batch = lambda done, count: None  # called after each micro-batch of a step
        self.saved_step = None  # of the last.pt that is there

    def planned_steps(self):
        """Optimizer steps by max_epochs or max_iters."""
        if self.settings.max_epochs > 0:
            if self.settings.max_epochs * len(self.data.train) > MANY_ROWS:
                self.say(f"counting the batches of {self.settings.max_epochs:g} epochs …")
            return math.ceil(self.data.order.count(self.settings.max_epochs) / self.data.batches_a_step)
        return self.settings.max_iters

    def put_aside(self):
        """Move an earlier run's files to a folder old, old-2, … in the run's folder; nothing is ever deleted."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            files = [*self.out.glob("*.pt"), *self.out.glob(LOG)]
            if files:
                numbered = (self.out / f"old-{number}" for number in itertools.count(2))
                old = next(path for path in itertools.chain([self.out / "old"], numbered) if not path.exists())
                old.mkdir()
                self.say(
                    f"note: the run that was in {self.out} is now in {old} (--init_from=resume goes on with a run)"
                )
                for file in files:
                    replace_file(file, old / file.name)
        except OSError as error:
            raise UserError(f"{self.out} cannot be written to ({error.strerror}); give another --out_dir") from None

    def warn_of_few_steps(self):
        """Say it where max_epochs over so few rows makes so few steps that little can be learned."""
        p, settings = self.progress, self.settings
        if settings.max_epochs > 0 and p.max_iters < FEW_STEPS:
            size = "batch_tokens" if settings.batch_tokens else "batch_size"
            lower = f"lower {size} ({getattr(settings, size)})"
            if settings.gradient_accumulation_steps > 1:
                lower += f" and gradient_accumulation_steps ({settings.gradient_accumulation_steps})"
            self.say(
                f"warning: {len(self.data.train):,} rows and max_epochs={settings.max_epochs:g} make {p.max_iters} "
                f"optimizer steps, in which little is learned; {lower}, or raise max_epochs"
            )

    def say_duration(self):
        """Say how long a step takes, by the speed of the block that was timed, where that is long."""
        flops, p = self.precision.flops, self.progress
        if not flops:
            return
        rows = self.data.step((p.epoch, p.batch))
        seconds = self.model.training_flops(rows.tokens, rows.tokens, rows.squares) / flops / self.processes.count
        if seconds > LONG_STEP_SECONDS:
            left = seconds * (p.max_iters - p.step) / 3600
            self.say(f"a step takes about {seconds:.0f} s here (by a block's), the whole run {left:.1f} hours")

    def pick_speed(self, resumed):
        """Choose compute type and compiling, and say why; a resumed run computes as it did, for the same numbers."""
        batch, self.loss = self.data.step((0, 0)).batches[0], self.model.loss_sum
        before = resumed and Precision.from_dict(resumed["precision"], self.device)
        if before and self.sharded and before.dtype == torch.float16:
            before = None  # float16's scaler does not go with sharding
        if before and self.settings.dtype == "auto":
            picked = before
        elif self.sharded and self.settings.dtype == "auto" and self.device.type == "cuda":
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            picked = Precision(torch.bfloat16 if bf16 else torch.float32, why="what sharding can use here")
        else:
            picked = pick_precision(self.settings.dtype, self.device, self.model, batch[0].shape[1], self.say)
        self.precision = self.processes.from_main(picked)
        self.model.use_plain_attention(self.precision.plain_attention)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.dtype == torch.float16)
        compiling, why = self.compile(batch)
        several = f" x {self.processes.count} processes ({'FSDP2' if self.sharded else 'DDP'})"
        self.say(
            f"number of parameters: {self.model.num_params() / 1e6:.2f}M; {self.device}"
            f"{several if self.processes.count > 1 else ''}, {show(self.precision)} ({self.precision.why}), "
            f"compile {compiling} ({why})"
        )

    def compile(self, batch):
        """Compile the trunk by the setting, and try it on a part of a batch; returns (whether it is compiled, why)."""
        compiling, why = should_compile(self.settings.compile, self.device)
        if self.sharded and self.settings.compile == "auto":
            compiling, why = False, "the default with fsdp"
        if not compiling:
            return False, why
        # The trunk only: how many positions have a loss differs by batch.
        self.model.trunk = CompiledTrunk(self.model, self.say)
        if not self.sharded:
            # Two rows at least: for one the compiler makes other code than for several, which are what is trained on.
            few = max(2, TRIAL_TOKENS // batch[0].shape[1])
            with out_of_memory_is_said(self.device):
                try:
                    self.backward([t[:few] for t in batch], 1)
                except Exception as error:
                    if not self.model.trunk.gives_up(error):
                        raise
            self.model.zero_grad(set_to_none=True)
        failure = self.model.trunk.failure
        return failure is None, f"it failed: {failure}" if failure else why

    def gives_up_compiling(self, error):
        """Whether an exception may come from compiled code, which is then given up, so that the step can be made again.

        Raises UserError where other processes share the step: they have gone on, and cannot make it again.
        """
        trunk = self.model.trunk
        if not isinstance(trunk, CompiledTrunk) or not trunk.gives_up(error):
            return False
        if self.processes.count > 1:
            raise UserError(f"compiled code failed in the middle of a step ({trunk.failure}); give --compile=off")
        return True

    def restore(self, content):
        """Go on where the checkpoint stood: optimizers, random state, counters; the log is cut back to it."""
        for name in ("seed", "batch_size", "batch_tokens", "gradient_accumulation_steps", "sampling"):
            before, now = content["settings"].get(name), getattr(self.settings, name)
            if before != now:
                self.say(f"note: {name} was {before!r} and is {now!r}, so the rows come in another order from here on")
        planned = self.progress.max_iters
        self.progress = p = Progress(**content["progress"])
        batches = len(self.data.order.batches(p.epoch))
        if p.epoch_batches and batches != p.epoch_batches:  # the same share of the epoch is done
            p.batch = min(batches - 1, round(p.batch / p.epoch_batches * batches))
        if not self.processes.is_main:  # the sum is of all processes, so one goes on with it
            p.loss_sum = 0.0
        lengths = ("max_seconds", "max_iters", "max_epochs")
        if any(content["settings"][name] != getattr(self.settings, name) for name in lengths):
            p.max_iters = planned  # else the run stays as short as max_seconds may have made it
        if p.step > p.max_iters:
            now, before = (
                ", ".join(f"{name}={value(name):g}" for name in lengths)
                for value in (lambda name: getattr(self.settings, name), content["settings"].get)
            )
            raise UserError(
                f"the run in {self.out} is at step {p.step}, and would end at step {p.max_iters} by {now}; it was "
                f"begun with {before}: give that again, or more"
            )
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            kept = ("peak_lr", "weight_decay", "betas")
            given = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
            optimizer.load_state_dict(shard_state(state, optimizer))
            for group, values in zip(optimizer.param_groups, given, strict=True):
                group.update(values)  # a rate that the user changes for the rest of the run counts
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        self.restore_random(content["random"])
        if self.processes.is_main:
            cut_log(self.out, self.progress.step)
        self.saved_step = p.step
        if p.step == p.max_iters:
            self.say(f"the run is at its end, step {p.step}; more max_iters or max_epochs would go on with it")
        else:
            self.say(f"going on at step {p.step} of {p.max_iters}")

    def restore_random(self, by_process):
        """Give the generators their states; where the number of processes is another, ones made from the step."""
        if len(by_process) != self.processes.count:
            torch.manual_seed(self.settings.seed + 1 + self.processes.rank + 1000 * self.progress.step)
        else:
            self.set_random(by_process[self.processes.rank])

    def random_states(self):
        """The states of the generators that a step draws from: {"cpu": …, and the device's}."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type in ("cuda", "mps"):
            states[self.device.type] = getattr(torch, self.device.type).get_rng_state()
        return states

    def set_random(self, states):
        """Give the generators the states that `random_states` gave."""
        torch.set_rng_state(states["cpu"])
        if self.device.type in states and self.device.type != "cpu":
            getattr(torch, self.device.type).set_rng_state(states[self.device.type])

    @property
    def epochs(self):
        """Passes over the rows so far, with the part of the one in hand."""
        p = self.progress
        return p.epoch + (p.batch / len(self.data.order.batches(p.epoch)) if p.batch else 0)

    def backward(self, batch, factor):
        """Add the gradient of a micro-batch's summed loss times a factor; returns the sum."""
        x, y, mask = (t.to(self.device, non_blocking=True) for t in batch)
        with self.precision.context(self.device):
            loss_sum = self.loss(x, y, mask)
        self.scaler.scale(loss_sum * factor).backward()
        return loss_sum.detach()

    def step(self):
        """One optimizer step over gradient_accumulation_steps batches, the processes' together.

        Returns (`StepRows`, targets with a loss, of all processes), or None where a signal came: then everything is
        as it was before the step. Raises UserError where memory runs out.
        """
        p = self.progress
        scale = lr_scale(p.step, p.max_iters, self.settings)
        set_learning_rate(self.optimizers, scale)
        self.lr = scale * self.settings.learning_rate
        rows = self.data.step((p.epoch, p.batch))
        kept, stops = self.processes.total(sum(int(mask.sum()) for _, _, mask in rows.batches), self.asked_to_stop())
        with out_of_memory_is_said(self.device):
            loss_sum = None if stops else self.accumulate(rows.batches, kept)
            if loss_sum is None:
                self.stopped_by = "interrupted"
                return None
            learned = self.update(loss_sum)
        if learned:
            p.loss_sum, p.loss_tokens = p.loss_sum + loss_sum, p.loss_tokens + int(kept)
        p.step += 1
        p.epoch, p.batch = rows.position
        p.tokens += rows.tokens
        return rows, int(kept)

    def accumulate(self, batches, kept):
        """Add up the gradients of a step's batches; returns their summed loss, a scalar tensor.

        batches: list of (x, y, loss_mask), each (B, T); kept: targets with a loss in the whole step, of all processes.
        Returns None where a signal came between two batches: gradients and generators are as before. Several
        processes finish the step, since none can leave the others within it.
        """
        before = self.random_states()

        def undo():
            self.model.zero_grad(set_to_none=True)
            self.set_random(before)

        def add_up():
            total = 0.0
            for i, batch in enumerate(batches, start=1):
                if self.processes.count == 1 and self.asked_to_stop():
                    return undo()
                exchange_gradients(self.model, self.loss, i == len(batches))
                # The processes' gradients are averaged, and the sum is wanted: hence their number.
                total = total + self.backward(batch, self.processes.count / max(1, kept))
                self.on_batch(i, len(batches))
            return total

        try:
            return add_up()
        except Exception as error:
            if not self.gives_up_compiling(error):
                raise
            undo()  # a backward pass that broke off may have left a part of its gradients
            return add_up()

    def update(self, loss_sum):
        """Clip the gradients and take the optimizers' step, unless the loss or a gradient is not finite.

        loss_sum: scalar tensor, the step's summed loss here. A skipped step leaves weights and optimizers as they are.
        Returns whether the step was taken.
        """
        p = self.progress
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip or math.inf)
        norm, loss_sum = (float(t.full_tensor() if isinstance(t, DTensor) else t) for t in (norm, loss_sum))
        (wrong_losses,) = self.processes.total(not math.isfinite(loss_sum))
        finite = math.isfinite(norm) and not wrong_losses
        # In float16 the loss scale is lowered until gradients fit; only one at its lowest tells of the run itself.
        only_overflow = not finite and not wrong_losses and self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if finite:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            p.skipped_in_a_row = 0
        elif not only_overflow:
            p.skipped += 1
            p.skipped_in_a_row += 1
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        return finite

    def train_loss(self):
        """Mean training loss in nats a token since it was last asked for; nan where no step was taken."""
        p = self.progress
        (loss_sum,) = self.processes.total(float(p.loss_sum))
        mean = loss_sum / p.loss_tokens if p.loss_tokens else math.nan
        p.loss_sum, p.loss_tokens = 0.0, 0
        return mean

    def validate(self):
        """Nats a token over the validation part."""
        settings, processes = self.settings, self.processes
        with out_of_memory_is_said(self.device):
            part = likelihood(
                self.model, self.data.val, self.data.meta, settings.batch_size, precision=self.precision,
                train_on_eot=settings.train_on_eot, batch_tokens=settings.batch_tokens,
                rank=processes.rank, count=processes.count,
            )  # fmt: skip
        self.model.train()
        nats, tokens = self.processes.total(part.nats, part.tokens)
        return nats / max(1.0, tokens)

    @contextlib.contextmanager
    def generator(self, max_batch=32):
        """`TextGenerator` of the model as it is now, which is in eval mode meanwhile."""
        self.model.eval()
        generator = TextGenerator(self.model, self.data.tokenizer, self.data.meta["stage"], max_batch)
        if self.sharded:  # all must ask for the same passes, and different GPUs may not round alike
            choose = generator.engine.choose
            generator.engine.choose = lambda *drawn: self.processes.from_main(choose(*drawn))
        try:
            yield generator
        finally:
            self.model.train()

    def sample(self):
        """A line of text that the model makes now, from sample_prompt or a validation row's start."""
        data, prompt = self.data, self.settings.sample_prompt
        if not prompt:
            row = data.val[0][:SAMPLE_PROMPT_TOKENS].tolist()
            if data.meta["stage"] == "sft":
                full = data.val[0].tolist()
                row = full[: full.index(data.tokenizer.answer_id)]
            prompt = data.tokenizer.decode(row)
        with self.generator(max_batch=1) as generator:
            (text,) = generator.generate([prompt], SAMPLE)
        return f"{prompt} → {text}".replace("\n", " ")

    def save(self, name, resumable=False, previous=None):
        """Write a checkpoint under the run's folder; `previous` is the name that an older one of that name gets.

        Raises UserError in every process where the main one cannot write, or a weight is not finite.
        """
        state, failed = {}, None
        p = self.progress
        (wrong,) = self.processes.total(not all(bool(local_part(w).isfinite().all()) for w in self.model.parameters()))
        if wrong:
            raise UserError(f"weights are not finite at step {p.step}, so {self.out / name} was not written")
        p.epoch_batches = len(self.data.order.batches(p.epoch))
        (loss_sum,) = self.processes.total(float(p.loss_sum))
        progress = dataclasses.asdict(dataclasses.replace(p, loss_sum=loss_sum))
        if resumable:
            state = {
                "optimizers": [whole(o.state_dict(), self.processes) for o in self.optimizers],
                "scaler": self.scaler.state_dict(),
                "random": self.processes.gather(self.random_states()),
                "precision": self.precision.to_dict(self.device),
            }
        weights = whole(self.model.state_dict(), self.processes)
        weights["wte.weight"] = weights["lm_head.weight"]  # one table, which gathering made two of
        if self.processes.is_main:
            about = self.model.config, self.settings, self.data.meta["stage"], self.data.tokenizer, progress
            try:
                save_checkpoint(self.out / name, weights, *about, previous, **state)
            except UserError as error:
                failed = str(error)
        if failed := self.processes.from_main(failed):
            raise UserError(failed)
        if name == LAST:
            self.saved_step = p.step

    def close(self):
        """Leave the process group, with everything that holds on to it let go first."""
        self.model = self.loss = self.optimizers = None
        self.processes.stop()
