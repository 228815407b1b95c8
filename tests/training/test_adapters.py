"""Methods of fine-tuning in train.py: what trains, what is written, what is refused; masked language modelling."""

import math

import numpy as np
import pytest
import torch
from runs import TINY, finish_run, write_stages
from tiny import ARCHITECTURE_FIELDS, PAD, VOCAB, padded_rows, random_ids, tiny_meta

import train
from data_utils import make_batch
from minigpt.adapters.attach import trained_parameters
from minigpt.checkpoint import load_checkpoint, load_model, weights_hash
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from minigpt.training.validation import validate

METHODS = {
    "lora": {"rank": 2, "alpha": 4.0},
    "lora with DoRA": {"rank": 2, "alpha": 4.0, "dora": True},
    "lora by budget": {"rank": 3, "adalora_rank": 2},
    "adapter": {"bottleneck": 4},
    "prompt": {"virtual_tokens": 3},
    "p-tuning": {"virtual_tokens": 3},
    "prefix": {"virtual_tokens": 3},
}


@pytest.fixture(params=list(ARCHITECTURE_FIELDS))
def base(request, tmp_path):
    """(settings of a trained base's fine-tuning, its last.pt): a function of further settings."""
    folders = write_stages(tmp_path)
    shape = {**TINY, "dropout": 0.0, "learning_rate": 3e-3, **ARCHITECTURE_FIELDS[request.param]}
    finish_run(**shape, data_dir=folders["pretrain"], out_dir=str(tmp_path / "base"))

    def tuning(**changes):
        given = {"data_dir": folders["sft"], "out_dir": str(tmp_path / "tuned"), "init_from": str(path)}
        return {**TINY, "dropout": 0.0, "learning_rate": 2e-3, "block_size": 96, **given, **changes}

    path = tmp_path / "base" / "last.pt"
    return tuning, path


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_trains_its_own_parameters_alone_and_its_file_is_small(base, name):
    tuning, path = base
    run = TrainingRun(TrainSettings(**tuning(method=name.split()[0], **METHODS[name])), say=lambda line: None)
    run.data.val = run.data.train
    loss_at_start = validate(run)
    train.train(run)
    assert validate(run) < loss_at_start
    before, content = load_checkpoint(path), load_checkpoint(run.out / "last.pt")

    # Its file has the trained parameters, and says which base they belong to.
    assert set(content["model"]) == set(trained_parameters(run.model))
    assert content["base"]["sha256"] == weights_hash(before)
    assert sum(t.numel() for t in content["model"].values()) < 0.7 * sum(t.numel() for t in before["model"].values())

    # The base stands unchanged within the model, and the loaded model is the trained one.
    own = {key.replace("base.", ""): tensor for key, tensor in run.model.state_dict().items()}
    assert all(torch.equal(own[key], tensor) for key, tensor in before["model"].items())
    loaded, _ = load_model(content)
    x = random_ids(2, 20)
    torch.testing.assert_close(loaded(x), run.model.eval()(x))


def test_an_adapter_refuses_another_base_and_says_so(base, tmp_path):
    tuning, path = base
    run = finish_run(**tuning(method="lora", max_iters=2))
    content = load_checkpoint(run.out / "last.pt")
    load_model(content, base=str(path))  # the same file, named

    changed = load_checkpoint(path)
    changed["model"]["ln_f.weight"] += 1e-3
    torch.save(changed, path)
    with pytest.raises(UserError, match="not as it was then"):
        load_model(content)
    path.unlink()
    with pytest.raises(UserError, match=r"base cannot be loaded.*--base="):
        load_model(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora", "init_from": "scratch"}, "tunes a model that is there"),
        ({"quantize": "nf4"}, "freezes the base"),
        ({"method": "prompt", "virtual_tokens": 60}, "virtual tokens"),
        ({"method": "prefix", "virtual_tokens": 96}, "virtual_tokens is 96, but the model has 96 positions"),
        ({"method": "prefix", "adalora_rank": 2}, "adalora_rank is for method lora"),
        ({"objective": "mlm"}, "objective mlm is for articles"),
        ({"method": "head"}, "no task"),
    ],
)
def test_settings_that_do_not_go_together_are_answered_in_one_line(base, changes, message):
    tuning, _ = base
    with pytest.raises(UserError, match=message) as caught:
        TrainingRun(TrainSettings(**tuning(**changes)), say=lambda line: None)
    assert "\n" not in str(caught.value)


def test_a_run_of_an_adapter_goes_on_only_with_the_same_method(base):
    tuning, _ = base
    finish_run(**tuning(method="lora", rank=2, max_iters=2))
    with pytest.raises(UserError, match="method=lora, rank=2"):
        TrainingRun(TrainSettings(**tuning(init_from="resume")), say=lambda line: None)
    finish_run(**tuning(method="lora", rank=2, max_iters=4, init_from="resume"))


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_an_adapter_stopped_within_a_step_and_resumed_equals_one_never_stopped(base, tmp_path, name):
    tuning, _ = base
    given = {"method": name, **METHODS[name], "dropout": 0.1, "gradient_accumulation_steps": 2, "max_iters": 6}
    whole = finish_run(**tuning(**given, out_dir=str(tmp_path / "whole")))
    stopped, asked = TrainingRun(TrainSettings(**tuning(**given)), say=lambda line: None), []
    stopped.stop_requested = lambda: asked.append(stopped.progress.step) or asked.count(4) > 2
    train.train(stopped)
    assert (stopped.progress.step, stopped.stopped_by) == (4, "interrupted")
    resumed = finish_run(**tuning(**given, init_from="resume"))
    for own, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, expected)


# Masked language modelling.


@pytest.mark.numeric
def test_masks_are_drawn_for_a_row_whatever_stands_beside_it():
    meta = {**tiny_meta("mlm"), "mask_share": 0.3}
    rows = padded_rows([random_ids(200, seed=i).tolist() for i in range(8)], 220)
    x, y, mask = make_batch(rows, meta, draw=(1, 2))
    short = padded_rows([rows[3, :50].tolist()], 220)
    alone, beside = (make_batch(part, meta, draw=(1, 2)) for part in (short, np.concatenate([rows, short])))
    width, marks = alone[0].shape[1], (meta["special_ids"]["answer"], -1)
    assert torch.equal(beside[2][-1:, :width], alone[2])
    for mark in marks:
        assert torch.equal(beside[0][-1:, :width] == mark, alone[0] == mark)
    assert not torch.equal(make_batch(rows, meta, draw=(1, 3))[2], mask)

    # Shares: 30% are to be found, of which 80% are masked and about 10% unchanged; padding is -1.
    assert mask[:, :200].float().mean() == pytest.approx(0.3, abs=0.05)
    found = x[mask] == meta["special_ids"]["answer"]
    assert found.float().mean() == pytest.approx(0.8, abs=0.06)
    assert (x[mask] == y[mask]).float().mean() == pytest.approx(0.1, abs=0.05)
    assert torch.equal(x[~mask & (y != PAD)], y[~mask & (y != PAD)]) and (x[y == PAD] == -1).all()


def test_a_masked_model_learns_in_both_directions_and_becomes_the_base_of_a_causal_one(base, tmp_path):
    tuning, _ = base
    folder = str(tmp_path / "pretrain")
    run = finish_run(
        **tuning(init_from="scratch", data_dir=folder, objective="mlm", max_iters=40, batch_size=16, warmup_iters=2)
    )
    content = load_checkpoint(run.out / "ckpt.pt")
    assert content["stage"] == "mlm" and not content["model_args"]["causal"]
    assert content["progress"]["best_val_loss"] < math.log(VOCAB) - 1
    tuned = finish_run(**tuning(init_from=str(run.out / "ckpt.pt"), out_dir=str(tmp_path / "causal"), max_iters=2))
    assert tuned.model.config.causal and np.isfinite(validate(tuned))
