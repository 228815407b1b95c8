"""DPO: its loss and gradients are the paper's, the reference is asked once, and a run goes on exactly after a crash."""

import math

import numpy as np
import pytest
import torch
from corpora import made_up_questions, write_jsonl
from preferring import pair_row, preference_data
from runs import TINY, finish_run, log_of, run_here, write_stages
from tiny import ARCHITECTURE_FIELDS, MARK, PAD, confident_model, tiny_model

import train
from minigpt.checkpoint import load_checkpoint
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from minigpt.tuning import preference
from minigpt.tuning.preference import DirectPreference

ROWS = [
    pair_row("a", "b", "cd"),
    pair_row("问的", "河的好", "不"),
    pair_row("long " * 20, "an answer of many tokens", "x"),  # fills the block
    *(pair_row(f"{i}?", f"{i}", f"{i + 1}的") for i in range(5)),
]


def plain_logprob(model, row):
    """Log-probability of a row's answer: token by token, of the row alone."""
    ids = [int(token_id) for token_id in row if token_id != PAD]
    log_p = model(torch.tensor([ids[:-1]]))[0].float().log_softmax(dim=1)
    return sum(log_p[place - 1, ids[place]] for place in range(ids.index(MARK) + 1, len(ids)))


def plain_loss(model, reference, pair, beta, chosen_weight):
    """Equation 7 of Rafailov et al. 2023 for a pair of rows, and the NLL of Pang et al. 2024, equation 2."""
    chosen, rejected = (plain_logprob(model, row) for row in pair)
    with torch.no_grad():
        chosen_ref, rejected_ref = (plain_logprob(reference, row) for row in pair)
    ids = [token_id for token_id in pair[0].tolist() if token_id != PAD]
    loss = -torch.log(torch.sigmoid(beta * (chosen - chosen_ref) - beta * (rejected - rejected_ref)))
    return loss - chosen_weight * chosen / (len(ids) - ids.index(MARK) - 1)


@pytest.mark.numeric
@pytest.mark.parametrize("architecture", list(ARCHITECTURE_FIELDS))
@pytest.mark.parametrize(
    ("beta", "chosen_weight", "make", "batch_size"),
    [(0.1, 0.0, tiny_model, 4), (0.5, 0.7, tiny_model, 1), (0.02, 1.0, confident_model, 3)],
)
def test_loss_and_gradients_are_those_of_the_formula(tmp_path, architecture, beta, chosen_weight, make, batch_size):
    data = preference_data(tmp_path, ROWS, block_size=64, batch_size=batch_size, val_share=0.3)
    model = make(architecture=architecture, block_size=64).train()
    reference = tiny_model(seed=1, architecture=architecture, block_size=64)
    settings = TrainSettings(beta=beta, chosen_weight=chosen_weight)
    objective = DirectPreference(settings, data, torch.device("cpu"), lambda: reference, tmp_path)
    for part, rows in (("train", data.train), ("val", data.val)):
        loss = sum(objective.loss(model, *batch) for batch in data.batches_of(part))
        assert sum(map(objective.count, data.batches_of(part))) == len(rows)
        expected = sum(plain_loss(model, reference, pair, beta, chosen_weight) for pair in rows)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        ours, plain = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected))
        largest = max(grad.abs().max() for grad in plain)
        assert largest > 0
        assert all((a - b).abs().max() <= 1e-4 * largest for a, b in zip(ours, plain, strict=True))
    figures = objective.take_figures()
    with torch.no_grad():
        pairs = [
            [(plain_logprob(model, row) - plain_logprob(reference, row)).item() for row in pair]
            for pair in (*data.train, *data.val)
        ]
    margins = beta * (np.array(pairs)[:, 0] - np.array(pairs)[:, 1])
    assert figures["margin"] == pytest.approx(margins.mean(), rel=1e-3, abs=1e-4)
    assert figures["accuracy"] == pytest.approx((margins > 0).mean())
    assert objective.take_figures() == {}


def test_a_pair_that_fills_a_processs_share_has_no_loss(tmp_path):
    data = preference_data(tmp_path, ROWS, rank=1, count=2, batch_size=1)
    model = tiny_model()
    objective = DirectPreference(TrainSettings(chosen_weight=1.0), data, torch.device("cpu"), tiny_model, tmp_path)
    (batch,) = data.step((0, 0)).batches
    assert objective.count(batch) == 0
    loss = objective.loss(model, *batch)
    assert loss.item() == 0 and not any(grad.any() for grad in torch.autograd.grad(loss, list(model.parameters())))


def test_the_reference_is_asked_once_unless_it_or_a_row_changes(tmp_path, monkeypatch):
    asked, compute = [], preference.answer_logprobs

    def count_asked(model, data):
        asked.append(True)
        return compute(model, data)

    def ask(seed=0, rows=ROWS):
        data = preference_data(tmp_path, rows)
        return preference.read_or_compute(data, tmp_path, lambda: tiny_model(seed))

    monkeypatch.setattr(preference, "answer_logprobs", count_asked)
    first = ask()
    assert torch.equal(ask(), first) and len(asked) == 1
    assert not torch.equal(ask(seed=1), first) and len(asked) == 2
    assert len(ask(rows=ROWS[:4])) == 8 and len(asked) == 3
    (tmp_path / preference.REFERENCE_FILE).write_bytes(b"PK damaged")
    assert torch.equal(ask(), first) and len(asked) == 4


@pytest.fixture
def tuning(tmp_path):
    """Settings of DPO from a fine-tuned model, on pairs of which the rejected answer is always the same."""
    folders = write_stages(tmp_path)
    finish_run(**{**TINY, "dropout": 0.0}, data_dir=folders["sft"], out_dir=str(tmp_path / "sft"))
    rows = [pair_row(one["question"], one["answer"], "不知道。") for one in made_up_questions(20)]
    given = {
        "objective": "dpo", "preferences": [str(write_jsonl(tmp_path / "pairs.jsonl", rows))], "val_share": 0.2,
        "init_from": str(tmp_path / "sft" / "last.pt"), "out_dir": str(tmp_path / "dpo"), "learning_rate": 3e-3,
    }  # fmt: skip
    return {**TINY, **given}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_prefers_what_was_chosen(tuning, method, capsys):
    run_here(**{**tuning, "method": method, "dropout": 0.0, "max_iters": 30, "stop_at_answered": 1.0})
    log = log_of(tuning["out_dir"])
    assert log[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert log[-1]["val_loss"] < log[3]["val_loss"] < math.log(2)
    assert log[-1]["val_accuracy"] > 0.8 and log[-1]["val_margin"] > 0
    assert log[-1]["answered"] < 0.5  # of the chosen answers: so small a model learns none by heart
    content = load_checkpoint(f"{tuning['out_dir']}/last.pt")
    assert content["stage"] == "sft" and ("adapter" in content) == (method == "lora")
    assert "镇有几座桥？ →" in capsys.readouterr().out  # the sample: a question of the validation part


def test_a_run_that_crashed_goes_on_as_if_nothing_had_been(tuning, tmp_path, monkeypatch):
    whole = finish_run(**{**tuning, "out_dir": str(tmp_path / "whole")})
    crashed = TrainingRun(TrainSettings(**tuning), say=lambda line: None)
    steps, loss = [], crashed.loss

    def fail_in_step_11(*batch):
        steps.append(True)
        if len(steps) == 11:
            raise RuntimeError("crashed")
        return loss(*batch)

    crashed.loss = fail_in_step_11
    with pytest.raises(RuntimeError, match="crashed"):
        train.train(crashed)
    monkeypatch.setattr(preference, "answer_logprobs", None)  # the reference's answers are in the run's folder
    resumed = finish_run(**{**tuning, "init_from": "resume"})
    assert log_of(resumed.out) == log_of(whole.out)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
