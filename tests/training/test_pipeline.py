"""Pipeline parallelism, on the CPU over gloo, against the run of one process."""

import pytest
import torch
from runs import TINY, arguments, finish, log_of, run_here, start, write_stages
from tiny import ARCHITECTURE_FIELDS

from minigpt.checkpoint import load_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.pipeline import bubble, divide_layers
from minigpt.training.setup import check_settings

# Dropout differs between processes, so it is off. Batches of so many rows are the same ones, padded to the block or
# not; those of the epoch's end have fewer.
STEP = {
    "dropout": 0.0, "n_layer": 4, "n_head": 4, "n_embd": 64, "batch_size": 3, "gradient_accumulation_steps": 4,
    "max_iters": 6, "eval_interval": 3, "learning_rate": 3e-3,
}  # fmt: skip
TOLERANCES = {"adamw": 1e-4, "muon": 1e-3}  # of losses, as in test_distributed.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_stages(tmp_path_factory.mktemp("rows"))["pretrain"]


def run_in(folder, data, parts=1, groups=1, **settings):
    """What a run of so many stages, times so many groups, printed."""
    given = {"data_dir": data, "out_dir": str(folder), "pipeline_parallel": parts, **STEP, **settings}
    processes = parts * groups
    return run_here(**given) if processes == 1 else finish(start(*arguments(**given), processes=processes))


def assert_same_run(folder, other, tolerance):
    """Logs and checkpoints are the same, but for rounding."""
    left, right = log_of(folder), log_of(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        assert (a["tokens"], a["epoch"]) == (b["tokens"], b["epoch"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=tolerance)
        assert (a["val_loss"] is None) == (b["val_loss"] is None)
        assert a["val_loss"] is None or a["val_loss"] == pytest.approx(b["val_loss"], abs=tolerance)
    assert right[-1]["train_loss"] < right[0]["train_loss"] - 0.1

    content, expected = load_checkpoint(folder / "last.pt"), load_checkpoint(other / "last.pt")
    assert list(content["model"]) == list(expected["model"])
    for name, value in expected["model"].items():
        torch.testing.assert_close(content["model"][name], value, rtol=0, atol=10 * tolerance)
    for ours, theirs in zip(content["optimizers"], expected["optimizers"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for i, values in theirs["state"].items():
            assert ours["state"][i].keys() == values.keys()
            for key, value in values.items():
                assert (ours["state"][i][key] - value).norm() <= 10 * tolerance * value.norm()
    sizes = [(place / "last.pt").stat().st_size for place in (folder, other)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # the tied table is in it once


soak_only = pytest.mark.soak_only


@pytest.mark.parametrize(
    ("architecture", "optimizer", "parts", "groups", "more"),
    [
        pytest.param("gpt2", "adamw", 2, 1, {}, marks=soak_only),
        pytest.param("gpt2", "muon", 4, 1, {}, marks=soak_only),
        pytest.param("qwen3", "adamw", 2, 1, {}, marks=soak_only),  # a matrix of its own in the output layer
        pytest.param("qwen3", "muon", 2, 2, {}, marks=soak_only),
        pytest.param("gpt2", "adamw", 4, 1, {"gradient_accumulation_steps": 2}, marks=soak_only),  # fewer than stages
        pytest.param("gpt2", "adamw", 2, 2, {"gradient_accumulation_steps": 1}, marks=soak_only),  # rows shared out
        pytest.param("gpt2", "adamw", 2, 1, {"dtype": "bfloat16", "tolerance": 2e-3}, marks=soak_only),
    ],
)
def test_stages_give_the_curve_of_one_process(data, tmp_path, architecture, optimizer, parts, groups, more):
    settings = {"optimizer": optimizer, **ARCHITECTURE_FIELDS[architecture], **more}
    tolerance = settings.pop("tolerance", TOLERANCES[optimizer])
    run_in(tmp_path / "alone", data, **settings)
    out = run_in(tmp_path / "stages", data, parts, groups, **settings)
    assert f"{parts} pipeline-parallel parts" in out and "pipeline: " in out and " → " in out
    assert_same_run(tmp_path / "stages", tmp_path / "alone", tolerance)


@pytest.mark.parametrize(
    "course",
    [
        [(2, 2), (1, 1)],
        pytest.param([(1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (1, 1)], marks=soak_only),
    ],
    ids=["two-by-two", "all-sizes"],
)
def test_a_run_goes_on_with_other_sizes(data, tmp_path, course):
    """Each part of a run has other numbers of stages and groups, and reads what the one before it wrote. Its curve is
    that of one process."""
    settings = {"optimizer": "muon", "decay_lr": False, "warmup_iters": 1, "max_iters": 3 * len(course)}
    run_in(tmp_path / "whole", data, **settings)
    for i, (parts, groups) in enumerate(course):
        part = {"max_iters": 3 * (i + 1), "init_from": "resume" if i else "scratch"}
        run_in(tmp_path / "run", data, parts, groups, **{**settings, **part})
    assert_same_run(tmp_path / "run", tmp_path / "whole", TOLERANCES["muon"])


@soak_only
def test_a_run_of_stages_goes_on_exactly(data, tmp_path):
    """With the same sizes it has the very numbers of a run that was not interrupted, dropout included."""
    settings = {"dropout": 0.1, "decay_lr": False, "warmup_iters": 1}
    run_in(tmp_path / "whole", data, 2, **settings)
    run_in(tmp_path / "run", data, 2, **settings, max_iters=3)
    run_in(tmp_path / "run", data, 2, **settings, init_from="resume")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


@pytest.mark.parametrize(("n_layer", "parts"), [(12, 2), (12, 4), (4, 4), (5, 2), (48, 7), (3, 2), (13, 8)])
@pytest.mark.parametrize("output_layers", [0.0, 0.1, 1.0, 5.45, 30.0])
def test_every_stage_has_layers_and_the_last_no_more_than_its_share(n_layer, parts, output_layers):
    ranges = divide_layers(n_layer, parts, output_layers)
    assert [layer for layers in ranges for layer in layers] == list(range(n_layer))
    sizes = [len(layers) for layers in ranges]
    assert len(sizes) == parts and min(sizes) >= 1
    assert sizes[:-1] == sorted(sizes[:-1]) and sizes[-2] - sizes[0] <= 1
    share = (n_layer + output_layers) / parts
    assert sizes[-1] == 1 or abs(sizes[-1] + output_layers - share) <= 0.5


def test_the_124m_model_in_two_stages_has_fewer_layers_before_its_output_layer():
    assert [len(layers) for layers in divide_layers(12, 2, 38.6 / 7.08)] == [9, 3]
    assert bubble(8, 2) == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel": 2}, "do not go together"),
        ({"replay_share": 0.1}, "replay_share"),
        ({"compile": "on"}, "compile"),
        ({"method": "lora"}, "method=lora"),
        ({"fsdp": True}, "fsdp"),
        ({"objective": "mlm"}, "objective=mlm"),
        ({"optimizer": "mezo"}, "optimizer mezo"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_settings_that_do_not_go_with_stages_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(TrainSettings(**{**TINY, "pipeline_parallel": 2, **settings}))


def test_one_process_cannot_be_two_stages(data, tmp_path):
    with pytest.raises(UserError, match="nproc_per_node=2"):
        run_in(tmp_path, data, **{"pipeline_parallel": 2, "out_dir": str(tmp_path)})


@soak_only
def test_more_stages_than_layers_are_refused(data, tmp_path):
    given = {**STEP, "data_dir": data, "out_dir": str(tmp_path), "pipeline_parallel": 2, "n_layer": 1}
    process = start(*arguments(**given), processes=2)
    out, _ = process.communicate(timeout=240)
    assert process.returncode and "pipeline_parallel is 2, but the model has 1 layers" in out
