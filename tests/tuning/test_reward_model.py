"""Reward models: the loss by the plain formula, a taste that is learned, and what opens their checkpoints."""

import contextlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from corpora import ROOT, byte_tokenizer
from runs import TINY, finish_run, log_of, write_stages
from tiny import EOT, MARK, tiny_model, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.evaluation.asking import EvaluatedModel
from minigpt.inference.classify import open_classifier, open_served
from minigpt.tuning.pairs import REWARD_TASK
from minigpt.tuning.reward_model import (
    RewardModel,
    RewardObjective,
    bradley_terry_losses,
    load_reward_model,
    open_reward_model,
)

SETTINGS = SimpleNamespace(out_root="out", device="cpu", dtype="float32", base="", max_batch=4)


@pytest.mark.numeric
def test_loss_and_gradient_are_those_of_the_plain_formula():
    chosen = torch.tensor([0.3, -2.0, 40.0, -90.0], requires_grad=True)
    rejected = torch.tensor([0.1, 1.0, -40.0, 90.0], requires_grad=True)
    losses = bradley_terry_losses(chosen, rejected)
    losses.sum().backward()
    difference = (chosen - rejected).detach().double()
    expected = -torch.log(1 / (1 + torch.exp(-difference)))
    expected[3] = 180  # where the plain formula overflows
    assert torch.allclose(losses.double(), expected)
    slope = 1 / (1 + torch.exp(difference))
    assert torch.allclose(chosen.grad.double(), -slope) and torch.allclose(rejected.grad.double(), slope)


@pytest.mark.numeric
def test_a_batch_of_pairs_has_the_loss_of_its_pairs_one_by_one(architecture):
    model = tiny_model(architecture=architecture, n_labels=1)
    scorer = RewardModel(model, tiny_tokenizer(), REWARD_TASK)
    prompt = [5, 6, MARK]
    answers = [[7], [8, 9, 10, 11], [12, 13], [14], [], [15] * 20]
    rewards = scorer.score([(prompt, answer) for answer in answers])
    plain = [model(torch.tensor([[*prompt, *answer, EOT]]))[0, -1, 0].item() for answer in answers]
    assert rewards == pytest.approx(plain, abs=1e-5)

    x = torch.full((6, 24), -1)
    loss_mask = torch.zeros(6, 24).bool()
    for i, answer in enumerate(answers):
        x[i, : 4 + len(answer)] = torch.tensor([*prompt, *answer, EOT])
        loss_mask[i, 3 + len(answer)] = True
    objective = RewardObjective()
    loss = objective.loss(model, x, torch.zeros_like(x), loss_mask, torch.arange(6))
    plain = torch.tensor(plain)
    assert objective.count((x, x, loss_mask)) == 3
    expected = bradley_terry_losses(plain[0::2], plain[1::2]) + 0.01 * (plain[0::2] + plain[1::2]) ** 2
    assert loss.item() == pytest.approx(expected.sum().item(), abs=1e-5)
    assert objective.take_figures() == {"accuracy": sum(plain[0::2] > plain[1::2]).item() / 3}
    assert objective.take_figures() == {}
    nothing = objective.loss(model, x, torch.zeros_like(x), loss_mask & False, torch.arange(6))
    nothing.backward()  # of a process without a pair
    assert nothing.item() == 0 and not model.lm_head.weight.grad.any()


def write_pairs(path, numbers):
    """Pairs of which the shorter answer is preferred."""
    rows = []
    for i in numbers:
        short, long = "东西南北"[i % 4], "".join("东西南北"[(i * k) % 4] for k in range(1, 3 + i % 5))
        rows.append({"prompt": f"第{i}镇位于哪里？", "chosen": short, "rejected": long})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fine-tuned base, and a reward model of the taste for short answers."""
    folder = tmp_path_factory.mktemp("rewards")
    finish_run(**TINY, data_dir=write_stages(folder)["sft"], out_dir=str(folder / "base"))
    train_taste(folder, folder / "reward")
    return folder


def train_taste(folder, out, **changes):
    """A finished run of a reward model on 60 pairs."""
    return finish_run(**{
        **TINY, "objective": "reward", "preferences": [str(write_pairs(folder / "pairs.jsonl", range(0, 120, 2)))],
        "val_share": 0.2, "init_from": str(folder / "base/last.pt"), "out_dir": str(out), "max_iters": 40,
        "eval_interval": 20, "learning_rate": 1e-2, "head_learning_rate": 1e-2, **changes,
    })  # fmt: skip


def test_a_taste_is_learned_and_ranks_pairs_about_other_questions(folder):
    tokenizer = load_reward_model(folder / "reward/last.pt", byte_tokenizer(), "cpu").tokenizer
    scorer = load_reward_model(folder / "reward/last.pt", tokenizer, "cpu")
    unseen = list(map(json.loads, write_pairs(folder / "unseen.jsonl", range(1, 120, 2)).read_text().splitlines()))
    prompts = [tokenizer.encode_prompt(row["prompt"], answer=True) for row in unseen]
    chosen, rejected = (
        scorer.score([(prompt, tokenizer.encode(row[name])) for prompt, row in zip(prompts, unseen, strict=True)])
        for name in ("chosen", "rejected")
    )
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    assert right > 54  # of 60
    lines = log_of(folder / "reward")
    assert all(0 <= line["accuracy"] <= 1 for line in lines)
    assert [line["val_accuracy"] for line in lines if line["val_loss"] is not None][-1] > 0.9
    assert load_checkpoint(folder / "reward/ckpt.pt")["task"] == REWARD_TASK


def test_a_resumed_run_is_the_one_that_never_stopped(folder, tmp_path):
    train_taste(folder, tmp_path / "run", max_iters=20, decay_lr=False, dropout=0.1)
    train_taste(folder, tmp_path / "run", init_from="resume", decay_lr=False, dropout=0.1)
    train_taste(folder, tmp_path / "whole", decay_lr=False, dropout=0.1)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    weights, expected = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("run", "whole"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_sample_prints_a_reward_and_what_writes_or_labels_text_refuses_in_one_line(folder, monkeypatch, capsys):
    path = str(folder / "reward/ckpt.pt")

    def sample(prompt):
        monkeypatch.setattr(sys, "argv", ["sample.py", f"--ckpt={path}", "--dtype=float32", f"--prompt={prompt}"])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
        return capsys.readouterr()

    short, long = (float(sample(f"第7镇位于哪里？ ## {answer}").out) for answer in ("东", "东东西东"))
    assert short > long
    assert "question ## answer" in sample("第7镇位于哪里？").err
    base = str(folder / "base/last.pt")
    for refused, message in (
        (lambda: EvaluatedModel("x", Path(path)), "generates no text; it rewards answers"),
        (lambda: open_served([path], SETTINGS), "generates no text; it rewards answers"),
        (lambda: open_classifier(path, SETTINGS), "of stage reward"),
        (lambda: open_reward_model(base, SETTINGS), "of stage sft, no reward model"),
        (lambda: load_reward_model(base, byte_tokenizer(), "cpu"), "of stage sft, no reward model"),
        (lambda: load_reward_model(path, tiny_tokenizer(), "cpu"), "tokenizer bytes .*the policy has tiny"),
        (lambda: train_taste(folder, folder / "x", preferences=[]), "learns from pairs"),
        (lambda: finish_run(**TINY, data_dir=str(folder / "sft"), init_from=path), "writes no text"),
    ):
        with pytest.raises(UserError, match=message):
            refused()
