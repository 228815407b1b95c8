"""GRPO: advantages, clipped loss and KL by hand, and whole runs."""

import json

import pytest
import torch
from corpora import byte_tokenizer
from runs import TINY, log_of, run_here
from tiny import random_ids, tiny_model, write_rows

import train
from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.run_log import ANSWERS_LOG
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from minigpt.tuning.grpo import GRPO, clipped_loss, group_advantages
from minigpt.tuning.rollouts import Rollout, kl_estimate

LETTERS = b"abcd"
GRPO_RUN = {
    "objective": "grpo", "rollout_questions": 8, "group_size": 8, "updates": 2, "rollout_tokens": 4, "batch_size": 48,
    "block_size": 16, "learning_rate": 3e-3, "warmup_iters": 0, "decay_lr": False, "eval_interval": 3,
}  # fmt: skip


@pytest.mark.numeric
def test_advantages_are_standardized_within_each_group():
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.5, 0, 1, 0.5], [1, 1, 1, 1]])
    third, half = 3**0.5, 2**0.5
    wanted = torch.tensor([[third, -1 / third, -1 / third, -1 / third], [0, -half, half, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(group_advantages(rewards), wanted)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),  # gradient: by the token's log-probability
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),  # clipped: it is likely enough
        (0.5, 1.0, -0.5, -0.5),  # not clipped: it has become too unlikely
        (0.9, -1.0, 0.9, 0.9),
        (0.5, -1.0, 0.8, 0.0),  # clipped: it is unlikely enough
        (1.5, -1.0, 1.5, 1.5),
    ],
)
def test_the_ratio_is_clipped_where_it_would_gain(ratio, advantage, loss, gradient):
    logprob = torch.tensor([ratio]).log().requires_grad_()
    found = clipped_loss(logprob, torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    found.sum().backward()
    assert (found.item(), logprob.grad.item()) == pytest.approx((loss, gradient), rel=1e-5)


@pytest.mark.numeric
def test_the_kl_estimate():
    log_ratio = torch.tensor([0.5, 1.0, 2.0]).log()
    assert kl_estimate(log_ratio).tolist() == pytest.approx([0.193147, 0.0, 0.306853], abs=1e-5)


class NoRollouts:
    """In place of `Rollouts`, where none are asked for."""

    def start(self, *parts):
        pass


@pytest.mark.numeric
def test_loss_and_gradients_are_those_of_the_formula():
    settings = TrainSettings(clip=0.2, kl_weight=0.1, rollout_temperature=0.8)
    model, objective = tiny_model(), GRPO(settings, NoRollouts(), None, None, None)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ids, mask = random_ids(4, 9), torch.zeros(4, 8, dtype=torch.bool)
    for row, (start, end) in enumerate([(2, 5), (3, 8), (1, 2), (4, 7)]):
        mask[row, start:end] = True
    x, y = ids[:, :-1], ids[:, 1:]
    logprobs = (model(x) / 0.8).log_softmax(-1).gather(2, y[..., None])[..., 0]
    moved = 0.5 * torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    old, reference = ((logprobs.detach() + shift) * mask for shift in moved)
    rollout = Rollout(x, y, mask, old, reference, rewards)
    objective.prepare_rollout(rollout)
    batch = rollout.micro_batch(torch.arange(4))
    assert objective.count(batch) == mask.sum()

    wanted, clipped = 0.0, set()
    for row, advantage in enumerate([1.0, -1.0, -1.0, 1.0]):
        for t in mask[row].nonzero()[:, 0]:
            ratio = (logprobs[row, t] - old[row, t]).exp()
            inside = min(max(ratio, ratio.new_tensor(0.8)), ratio.new_tensor(1.2))
            other = (reference[row, t] - logprobs[row, t]).exp()
            clipped.add((advantage, inside.item() * advantage < ratio.item() * advantage))
            wanted -= min(ratio * advantage, inside * advantage) - 0.1 * (other - other.log() - 1)
    assert clipped == {(1.0, False), (1.0, True), (-1.0, False), (-1.0, True)}
    grads = torch.autograd.grad(wanted, list(model.parameters()))
    loss = objective.loss(model, *batch)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    for found, grad in zip(torch.autograd.grad(loss, list(model.parameters())), grads, strict=True):
        torch.testing.assert_close(found, grad, atol=1e-4, rtol=1e-4)


def test_questions_without_a_signal_are_left_out_unless_there_is_no_other():
    objective = GRPO(TrainSettings(), NoRollouts(), None, None, None)
    assert objective.choose_questions(torch.tensor([[1.0, 1], [0, 1], [0, 0]])).tolist() == [False, True, False]
    assert objective.choose_questions(torch.tensor([[1.0, 1], [0, 0]])).tolist() == [True, True]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """(checkpoint of a model that answers one of LETTERS, each as often, folder of questions whose answer is "a")."""
    folder = tmp_path_factory.mktemp("letters")
    tokenizer = byte_tokenizer()
    for name, answers in (("any", LETTERS), ("a", LETTERS[:1])):
        rows = [[ord("0") + i, tokenizer.answer_id, answer] for i in range(10) for answer in answers]
        write_rows(folder / name, {"train": rows, "val": rows[:9]}, 16, "sft", tokenizer)
    run_here(data_dir=str(folder / "any"), out_dir=str(folder / "base"), max_iters=60, batch_size=40, block_size=16,
             learning_rate=1e-2, eval_interval=60, dropout=0.0)  # fmt: skip
    return str(folder / "base" / "last.pt"), str(folder / "a")


def test_a_run_learns_what_is_rewarded(letters, tmp_path, capsys):
    init_from, data_dir = letters
    out = tmp_path / "run"
    given = {**GRPO_RUN, "max_iters": 24, "log_interval": 2}
    run_here(**given, init_from=init_from, data_dir=data_dir, out_dir=str(out))
    lines = log_of(out)
    assert lines[0]["reward"] < 0.5 < 0.9 < lines[-1]["reward"]
    assert lines[-1]["val_reward"] == -lines[-1]["val_loss"] == 1.0
    assert lines[-1]["kl"] > lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert {"length", "signal", "ended"} < lines[0].keys()
    samples = list(map(json.loads, (out / ANSWERS_LOG).read_text(encoding="utf-8").splitlines()))
    assert {sample["step"] for sample in samples} == set(range(3, 25, 3))
    assert samples[-1]["answer"] == samples[-1]["reference"] == "a" and samples[-1]["reward"] == 1.0
    assert "→ a (reward 1; reference: a)" in capsys.readouterr().out


@pytest.mark.parametrize("stop", ["interrupted", "killed"])
def test_a_run_goes_on_as_if_it_had_not_stopped(letters, tmp_path, stop):
    """It stops within a rollout: step 5 is the first of two updates."""
    init_from, data_dir = letters
    given = {**TINY, **GRPO_RUN, "data_dir": data_dir, "max_iters": 10}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_here(**given, init_from=init_from, out_dir=str(whole))
    torch.set_num_threads(1)
    run = TrainingRun(TrainSettings(**given, init_from=init_from, out_dir=str(folder)), say=lambda line: None)
    if stop == "interrupted":
        run.stop_requested = lambda: run.progress.step == 5
        train.train(run)
    else:
        take = run.data.step
        run.data.step = lambda position: take(position) if run.progress.step < 5 else 1 / 0  # last.pt is of step 3
        with pytest.raises(ZeroDivisionError):
            train.train(run)
    out = run_here(**given, init_from="resume", out_dir=str(folder))
    assert f"going on at step {5 if stop == 'interrupted' else 3} of 10" in out
    assert log_of(folder) == log_of(whole)
    before, after = (load_checkpoint(place / "last.pt")["model"] for place in (whole, folder))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (folder / ANSWERS_LOG).read_bytes() == (whole / ANSWERS_LOG).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rewards": ["exakt"]}, "no reward 'exakt'"), ({"gradient_accumulation_steps": 2}, "is set by updates")],
)
def test_settings_that_do_not_go_are_refused(letters, tmp_path, changes, message):
    init_from, data_dir = letters
    with pytest.raises(UserError, match=message):
        run_here(**{**GRPO_RUN, **changes}, init_from=init_from, data_dir=data_dir, out_dir=str(tmp_path / "run"))
