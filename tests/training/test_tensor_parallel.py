"""Tensor parallelism, on the CPU over gloo, against the run of one process."""

import pytest
import torch
from dividing import TOLERANCES, assert_same_run, run_divided
from runs import TINY, write_stages
from tiny import ARCHITECTURE_FIELDS, tiny_model

from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import check_settings
from minigpt.training.tensor_parallel import row_orders

soak_only = pytest.mark.soak_only
BIASES = {"bias": True}
FEW_KEYS = {**ARCHITECTURE_FIELDS["qwen3"], "tied": True}  # four heads share two of keys and values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_stages(tmp_path_factory.mktemp("rows"))["pretrain"]


@pytest.mark.parametrize(
    ("optimizer", "parts", "groups", "more"),
    [
        ("adamw", 2, 1, BIASES),
        ("muon", 2, 2, FEW_KEYS),
        pytest.param("muon", 2, 1, BIASES, marks=soak_only),
        pytest.param("adamw", 2, 1, FEW_KEYS, marks=soak_only),
        pytest.param("adamw", 4, 1, BIASES, marks=soak_only),
        pytest.param("adamw", 2, 1, {"tied": False}, marks=soak_only),
        pytest.param("adamw", 2, 2, {"gradient_accumulation_steps": 1}, marks=soak_only),  # rows are shared out
        pytest.param("adamw", 2, 1, {"dtype": "bfloat16", "tolerance": 5e-3}, marks=soak_only),
    ],
)
def test_parts_give_the_curve_of_one_process(data, tmp_path, optimizer, parts, groups, more):
    settings = {"optimizer": optimizer, **more}
    tolerance = settings.pop("tolerance", TOLERANCES[optimizer])
    run_divided(tmp_path / "alone", data, **settings)
    out = run_divided(tmp_path / "parts", data, tensor=parts, groups=groups, **settings)
    assert f"{parts} tensor-parallel parts" in out and " → " in out and "FutureWarning" not in out
    assert_same_run(tmp_path / "parts", tmp_path / "alone", tolerance)


TWO_BY_TWO, SHARDS = {"tensor": 2, "groups": 2}, {"groups": 2, "fsdp": True}


@pytest.mark.parametrize(
    "course",
    [
        [{"tensor": 2}, {"pipeline": 2}, {}],
        pytest.param([{}, {"tensor": 2}, TWO_BY_TWO, SHARDS, {"tensor": 4}, {"groups": 2}, {}], marks=soak_only),
    ],
    ids=["three-ways", "all-sizes"],
)
def test_a_run_goes_on_in_other_ways(data, tmp_path, course):
    """Each part of a run is divided in another way, and reads what the one before it wrote. Its curve is that of one
    process."""
    settings = {"optimizer": "muon", "decay_lr": False, "warmup_iters": 1, "n_kv_head": 4, "architecture": "qwen3"}
    run_divided(tmp_path / "whole", data, **settings, max_iters=3 * len(course))
    for i, way in enumerate(course):
        part = {"max_iters": 3 * (i + 1), "init_from": "resume" if i else "scratch"}
        run_divided(tmp_path / "run", data, **way, **settings, **part)
    assert_same_run(tmp_path / "run", tmp_path / "whole", TOLERANCES["muon"])


def test_a_part_has_the_rows_of_its_own_heads(architecture):
    model = tiny_model(architecture=architecture)
    config, orders = model.config, row_orders(model, 2)
    rows = orders["h.0.attn.c_attn.weight"].view(2, -1)
    ends = torch.tensor([config.n_head, config.n_head + config.n_kv_head]) * config.head_dim
    for part in range(2):
        for kind, heads in enumerate((config.n_head, config.n_kv_head, config.n_kv_head)):
            own = rows[part][torch.bucketize(rows[part], ends, right=True) == kind]
            first = (0, *ends.tolist())[kind] + part * heads // 2 * config.head_dim
            assert own.tolist() == list(range(first, first + heads // 2 * config.head_dim))
    assert ("h.0.mlp.c_fc.weight" in orders) == (not config.is_gpt2)
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(len(order)))


def test_heads_that_cannot_be_divided_are_refused(data, tmp_path):
    with pytest.raises(AssertionError, match=r"error: n_head \(3\) must be a multiple of tensor_parallel \(2\)"):
        run_divided(tmp_path, data, tensor=2, n_head=3, n_embd=48)


@pytest.mark.parametrize("settings", [{"method": "lora"}, {"fsdp": True}, {"stop_at_answered": 0.5}])
def test_settings_that_do_not_go_with_parts_are_refused(settings):
    with pytest.raises(UserError, match=f"tensor_parallel does not go with {next(iter(settings))}="):
        check_settings(TrainSettings(**{**TINY, "tensor_parallel": 2, **settings}))
