"""LOMO equals SGD, MeZO equals its formula, neither leaves gradients, and both learn and resume exactly."""

import pytest
import torch
from runs import TINY, finish, log_of, run_here, start, write_stages
from runs import arguments as flags_of
from tiny import ARCHITECTURE_FIELDS

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.training.low_memory import Mezo
from minigpt.training.setup import TrainingRun
from train import add_gradients, train, train_step

RATES = {"lomo": 0.5, "mezo": 4e-3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Rows of articles."""
    return write_stages(tmp_path_factory.mktemp("rows"))["pretrain"]


@pytest.fixture
def settings(data_dir, tmp_path):
    """Tiny settings of a run with an optimizer, without dropout unless it is given."""

    def make(optimizer, out="out", **changes):
        rate = {"learning_rate": RATES.get(optimizer, 0.01)}
        about = {"data_dir": data_dir, "out_dir": str(tmp_path / out), "optimizer": optimizer}
        return TrainSettings(**{**TINY, "dropout": 0.0, **rate, **about, **changes})

    return make


def weights_of(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, weight in left.items():
        torch.testing.assert_close(weight, right[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [{}, {**ARCHITECTURE_FIELDS["qwen3"], "tied": True}], ids=["gpt2", "qwen3"])
def test_lomo_makes_the_steps_of_sgd_with_decoupled_decay(settings, shape):
    run = TrainingRun(settings("lomo", "lomo", **shape))
    plain = TrainingRun(settings("adamw", "plain", **shape))  # its own optimizer is not used
    params = list(plain.model.parameters())
    sgd = torch.optim.SGD(params, lr=1.0)
    for _ in range(4):
        rows, kept = train_step(run)
        add_gradients(plain, rows.batches, kept)
        with torch.no_grad():
            for p in params:
                p.mul_(1 - run.lr * 0.1 * (p.dim() >= 2))
        sgd.param_groups[0]["lr"] = run.lr
        sgd.step()
        sgd.zero_grad()
        assert_close(weights_of(run), weights_of(plain), rtol=0, atol=1e-6)
    assert run.progress.step == 4 and run.progress.skipped == 0


def test_lomo_frees_each_gradient_before_the_next_is_there(settings):
    run = TrainingRun(settings("lomo"))
    params, held, gradients = dict(run.model.named_parameters()), [], []
    for name, p in params.items():
        p.register_hook(lambda gradient: held.append(sum(q.grad is not None for q in params.values())))
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.append((name, p.grad)))
    train_step(run)
    assert held == [0] * len(params)
    # A hook that comes after LOMO's finds no gradient; each parameter, the tied one too, has one call.
    assert sorted(gradients) == sorted((name, None) for name in params)


@pytest.mark.numeric
@pytest.mark.parametrize("accumulation", [1, 3])
def test_mezo_makes_the_step_of_the_two_point_formula(settings, accumulation):
    run = TrainingRun(settings("mezo", dropout=0.1, gradient_accumulation_steps=accumulation, mezo_epsilon=1e-2))
    for step in range(3):
        before = weights_of(run)
        rows, kept = train_step(run)
        after = weights_of(run)
        generator = torch.Generator().manual_seed(run.settings.seed * 1_000_003 + step)
        ordered = [name for dim in (True, False) for name, p in before.items() if (p.dim() >= 2) == dim]
        z = {name: torch.randn(before[name].shape, generator=generator) for name in ordered}

        def loss_at(scale, before=before, z=z, rows=rows, kept=kept):
            moved = {name: weight + scale * z[name] for name, weight in before.items()}
            run.model.load_state_dict(moved, strict=False)  # the tied embedding is in it once
            run.model.eval()
            with torch.no_grad():
                return sum(run.model.token_losses(*batch).double().sum() for batch in rows.batches).item() / kept

        gradient = (loss_at(0.01) - loss_at(-0.01)) / 0.02
        assert abs(gradient) > 0.1
        expected = {
            name: weight * (1 - run.lr * 0.1 * (weight.dim() >= 2)) - run.lr * gradient * z[name]
            for name, weight in before.items()
        }
        assert_close(after, expected, rtol=0, atol=2e-6)
        assert max((after[name] - before[name]).abs().max() for name in z) > 1e-4
        run.model.load_state_dict(after, strict=False)


def test_mezo_draws_the_same_directions_in_pieces_as_at_once(settings, monkeypatch):
    p = torch.nn.Parameter(torch.zeros(40, 64))
    mezo = Mezo([{"params": [p]}], 0.1, 1e-3)
    mezo.move(5, 1.0)
    monkeypatch.setattr("minigpt.training.low_memory.DRAWN_NUMBERS", 1024)
    once = p.detach().clone()
    assert once.std() > 0.9
    mezo.move(5, 1.0)
    mezo.move(5, -1.0)
    torch.testing.assert_close(p.detach(), once, rtol=0, atol=1e-6)
    mezo.move(6, -1.0)
    assert (p - once).detach().std() > 0.9


@pytest.mark.parametrize("optimizer", ["lomo", "mezo"])
def test_no_gradients_and_no_state_are_left_after_a_step(settings, optimizer):
    run = TrainingRun(settings(optimizer))
    before = weights_of(run)
    train_step(run)
    assert all(p.grad is None for p in run.model.parameters())
    assert run.optimizers[0].state_dict()["state"] == {}
    assert not any(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())
    assert run.model.training


@pytest.mark.numeric
@pytest.mark.parametrize(("optimizer", "steps", "gain"), [("lomo", 40, 1.0), ("mezo", 150, 0.25)])
def test_the_loss_falls(settings, optimizer, steps, gain):
    run = TrainingRun(settings(optimizer, max_iters=steps, eval_interval=steps))
    train(run)
    losses = [line["train_loss"] for line in log_of(run.out)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - gain


@pytest.mark.parametrize(("optimizer", "wrong"), [("lomo", "loss"), ("lomo", "gradient"), ("mezo", "loss")])
def test_a_step_that_is_not_finite_is_counted_and_leaves_the_weights(settings, monkeypatch, optimizer, wrong):
    run = TrainingRun(settings(optimizer))
    before = weights_of(run)
    if wrong == "gradient":  # of the last parameter that the backward pass reaches; the others have been updated
        run.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    for place, name in ((run, "loss"), (run.model, "token_losses")) if wrong == "loss" else ():
        right = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *batch, right=right: right(*batch) + torch.inf)
    train_step(run)
    after = weights_of(run)
    assert (run.progress.step, run.progress.skipped) == (1, 1)
    if wrong == "loss":
        assert_close(after, before, rtol=0, atol=0 if optimizer == "lomo" else 1e-6)
    else:
        unchanged = [name for name in before if torch.equal(after[name], before[name])]
        assert unchanged == ["wte.weight"]
    assert all(weight.isfinite().all() for weight in after.values())


@pytest.mark.numeric
@pytest.mark.parametrize("optimizer", ["lomo", "mezo"])
def test_a_run_that_stops_and_goes_on_equals_one_never_stopped(data_dir, tmp_path, optimizer):
    common = {"data_dir": data_dir, "optimizer": optimizer, "learning_rate": RATES[optimizer], "eval_interval": 3}
    common["decay_lr"] = False  # which the number of steps would change
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_here(out_dir=str(whole), **{**common, "max_iters": 9})
    run_here(out_dir=str(parts), **{**common, "max_iters": 6})
    run_here(out_dir=str(parts), **{**common, "max_iters": 9, "init_from": "resume"})
    assert log_of(parts) == log_of(whole)
    expected = load_checkpoint(whole / "last.pt")["model"]
    for name, weight in load_checkpoint(parts / "last.pt")["model"].items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.soak_only)])
def test_mezos_processes_give_the_curve_of_one(data_dir, tmp_path, accumulation):
    common = {"data_dir": data_dir, "optimizer": "mezo", "learning_rate": 1e-3, "dropout": 0.0, "max_iters": 6}
    common.update(batch_size=7, gradient_accumulation_steps=accumulation)
    run_here(out_dir=str(tmp_path / "one"), **common)
    finish(start(*flags_of(out_dir=tmp_path / "two", **common), processes=2))
    one, two = ([line["train_loss"] for line in log_of(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "flags", "said"),
    [
        ("lomo", ["--gradient_accumulation_steps=4"], "gradient_accumulation_steps is 4"),
        ("lomo", ["--grad_clip=1.0"], "--grad_clip=0"),
        ("mezo", ["--grad_clip=1.0"], "--grad_clip=0"),
        ("lomo", ["--dtype=float16"], "float16"),
        ("lomo", ["--compile=on"], "compile=on"),
        ("lomo", ["--fsdp"], "fsdp"),
        ("mezo", ["--fsdp"], "fsdp"),
    ],
)
def test_what_an_optimizer_cannot_have_is_said_in_one_line(data_dir, tmp_path, optimizer, flags, said):
    common = ["--device=cpu", f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}", f"--optimizer={optimizer}"]
    with pytest.raises(UserError) as raised:
        TrainingRun(load_settings(TrainSettings, [*common, *flags]))
    assert f"optimizer {optimizer}" in str(raised.value) and said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_default_of_grad_clip_is_none_for_them(settings):
    assert TrainingRun(settings("lomo")).settings.grad_clip == 0.0


def test_lomo_under_torchrun_is_refused(settings, monkeypatch):
    class Two:
        world_count, is_main = 2, True

    monkeypatch.setattr("minigpt.training.setup.start_processes", lambda device, parts: Two())
    with pytest.raises(UserError, match=r"lomo trains in one process, here are 2.*torchrun"):
        TrainingRun(settings("lomo"))
