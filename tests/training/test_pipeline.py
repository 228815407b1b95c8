"""Pipeline parallelism, on the CPU over gloo, against the run of one process."""

import pytest
from dividing import TOLERANCES, assert_same_run, run_divided
from runs import TINY, finish_run, log_of, write_stages
from tiny import ARCHITECTURE_FIELDS

from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.pipeline import bubble, divide_layers
from minigpt.training.setup import check_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_stages(tmp_path_factory.mktemp("rows"))["pretrain"]


soak_only = pytest.mark.soak_only


@pytest.mark.parametrize(
    ("architecture", "optimizer", "parts", "groups", "more"),
    [
        pytest.param("gpt2", "adamw", 2, 1, {}, marks=soak_only),
        pytest.param("gpt2", "muon", 4, 1, {}, marks=soak_only),
        ("qwen3", "adamw", 2, 1, {}),  # a matrix of its own in the output layer
        pytest.param("qwen3", "muon", 2, 2, {}, marks=soak_only),
        pytest.param("gpt2", "adamw", 4, 1, {"gradient_accumulation_steps": 2}, marks=soak_only),  # fewer than stages
        pytest.param("gpt2", "adamw", 2, 2, {"gradient_accumulation_steps": 1}, marks=soak_only),  # rows shared out
        pytest.param("gpt2", "adamw", 2, 1, {"dtype": "bfloat16", "tolerance": 2e-3}, marks=soak_only),
    ],
)
def test_stages_give_the_curve_of_one_process(data, tmp_path, architecture, optimizer, parts, groups, more):
    settings = {"optimizer": optimizer, **ARCHITECTURE_FIELDS[architecture], **more}
    tolerance = settings.pop("tolerance", TOLERANCES[optimizer])
    run_divided(tmp_path / "alone", data, **settings)
    out = run_divided(tmp_path / "stages", data, pipeline=parts, groups=groups, **settings)
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
    run_divided(tmp_path / "whole", data, **settings)
    for i, (parts, groups) in enumerate(course):
        part = {"max_iters": 3 * (i + 1), "init_from": "resume" if i else "scratch"}
        run_divided(tmp_path / "run", data, pipeline=parts, groups=groups, **{**settings, **part})
    assert_same_run(tmp_path / "run", tmp_path / "whole", TOLERANCES["muon"])


@soak_only
def test_a_run_of_stages_goes_on_exactly(data, tmp_path):
    """With the same sizes it has the very numbers of a run that was not interrupted, dropout included."""
    settings = {"dropout": 0.1, "decay_lr": False, "warmup_iters": 1}
    run_divided(tmp_path / "whole", data, pipeline=2, **settings)
    run_divided(tmp_path / "run", data, pipeline=2, **settings, max_iters=3)
    run_divided(tmp_path / "run", data, pipeline=2, **settings, init_from="resume")
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
        finish_run(**TINY, data_dir=data, out_dir=str(tmp_path), pipeline_parallel=2)


@soak_only
def test_more_stages_than_layers_are_refused(data, tmp_path):
    with pytest.raises(AssertionError, match="error: pipeline_parallel is 2, but the model has 1 layer;"):
        run_divided(tmp_path, data, pipeline=2, n_layer=1)
