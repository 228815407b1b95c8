"""train.py: what a run writes, that it goes on exactly, and when it stops."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from corpora import ROOT
from runs import TINY, log_of, write_stages
from tiny import ARCHITECTURE_FIELDS

import train
from data_utils import loss_mask
from minigpt.checkpoint import load_checkpoint, load_model
from minigpt.common.errors import UserError
from minigpt.run_log import RunLog, overfitting
from minigpt.settings.stages import TrainSettings
from minigpt.training import monitor, state
from minigpt.training.distributed import full_values
from minigpt.training.monitor import Monitor
from minigpt.training.setup import TrainingRun
from minigpt.training.state import save_run
from minigpt.training.validation import sample_line, validate
from train import add_gradients, train_step, validate_and_save


@pytest.fixture
def folders(tmp_path):
    """Prepared rows of both stages: {"pretrain": folder, "sft": folder}."""
    return write_stages(tmp_path)


@pytest.fixture
def settings(folders, tmp_path):
    """Tiny settings of a pretraining run, which a test may change."""

    def make(**changes):
        run = TrainSettings(data_dir=folders["pretrain"], out_dir=str(tmp_path / "out"))
        for key, value in {**TINY, **changes}.items():
            setattr(run, key, value)
        return run

    return make


def finish(trainer):
    """Train to the end; returns why that was early, or None."""
    train.train(trainer)
    return trainer.stopped_by


def weights(settings, name="last.pt"):
    return load_checkpoint(f"{settings.out_dir}/{name}")["model"]


def assert_same(left, right):
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.numeric
@pytest.mark.parametrize(("optimizer", "architecture"), [("adamw", "gpt2"), ("muon", "gpt2"), ("muon", "qwen3")])
def test_a_stopped_and_resumed_run_equals_one_never_stopped(settings, tmp_path, optimizer, architecture):
    changes = {"optimizer": optimizer, **ARCHITECTURE_FIELDS[architecture]}
    whole = settings(out_dir=str(tmp_path / "whole"), **changes)
    finish(TrainingRun(whole))
    stopped = settings(out_dir=str(tmp_path / "stopped"), **changes)
    trainer = TrainingRun(stopped)
    monitor = Monitor(trainer)
    for _ in range(6):
        train_step(trainer)
        monitor.log()
    save_run(trainer, "last.pt")
    train_step(trainer)  # lost with the crash, like the line that it logs
    monitor.log()
    stopped.init_from = "resume"
    finish(TrainingRun(stopped))
    assert [line["train_loss"] for line in log_of(stopped.out_dir)] == [
        line["train_loss"] for line in log_of(whole.out_dir)
    ]
    assert log_of(stopped.out_dir)[6:] == log_of(whole.out_dir)[6:]
    assert_same(weights(stopped), weights(whole))


@pytest.mark.numeric
def test_accumulated_batches_give_the_step_of_one_large_batch(settings, tmp_path):
    one = settings(out_dir=str(tmp_path / "one"), batch_size=8, sampling="traverse", dropout=0.0, max_iters=3)
    four = settings(out_dir=str(tmp_path / "four"), batch_size=2, sampling="traverse", dropout=0.0, max_iters=3)
    four.gradient_accumulation_steps = 4
    finish(TrainingRun(one))
    finish(TrainingRun(four))
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(four)[name], weight, rtol=0, atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_residual_projections_start_at_zero_learns_by_muon_from_its_first_step(settings, dtype):
    """At that step all other matrices of its blocks have gradients of zero, which Muon leaves as they are."""
    changes = {"weight_decay": 0.0, "dropout": 0.0, "dtype": dtype}
    trainer = TrainingRun(settings(optimizer="muon", **changes, **ARCHITECTURE_FIELDS["qwen3"]))
    matrices = {name: p for name, p in trainer.model.named_parameters() if name.startswith("h.") and p.dim() == 2}
    for changed in ({"c_proj"}, {"c_proj", "c_attn", "c_fc"}):
        before = {name: p.detach().clone() for name, p in matrices.items()}
        train_step(trainer)
        assert {name.split(".")[3] for name, p in matrices.items() if not torch.equal(p, before[name])} == changed
    assert trainer.progress.skipped == 0 and all(p.isfinite().all() for p in trainer.model.parameters())


def test_loss_falls_and_log_and_checkpoints_are_written(settings, tmp_path, architecture):
    changes = {"learning_rate": 3e-3, "keep_every": 20, **ARCHITECTURE_FIELDS[architecture]}
    run = settings(max_iters=40, eval_interval=20, **changes)
    finish(TrainingRun(run))
    log = log_of(run.out_dir)
    assert log[-1]["train_loss"] < log[0]["train_loss"] - 1
    assert set(log[0]) == {"step", "epoch", "train_loss", "val_loss", "lr", "tokens"}
    assert [line["step"] for line in log if line["val_loss"] is not None] == [20, 40]
    rows = 40  # of the training part
    assert log[-1]["epoch"] == pytest.approx(40 * 8 / rows)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"ckpt.pt", "last.pt", "last.prev.pt", "log.jsonl", "step_000020.pt", "step_000040.pt"}


def test_tokens_are_the_real_ones_and_epochs_set_the_length(settings, folders):
    run = settings(max_epochs=2.0, batch_size=10)
    trainer = TrainingRun(run)
    finish(trainer)
    meta = json.loads(Path(folders["pretrain"], "meta.json").read_text(encoding="utf-8"))
    assert trainer.progress.max_iters == 8  # 2 epochs of 40 rows, 10 a step
    assert log_of(run.out_dir)[-1]["tokens"] == 2 * meta["parts"]["train"]["tokens"]


def test_patience_ends_a_run_that_no_longer_gets_better(settings):
    trainer = TrainingRun(settings(learning_rate=0.0, weight_decay=0.0, patience=2, max_iters=100, eval_interval=2))
    assert "2 checks" in finish(trainer)
    assert trainer.progress.step == 6  # the first check is the best, two more are not


def test_max_seconds_shortens_a_run_and_its_schedule(settings):
    trainer = TrainingRun(settings(max_iters=10_000, max_seconds=0.001, eval_interval=100_000))
    finish(trainer)
    assert trainer.progress.step == trainer.progress.max_iters == 26
    assert trainer.lr < 0.2 * trainer.settings.learning_rate


def test_an_earlier_run_is_put_aside_and_not_lost(settings, tmp_path):
    finish(TrainingRun(settings()))
    before = weights(settings())
    finish(TrainingRun(settings(seed=5)))
    second = weights(settings())
    finish(TrainingRun(settings(seed=6)))
    assert_same(load_checkpoint(tmp_path / "out" / "old" / "last.pt")["model"], before)
    assert_same(load_checkpoint(tmp_path / "out" / "old-2" / "last.pt")["model"], second)
    assert (tmp_path / "out" / "old" / "log.jsonl").exists()


def test_an_overflow_in_float16_skips_the_step_of_every_optimizer(settings):
    trainer = TrainingRun(settings(optimizer="muon"))
    trainer.scaler = torch.amp.GradScaler("cpu")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.model.ln_f.weight.register_hook(lambda grad: grad * torch.inf)  # AdamW's; Muon's are finite
    train_step(trainer)
    assert_same(before, trainer.model.state_dict())
    assert trainer.progress.skipped == 0  # that is how the loss scale is found
    assert trainer.scaler.get_scale() < torch.amp.GradScaler("cpu").get_scale()


def state_of(trainer):
    """Everything that a step changes in weights and optimizers, as (name, tensor)."""
    yield from trainer.model.state_dict().items()
    for optimizer in trainer.optimizers:
        for number, values in optimizer.state_dict()["state"].items():
            yield from ((f"{number} {key}", value) for key, value in values.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_every_bit(settings, monkeypatch, capsys, dtype, wrong):
    trainer = TrainingRun(settings(optimizer="muon", dtype=dtype, max_iters=8, eval_interval=8))
    for _ in range(2):
        train_step(trainer)
    before, right = {name: tensor.clone() for name, tensor in state_of(trainer)}, trainer.loss
    if wrong == "loss":  # with gradients that are finite
        monkeypatch.setattr(trainer, "loss", lambda *batch: right(*batch) + torch.inf)
    else:
        trainer.model.ln_f.weight.register_hook(lambda grad: grad * torch.nan)
    train_step(trainer)
    after = dict(state_of(trainer))
    assert before.keys() == after.keys()
    assert_same(before, after)
    p = trainer.progress
    assert (p.step, p.skipped, p.skipped_in_a_row) == (3, 1, 1)
    if wrong == "loss":
        monkeypatch.setattr(trainer, "loss", right)
        finish(trainer)
        assert (p.step, p.skipped, p.skipped_in_a_row) == (8, 1, 0)
        assert not torch.equal(trainer.model.lm_head.weight, before["lm_head.weight"])
        assert all(line["train_loss"] for line in log_of(trainer.out))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_five_steps_in_a_row_that_are_not_finite_end_the_run(settings, dtype):
    trainer = TrainingRun(settings(dtype=dtype, max_iters=100, eval_interval=4))
    right, steps = trainer.loss, []

    def broken_later(*batch):
        steps.append(True)
        return right(*batch) * (torch.nan if len(steps) > 6 else 1)

    trainer.loss = broken_later
    with pytest.raises(UserError, match=r"5 steps in a row \(7 to 11\).*last.pt is of step 8.*learning_rate"):
        finish(trainer)
    for name in ("last.pt", "last.prev.pt", "ckpt.pt"):
        content = load_checkpoint(trainer.out / name)
        assert all(weight.isfinite().all() for weight in content["model"].values())


def test_weights_that_are_not_finite_reach_no_checkpoint(settings, capsys):
    """A rate so high that a single step, whose loss and gradient are finite, ends the weights."""
    trainer = TrainingRun(settings(learning_rate=1e39, grad_clip=0.0, warmup_iters=0, eval_interval=2, max_iters=50))
    with pytest.raises(UserError, match=r"5 steps in a row.*last.pt is of step 0"):
        finish(trainer)
    assert "nothing was saved" in capsys.readouterr().out
    assert {path.name for path in trainer.out.glob("*.pt")} == {"last.pt"}
    assert all(weight.isfinite().all() for weight in load_checkpoint(trainer.out / "last.pt")["model"].values())
    with pytest.raises(UserError, match="weights are not finite"):
        save_run(trainer, "last.pt")


def test_a_signal_between_two_batches_gives_up_the_step_and_the_run_goes_on_exactly(settings, tmp_path):
    changes = {"gradient_accumulation_steps": 4, "batch_size": 2}
    whole, stopped = (settings(out_dir=str(tmp_path / name), **changes) for name in ("whole", "stopped"))
    finish(TrainingRun(whole))
    trainer = TrainingRun(stopped)
    batches = []
    trainer.on_batch = lambda done, count: batches.append(done)
    trainer.stop_requested = lambda: len(batches) == 5 * 4 + 3
    steps = 0
    while train_step(trainer):
        steps += 1
    assert (steps, trainer.progress.step, trainer.stopped_by) == (5, 5, "interrupted")
    save_run(trainer, "last.pt")
    stopped.init_from = "resume"
    finish(TrainingRun(stopped))
    assert_same(weights(stopped), weights(whole))


def test_validations_time_is_not_in_tokens_a_second(settings, monkeypatch):
    trainer, clock, figures = TrainingRun(settings(max_iters=4, eval_interval=2, log_interval=1)), [0.0], []
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])

    def later(seconds, call):
        def timed(*arguments):
            clock[0] += seconds
            return call(*arguments)

        return timed

    monkeypatch.setattr(train, "train_step", later(1.0, train_step))
    monkeypatch.setattr(train, "validate", later(1000.0, validate))
    monkeypatch.setattr(monitor.Tracker, "add", lambda self, line, more: figures.append((line["tokens"], more)))
    finish(trainer)
    assert [more["tokens_per_second"] for _, more in figures] == [
        after - before for (after, _), (before, _) in zip(figures, [(0, None), *figures], strict=False)
    ]


def test_deterministic_kernels_give_a_cpus_numbers(settings, tmp_path):
    plain, deterministic = settings(), settings(out_dir=str(tmp_path / "deterministic"), deterministic=True)
    finish(TrainingRun(plain))
    try:
        trainer = TrainingRun(deterministic)
        assert torch.are_deterministic_algorithms_enabled()
        finish(trainer)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(weights(deterministic), weights(plain))


def test_a_sharded_models_sample_goes_by_the_main_processs_choice(settings, monkeypatch):
    trainer = TrainingRun(settings(sample_prompt="第"))
    own, asked = sample_line(trainer), []

    def from_main(chosen):
        asked.append(chosen)
        return [ord("m")] * len(chosen)

    monkeypatch.setattr(trainer.processes, "from_main", from_main)
    assert sample_line(trainer) == own and not asked
    trainer.sharded = True
    assert sample_line(trainer) == f"第 → {'m' * len(asked)}" and asked


def test_resuming_with_settings_that_end_before_is_said(settings):
    finish(TrainingRun(settings()))
    with pytest.raises(
        UserError, match=r"at step 12, and would end at step 3 by .*max_iters=3.*begun with .*max_iters=12"
    ):
        TrainingRun(settings(init_from="resume", max_iters=3))


def test_a_finished_run_says_that_it_is_at_its_end(settings, capsys):
    finish(TrainingRun(settings()))
    finish(TrainingRun(settings(init_from="resume")))
    assert "at its end, step 12; more max_iters" in capsys.readouterr().out


def test_a_run_of_very_few_steps_is_warned_of(settings, capsys):
    TrainingRun(settings(max_epochs=2.0, gradient_accumulation_steps=8))
    out = capsys.readouterr().out
    assert "40 rows and max_epochs=2 make 2 optimizer steps" in out
    assert "lower batch_size (8) and gradient_accumulation_steps (8), or raise max_epochs" in out
    TrainingRun(settings(max_epochs=40.0))
    assert "warning" not in capsys.readouterr().out


def test_a_disk_that_is_full_once_does_not_end_the_run(settings, monkeypatch, capsys):
    trainer, real, failed = TrainingRun(settings()), state.save_checkpoint, []

    def full_at_first(*arguments, **state):
        if len(failed) < 2 and trainer.progress.step:
            failed.append(True)
            raise UserError("ckpt.pt could not be written")
        real(*arguments, **state)

    monkeypatch.setattr(state, "save_checkpoint", full_at_first)
    finish(trainer)
    assert capsys.readouterr().out.count("could not be written") == 2
    assert load_checkpoint(trainer.out / "last.pt")["progress"]["step"] == 12


def test_a_disk_that_is_full_at_the_start_is_found_out_before_any_training(settings, monkeypatch):
    def full(*arguments, **state):
        raise UserError("last.pt could not be written")

    monkeypatch.setattr(state, "save_checkpoint", full)
    trainer = TrainingRun(settings())
    with pytest.raises(UserError, match="could not be written"):
        finish(trainer)
    assert trainer.progress.step == 0


def test_fine_tuning_starts_from_the_checkpoint_and_keeps_its_shape(settings, folders, tmp_path, architecture):
    base = settings(out_dir=str(tmp_path / "base"), **ARCHITECTURE_FIELDS[architecture])
    finish(TrainingRun(base))
    path = f"{base.out_dir}/ckpt.pt"
    tuned = settings(data_dir=folders["sft"], out_dir=str(tmp_path / "sft"), init_from=path, n_layer=7, max_iters=2)
    trainer = TrainingRun(tuned)
    assert_same(trainer.model.state_dict(), weights(base, "ckpt.pt"))
    finish(trainer)
    content = load_checkpoint(f"{tuned.out_dir}/ckpt.pt")
    assert content["stage"] == "sft" and content["model_args"]["n_layer"] == 2
    assert content["model_args"]["architecture"] == content["settings"]["architecture"] == architecture
    model, tokenizer = load_model(content)
    assert tokenizer.name == "bytes" and not model.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_size": 64}, ("64", "96", "--block_size=96")),
        ({"data_dir": "nowhere"}, ("python data/prepare.py",)),
        ({"init_from": "no.pt"}, ("no.pt", "not there")),
        ({"init_from": "resume"}, ("last.pt", "not there")),
        ({"vocab_size": 100}, ("100", "259")),
        ({"n_head": 3}, ("n_embd (32)", "n_head (3)")),
        ({"n_kv_head": 3}, ("n_head (2)", "n_kv_head (3)")),
        ({"n_kv_head": 4}, ("n_head (2)", "n_kv_head (4)")),
        ({"architecture": "qwen3", "bias": True}, ("qwen3 has no biases", "gpt2")),
        ({"architecture": "qwen3", "n_head": 32}, ("n_embd / n_head is 1", "even")),
        ({"device": "cuda:99"}, ("cuda:99",)),
    ],
)
def test_what_cannot_be_trained_is_said(settings, changes, said):
    with pytest.raises(UserError) as error:
        TrainingRun(settings(**changes))
    for words in said:
        assert words in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_saves_says_how_to_go_on_and_the_run_goes_on(folders, tmp_path):
    arguments = [f"--{key}={value}" for key, value in TINY.items()]
    arguments += [f"--data_dir={folders['pretrain']}", "--max_iters=100000", "--eval_interval=100000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=tmp_path, stdout=-1, stderr=-1, encoding="utf-8"
    )
    log = tmp_path / "out" / "pretrain" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the first step is done; the deadline is for a run that never starts
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--init_from=resume" in out and "Traceback" not in err
    step = load_checkpoint(tmp_path / "out" / "pretrain" / "last.pt")["progress"]["step"]
    assert step > 0
    more = [a for a in arguments if not a.startswith("--max_iters")] + [f"--max_iters={step + 2}", "--init_from=resume"]
    again = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *more], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60
    )
    assert again.returncode == 0, again.stderr
    assert f"going on at step {step}" in again.stdout


def test_a_fresh_run_can_be_resumed_before_its_first_check(settings):
    save_run(TrainingRun(settings()), "last.pt")
    again = TrainingRun(settings(init_from="resume"))
    assert again.progress.step == 0
    finish(again)
    assert again.progress.step == 12


def logged_line(step, train_loss, val_loss):
    about = {"epoch": 0.1 * step, "lr": 1e-3, "tokens": 10 * step, "seconds": 1.0 * step}
    return {"step": step, "train_loss": train_loss, "val_loss": val_loss, **about}


def test_overfitting_is_said_once_after_a_best_and_as_the_log_shows_it(settings, capsys):
    trainer = TrainingRun(settings())
    run = Monitor(trainer)
    # Three rises in a row are none while they are small or training loss rises too; a climb that wavers is one.
    losses = [
        (3.0, 3.0), (2.9, 2.5), (2.8, 2.51), (2.7, 2.52), (2.6, 2.53), (3.5, 2.7), (2.1, 2.6), (2.0, 2.52), (1.9, 2.8),
        (1.8, 2.0), (1.7, 2.02), (1.6, 2.1), (1.5, 2.2),
    ]  # fmt: skip
    told = {}
    for step, (train_loss, val_loss) in enumerate(losses, start=1):
        run.tracker.add(logged_line(step, train_loss, val_loss), {})
        capsys.readouterr()
        run.warn_of_overfitting(best=val_loss == min(val for _, val in losses[:step]))
        told[step] = capsys.readouterr().out
        log = RunLog(trainer.out / "log.jsonl")
        log.read()
        found = overfitting(log.columns)  # what visualize.py and the report card say
        assert (found is not None) == (step in (7, 9, 12, 13))
        assert (found.text in told[step]) if step in (7, 12) else not told[step]
    assert "note: over-fits after step 2: validation loss 2.5000 → 2.6000" in told[7]
    assert "over-fits after step 10" in told[12] and "--patience" in told[12]
    run.close()


def test_a_check_notes_overfitting_of_the_line_that_it_has_just_logged(settings, monkeypatch, capsys):
    trainer = TrainingRun(settings(eval_interval=1, max_iters=3))
    losses = iter([(3.0, 2.0), (2.5, 2.5), (2.0, 3.0)])
    current = []
    monkeypatch.setattr(train, "validate", lambda run: current.append(next(losses)) or current[-1][1])
    monkeypatch.setattr(Monitor, "take_train_loss", lambda self: current[-1][0])
    finish(trainer)
    said = capsys.readouterr().out
    assert said.count("over-fits after step 1: validation loss 2.0000 → 2.5000") == said.count("over-fits") == 1
    assert trainer.progress.last_losses == (2.0, 3.0)


def test_out_of_memory_names_the_settings_to_lower(settings, monkeypatch):
    trainer = TrainingRun(settings())

    def full(*batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer, "loss", full)
    with pytest.raises(UserError, match=r"batch_tokens.*batch_size.*gradient_accumulation_steps.*block_size"):
        train_step(trainer)


def test_another_error_in_a_step_is_not_taken_for_a_lack_of_memory(settings, monkeypatch):
    trainer = TrainingRun(settings())

    def broken(*batch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer, "loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(trainer)


@pytest.mark.numeric
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("batch_tokens", [0, 300])
def test_training_on_trimmed_batches_is_training_on_padded_rows(settings, folders, stage, batch_tokens, architecture):
    """Loss and gradient of a step against whole rows and logits at every position, to 1e-5 in float32."""
    shape = ARCHITECTURE_FIELDS[architecture]
    trainer = TrainingRun(settings(data_dir=folders[stage], batch_tokens=batch_tokens, dropout=0.0, **shape))
    for p in trainer.model.parameters():  # the qwen3 starts with gradients of zero
        torch.nn.init.normal_(p, std=0.05)
    data, step = trainer.data, trainer.data.step((0, 0))
    total = add_gradients(trainer, step.batches, 100)
    ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    rows = data.train[data.order.batches(0)[0]]
    ids = torch.from_numpy(rows.astype("int64"))
    logits = trainer.model(ids[:, :-1])
    mask = torch.from_numpy(loss_mask(rows, data.meta["special_ids"], stage))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    expected = (losses * mask.flatten()).sum()
    (0.01 * expected).backward()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=0)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 16},
        {"batch_size": 2},
        {"batch_tokens": 200},
        {"batch_size": 16, "gradient_accumulation_steps": 3},
    ],
)
def test_a_run_resumed_with_other_batches_is_as_far_in_its_epoch(settings, changes, capsys):
    trainer = TrainingRun(settings(batch_size=4, max_iters=17))  # 10 batches an epoch
    finish(trainer)
    again = TrainingRun(settings(init_from="resume", max_iters=22, **{"batch_size": 4, **changes}))
    assert again.epochs == pytest.approx(1.7, abs=0.2)
    assert "come in another order" in capsys.readouterr().out
    finish(again)
    assert again.progress.step == 22


def test_a_run_shortened_by_its_time_can_be_lengthened(settings):
    short = {"max_iters": 10_000, "eval_interval": 100_000}
    finish(TrainingRun(settings(max_seconds=0.001, **short)))
    assert TrainingRun(settings(max_seconds=0.001, init_from="resume", **short)).progress.max_iters == 26
    assert TrainingRun(settings(max_seconds=50.0, init_from="resume", **short)).progress.max_iters == 10_000


def test_rates_and_betas_given_on_resuming_count(settings):
    finish(TrainingRun(settings()))
    again = TrainingRun(settings(init_from="resume", beta2=0.5, learning_rate=0.125, max_iters=20))
    assert all(g["betas"] == (0.9, 0.5) and g["peak_lr"] == 0.125 for g in again.optimizers[0].param_groups)


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_resuming_with_another_optimizer_is_said(settings, first, then):
    finish(TrainingRun(settings(optimizer=first)))
    with pytest.raises(UserError, match=rf"optimizer={first}.*{then}"):
        TrainingRun(settings(optimizer=then, init_from="resume"))


def test_resuming_from_a_checkpoint_without_optimizers_is_said(settings, tmp_path):
    finish(TrainingRun(settings()))
    (tmp_path / "out" / "ckpt.pt").replace(tmp_path / "out" / "last.pt")
    with pytest.raises(UserError, match=r"--init_from=.*last\.pt"):
        TrainingRun(settings(init_from="resume"))


def test_a_best_checkpoint_that_could_not_be_written_is_not_the_best(settings, monkeypatch):
    trainer, real = TrainingRun(settings()), state.save_checkpoint

    def full_for_the_best(path, *arguments, **state):
        if path.name == "ckpt.pt" and trainer.progress.step == 8:
            raise UserError("ckpt.pt could not be written")
        real(path, *arguments, **state)

    monkeypatch.setattr(state, "save_checkpoint", full_for_the_best)
    run = Monitor(trainer)
    for step, val_loss in ((4, 3.0), (8, 2.0), (12, 2.5)):
        trainer.progress.step, trainer.lr = step, 0.0
        monkeypatch.setattr(train, "validate", lambda run, loss=val_loss: loss)
        validate_and_save(trainer, run)
        assert load_checkpoint(trainer.out / "ckpt.pt")["progress"]["best_val_loss"] == (3.0 if step < 12 else 2.5)
    run.close()


def test_a_folder_that_cannot_be_made_is_said(settings, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match=r"--out_dir"):
        TrainingRun(settings(out_dir=str(tmp_path / "file" / "run")))


def test_processes_without_torchrun_are_said(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"RANK, LOCAL_RANK.*torchrun"):
        TrainingRun(settings())


def test_the_numbers_of_a_step_are_read_as_they_are():
    third, large = torch.tensor(1 / 3), torch.tensor(3e38)
    assert full_values(third, large) == [float(third), float(large)]
    assert full_values(0.1, large) == [0.1, float(large)] and full_values(0.1, 0.2) == [0.1, 0.2]
    assert full_values(third.bfloat16(), large) == [float(third.bfloat16()), float(large)]
