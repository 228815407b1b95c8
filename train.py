"""Train a GPT: pretraining and fine-tuning, one process, one device.

    python train.py config/train_config.py                        # pretrain the 124M model
    python train.py config/train_config.py --init_from=resume     # go on after a stop
    python train.py config/train_config_sft.py                    # fine-tune its best checkpoint

Which of the two it is, the data says: rows made by data/prepare.py have a loss on every token, rows
made by data/prepare_sft.py on the answers only. Ctrl-C saves and stops. `--help` lists the settings.
"""

import dataclasses
import json
import math
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import BEST, LAST, PREVIOUS, load_checkpoint, load_model, newest_intact, save_checkpoint
from configurator import load_settings
from data_utils import RowOrder, check_table, load_table, make_batch, open_rows, row_lengths
from device import Precision, pick_device, pick_precision, should_compile, show
from errors import UserError, run_script
from files import replace_file, write_atomic
from generation import SamplingParams, TextGenerator
from metrics import likelihood
from model import GPT, GPTConfig
from optim import lr_scale, make_optimizers, set_learning_rate

SAMPLE = SamplingParams(temperature=0.0, max_new_tokens=40)
LOG = "log.jsonl"
SAMPLE_PROMPT_TOKENS = 8
TIMED_TOKENS = 1024  # in a step that is only timed
WARM_STEPS, PACE_STEPS = 5, 20  # steps that are not timed, and then between fittings into max_seconds


@dataclasses.dataclass
class Progress:
    """How far a run has come; travels in its checkpoints."""

    step: int = 0
    rows_drawn: int = 0
    tokens: int = 0  # real tokens drawn, PAD left out
    seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    checks_without_best: int = 0
    max_iters: int = 0  # steps of the whole run, once they are known


class Data:
    """The parts of a data folder, and the rows of each step."""

    def __init__(self, settings):
        self.train, self.meta = open_rows(settings.data_dir, "train", settings.block_size)
        self.val, _ = open_rows(settings.data_dir, "val", settings.block_size)
        if settings.eval_iters:
            few = min(len(self.val), settings.eval_iters * settings.batch_size)
            self.val = self.val[np.linspace(0, len(self.val) - 1, few).astype(int)]  # spread over all sources
        self.tokenizer = load_table(settings.data_dir, self.meta)
        lengths = row_lengths(self.train, self.meta["special_ids"]["pad"])
        self.order = RowOrder(len(self.train), settings.sampling, settings.seed, lengths, settings.batch_size)
        self.batch_size, self.accumulation = settings.batch_size, settings.gradient_accumulation_steps
        self.train_on_eot = settings.train_on_eot
        self.rows_a_step = self.batch_size * self.accumulation

    def micro_batches(self, rows_drawn):
        """List of (x, y, loss_mask) of one step, and the real tokens in them."""
        rows = self.train[self.order.take(rows_drawn, self.rows_a_step)]
        tokens = int((rows != self.meta["special_ids"]["pad"]).sum())
        return [make_batch(part, self.meta, self.train_on_eot) for part in np.split(rows, self.accumulation)], tokens


def check_settings(settings):
    """Raise UserError for settings that no run can have together."""
    if settings.max_iters < 1 and settings.max_epochs <= 0:
        raise UserError("give max_iters (steps) or max_epochs")
    if settings.n_embd % settings.n_head:
        raise UserError(f"n_embd ({settings.n_embd}) must be a multiple of n_head ({settings.n_head})")


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
    check_table(settings.data_dir, data.meta, content["tokenizer"], f"the table of {path}")
    if resume and content["stage"] != data.meta["stage"]:
        raise UserError(f"{path} is a {content['stage']} run, {settings.data_dir} holds {data.meta['stage']} data")
    block_size = content["model_args"]["block_size"]
    if block_size < settings.block_size:
        raise UserError(
            f"block_size is {settings.block_size}, but the checkpoint {path} has {block_size}; prepare with that"
        )
    content["model_args"]["dropout"] = settings.dropout
    for name in ("n_layer", "n_head", "n_embd", "bias", "vocab_size"):  # the checkpoint's shape is the run's
        setattr(settings, name, content["model_args"][name])
    for name in ("seed", "batch_size", "sampling") if resume else ():
        before, now = content["settings"][name], getattr(settings, name)
        if before != now:
            print(f"note: {name} was {before!r} and is {now!r}, so the rows come in another order from here on")
    model, _ = load_model(content)
    return model, content if resume else None


class Trainer:
    """One run: model, data, optimizers, and where it stands."""

    def __init__(self, settings):
        check_settings(settings)
        self.settings, self.data, self.progress = settings, Data(settings), Progress()
        torch.manual_seed(settings.seed)
        self.device = pick_device(settings.device)
        torch.set_float32_matmul_precision("high")  # TF32 where the card has it
        self.model, resumed = make_model(settings, self.data)
        self.model.to(self.device)
        self.progress.max_iters = settings.max_iters
        if settings.max_epochs > 0:
            self.progress.max_iters = math.ceil(settings.max_epochs * len(self.data.train) / self.data.rows_a_step)
        self.out = Path(settings.out_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        self.pick_speed(resumed)
        fused = self.device.type in ("cuda", "cpu")
        muon_dtype = torch.bfloat16 if self.precision.dtype == torch.bfloat16 else torch.float32
        self.optimizers = make_optimizers(self.model, settings, fused, muon_dtype)
        if resumed:
            self.restore(resumed)
        else:
            torch.manual_seed(settings.seed + 1)  # timing drew from the generators
            self.put_aside()
        self.loss_sum, self.loss_tokens = 0.0, 0  # since the last line of the log
        self.stopped_by = None

    def put_aside(self):
        """Move an earlier run's files to old/ in the run's folder, where they stay until the next time."""
        files, old = [*self.out.glob("*.pt"), *self.out.glob(LOG)], self.out / "old"
        if files:
            print(f"note: the run that was in {self.out} is now in {old} (--init_from=resume would go on with it)")
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
            for file in files:
                replace_file(file, old / file.name)

    def pick_speed(self, resumed):
        """Choose compute type and compiling, and say why; a resumed run computes as it did, for the same numbers."""

        def step(precision):
            self.precision = precision
            self.model.use_plain_attention(precision.plain_attention)
            x, y, mask = batches[0]
            few = max(1, TIMED_TOKENS // x.shape[1])
            self.backward((x[:few], y[:few], mask[:few]), 1)
            self.model.zero_grad(set_to_none=True)

        batches, _ = self.data.micro_batches(0)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        before = resumed and Precision.from_dict(resumed["precision"], self.device)
        if before and self.settings.dtype == "auto":
            self.precision = before
        else:
            self.precision = pick_precision(self.settings.dtype, self.device, step)
        self.model.use_plain_attention(self.precision.plain_attention)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.dtype == torch.float16)
        compiling, why = should_compile(self.settings.compile, self.device)
        if compiling:  # the trunk only: how many positions have a loss differs by batch
            self.model.trunk = torch.compile(self.model.hidden, dynamic=True)
            try:
                step(self.precision)
            except Exception as error:  # compilers fail in many ways, and training goes on without
                self.model.trunk = self.model.hidden
                compiling, why = False, f"it failed: {type(error).__name__}"
        parameters = f"number of parameters: {self.model.num_params() / 1e6:.2f}M"
        print(
            f"{parameters}; {self.device}, {show(self.precision)} ({self.precision.why}), compile {compiling} ({why})"
        )

    def restore(self, content):
        """Go on where the checkpoint stood: optimizers, random state, counters; the log is cut back to it."""
        planned = self.progress.max_iters
        self.progress = Progress(**content["progress"])
        if not self.settings.max_seconds:  # else the run stays as short as it was made
            self.progress.max_iters = planned
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            given = [{key: group[key] for key in ("peak_lr", "weight_decay")} for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, values in zip(optimizer.param_groups, given, strict=True):
                group.update(values)  # a rate that the user changes for the rest of the run counts
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in content["random"]:
            torch.cuda.set_rng_state(content["random"]["cuda"], self.device)
        log = self.out / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.progress.step]
        write_atomic(log, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
        print(f"going on at step {self.progress.step} of {self.progress.max_iters}")

    @property
    def epoch(self):
        """Passes over the rows, by the rows really drawn."""
        return self.progress.rows_drawn / len(self.data.train)

    def backward(self, batch, n_kept):
        """Add the gradient of one micro-batch, whose loss is its sum over the step's kept tokens; returns the sum."""
        if self.device.type == "cuda":
            batch = [t.pin_memory() for t in batch]
        x, y, mask = (t.to(self.device, non_blocking=self.device.type == "cuda") for t in batch)
        with self.precision.context(self.device):
            loss_sum = self.model.loss_sum(x, y, mask)
        self.scaler.scale(loss_sum / n_kept).backward()
        return loss_sum.detach()

    def step(self):
        """One optimizer step over batch_size x gradient_accumulation_steps rows."""
        settings, progress = self.settings, self.progress
        scale = lr_scale(progress.step, self.progress.max_iters, settings)
        set_learning_rate(self.optimizers, scale)
        self.lr = scale * settings.learning_rate
        batches, tokens = self.data.micro_batches(progress.rows_drawn)
        n_kept = int(sum(mask.sum() for _, _, mask in batches))
        for batch in batches:
            self.loss_sum = self.loss_sum + self.backward(batch, max(1, n_kept))
        self.loss_tokens += n_kept
        self.take_step()
        progress.step += 1
        progress.rows_drawn += self.data.rows_a_step
        progress.tokens += tokens

    def take_step(self):
        """Clip the gradients and let the optimizers use them."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip or math.inf)
        # In float16 an overflow in one optimizer's gradients makes the clipped ones of the other useless too.
        if not self.scaler.is_enabled() or torch.isfinite(norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)

    def validate(self):
        """Nats a token over the validation part."""
        result = likelihood(
            self.model, self.data.val, self.data.meta, self.settings.batch_size,
            precision=self.precision, train_on_eot=self.settings.train_on_eot,
        )  # fmt: skip
        self.model.train()
        return result.loss

    def sample(self):
        """A line of text that the model makes now, from sample_prompt or a validation row's start."""
        data, prompt = self.data, self.settings.sample_prompt
        if not prompt:
            row = data.val[0][:SAMPLE_PROMPT_TOKENS].tolist()
            if data.meta["stage"] == "sft":
                whole = data.val[0].tolist()
                row = whole[: whole.index(data.tokenizer.answer_id)]
            prompt = data.tokenizer.decode(row)
        self.model.eval()
        text = "".join(TextGenerator(self.model, data.tokenizer, data.meta["stage"]).stream(prompt, SAMPLE))
        self.model.train()
        return f"{prompt} → {text}".replace("\n", " ")

    def log(self, val_loss=None):
        """Append a line to log.jsonl; returns the mean training loss since the last one."""
        p, mean = self.progress, float(self.loss_sum) / max(1, self.loss_tokens)
        self.loss_sum, self.loss_tokens = 0.0, 0
        line = {
            "step": p.step, "epoch": round(self.epoch, 4), "train_loss": mean, "val_loss": val_loss,
            "lr": self.lr, "tokens": p.tokens, "seconds": round(p.seconds, 2),
        }  # fmt: skip
        with open(self.out / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return mean

    def save(self, name, resumable=False, previous=None):
        """Write a checkpoint under the run's folder; `previous` is the name that an older one of that name gets."""
        state = {}
        if resumable:
            optimizers = [o.state_dict() for o in self.optimizers]
            generators = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                generators["cuda"] = torch.cuda.get_rng_state(self.device)
            state = {"optimizers": optimizers, "scaler": self.scaler.state_dict(), "random": generators}
            state["precision"] = self.precision.to_dict(self.device)
        progress = dataclasses.asdict(self.progress)
        stage, tokenizer = self.data.meta["stage"], self.data.tokenizer
        save_checkpoint(self.out / name, self.model, self.settings, stage, tokenizer, progress, previous, **state)

    def save_last(self):
        """Write last.pt, keeping the one before it."""
        self.save(LAST, resumable=True, previous=PREVIOUS)

    def check(self, bar):
        """Validate, log, show a sample, and save; sets stopped_by when patience is at its end."""
        p, settings = self.progress, self.settings
        val_loss = self.validate()
        train_loss = self.log(val_loss)
        best = val_loss < p.best_val_loss
        p.checks_without_best = 0 if best else p.checks_without_best + 1
        mark = "  best" if best else ""
        bar.write(
            f"step {p.step}, epoch {self.epoch:.2f}: train {train_loss:.4f}, val {val_loss:.4f}{mark} | {self.sample()}"
        )
        if best:
            p.best_val_loss, p.best_step = val_loss, p.step
        try:
            if best:
                self.save(BEST)
            if settings.keep_every and p.step % settings.keep_every == 0:
                self.save(f"step_{p.step:06d}.pt")
            self.save_last()
        except UserError as error:
            if p.step >= p.max_iters:
                raise
            bar.write(f"warning: {error}; training goes on and saves again at the next validation")
        if settings.patience and p.checks_without_best >= settings.patience:
            self.stopped_by = f"no better validation loss in {settings.patience} checks"

    def fit_into_time(self, bar, pace, planned):
        """Give the run, and its schedule, as many of the planned steps as fit max_seconds at `pace` seconds a step."""
        p, seconds = self.progress, self.settings.max_seconds
        fits = min(planned, p.step + max(1, int((seconds - p.seconds) / pace)))
        if fits < planned == p.max_iters:
            bar.write(f"about {fits} of {planned} steps fit max_seconds={seconds:.0f}: shortened to that")
        p.max_iters = bar.total = fits

    def run(self):
        """Train to the end, to patience's end, or to Ctrl-C; returns why it stopped early, or None."""
        p, settings = self.progress, self.settings
        self.model.train()
        before, started, first_tokens, first_step = p.seconds, time.perf_counter(), p.tokens, p.step
        planned = p.max_iters
        with tqdm(total=p.max_iters, initial=p.step, unit="step", desc="train", smoothing=0.05) as bar:
            while p.step < p.max_iters and not self.stopped_by:
                self.step()
                elapsed = time.perf_counter() - started
                p.seconds = before + elapsed
                if p.step == first_step + WARM_STEPS:
                    warm = elapsed
                timed = p.step - first_step - WARM_STEPS
                if settings.max_seconds and timed > 0 and timed % PACE_STEPS == 0 and p.step < p.max_iters:
                    self.fit_into_time(bar, (elapsed - warm) / timed, planned)
                bar.update(1)
                last = p.step == p.max_iters
                if p.step % settings.eval_interval == 0 or last:
                    self.check(bar)
                elif p.step % settings.log_interval == 0:
                    loss = self.log()
                    rate = (p.tokens - first_tokens) / elapsed
                    bar.set_postfix_str(f"epoch {self.epoch:.2f}, loss {loss:.3f}, {rate:,.0f} tokens/s")
        return self.stopped_by


def stop_on_signal(trainer):
    """Let the first Ctrl-C (or SIGTERM) end the run after its step; the second ends it at once."""

    def handler(number, frame):
        if trainer.stopped_by:
            raise KeyboardInterrupt
        trainer.stopped_by = "interrupted"

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def main():
    settings = load_settings("train")
    trainer = Trainer(settings)
    stop_on_signal(trainer)
    why = trainer.run()
    if why == "interrupted":
        trainer.save_last()
        arguments = shlex.join([a for a in sys.argv[1:] if not a.startswith("--init_from")] + ["--init_from=resume"])
        print(f"stopped at step {trainer.progress.step} and saved; go on with: python train.py {arguments}")
        raise SystemExit(130)
    p = trainer.progress
    print(
        f"{why or 'done'} at step {p.step}, epoch {trainer.epoch:.2f}, {p.seconds:.0f} s; "
        f"best validation loss {p.best_val_loss:.4f} (step {p.best_step}): {trainer.out / BEST}"
    )


if __name__ == "__main__":
    run_script(main)
