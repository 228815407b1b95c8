"""bench.py learn: the arms are what their names say, runs add up in the file of results, and a stop loses none."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from corpora import byte_tokenizer
from tiny import write_rows

from minigpt.bench import arms, learning
from minigpt.settings.stages import TrainSettings
from train import train_step

FLOAT32 = {"device": "cpu", "dtype": "float32", "plain_attention": False}


@pytest.fixture
def settings(tmp_path):
    """`TrainSettings` of a small model, with rows of 32 tokens."""
    rows = [[(7 * i + k) % 250 for k in range(3 + i % 25)] for i in range(60)]
    write_rows(tmp_path / "rows", {"train": rows, "val": rows[:9]}, 32, tokenizer=byte_tokenizer())
    return TrainSettings(
        data_dir=str(tmp_path / "rows"), out_dir=str(tmp_path / "run"), block_size=32, n_layer=1, n_head=4, n_embd=32,
        device="cpu", warmup_iters=1, weight_decay=0.5,
    )  # fmt: skip


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_arm_trains_its_blocks(name, settings):
    run = arms.build_arm(name, settings, precision=FLOAT32)
    before = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    for _ in range(2):  # what lies behind matrices of zeros has its first gradient in the second step
        train_step(run)
    same = [key for key, p in run.model.named_parameters() if torch.equal(p, before[key])]
    assert same == []
    assert run.progress.skipped == 0
    starts_at_zero = not any(p.any() for key, p in before.items() if key.endswith(arms.RESIDUAL))
    assert starts_at_zero == (name not in ("gpt2", "qwen3, random start"))


def test_squared_relu_has_as_many_parameters_as_swiglu(settings):
    plain, changed = (arms.build_arm(name, settings, precision=FLOAT32) for name in ("qwen3", "qwen3, ReLU²"))
    assert plain.model.num_params() == changed.model.num_params()


@pytest.mark.numeric
def test_split_matrices_compute_the_same_and_are_orthogonalized_apart(settings):
    plain, split = (arms.build_arm(name, settings, precision=FLOAT32) for name in ("qwen3", arms.SPLIT))
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(split.model(ids), plain.model(ids))
    sizes = [tuple(p.shape) for p in split.optimizers[1].param_groups[0]["params"]]
    assert sizes == [(32, 32)] * 4 + [(128, 32)] * 2 + [(32, 128)]


@pytest.mark.numeric
def test_cautious_decay_shrinks_the_weights_that_the_update_shrinks():
    """Adam's first step is the rate against the gradient's sign."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0, 2.0, 0.0]]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    arms.decay_cautiously([optimizer])
    weight.grad = torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[1 - 0.1 - 0.05, -1.1, 2.1, -0.1]]))


@pytest.fixture
def in_threads(monkeypatch):
    """Runs in this process, one after the other."""
    monkeypatch.setattr(learning, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(learning, "call_in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(learning, "TIMED_BATCHES", 2)


def test_runs_go_on_after_a_stop(settings, in_threads, monkeypatch, tmp_path):
    path, corpora, trained = tmp_path / "results.jsonl", {"laptop": ("towns", settings)}, []
    plan = [("laptop", 2.0, (1,), ("gpt2", "qwen3"))]
    train_arm = learning.train_arm
    monkeypatch.setattr(learning.Results, "step_seconds", lambda self, corpus, arm: self.calibrations(corpus) and 1.0)

    def stopped(name, *more):
        if trained:
            raise KeyboardInterrupt
        trained.append(name)
        return train_arm(name, *more)

    monkeypatch.setattr(learning, "train_arm", stopped)
    with pytest.raises(KeyboardInterrupt):
        learning.measure_plan(plan, corpora, learning.Results(path), rounds=1)
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"corpus": "towns", "arm": "qw')  # a line that a kill has torn
    monkeypatch.setattr(learning, "train_arm", lambda name, *more: trained.append(name) or train_arm(name, *more))
    learning.measure_plan(plan, corpora, learning.Results(path), rounds=1)
    assert trained == ["gpt2", "qwen3"]

    # The file has the calibration and both runs; each run has its figures, and the table has its line.
    results = learning.Results(path)
    assert [("batch_seconds" in line, line.get("arm")) for line in results.lines] == [
        (True, None), (False, "gpt2"), (False, "qwen3"),
    ]  # fmt: skip
    for line in results.lines[1:]:
        assert line["steps"] == 2 and [steps for steps, _ in line["curve"]] == [1, 2]
        assert line["loss"] == line["curve"][-1][1] > 3 and line["bits_per_char"] > 3
    table = learning.learning_table(plan, corpora, results)
    assert "| gpt2 | 1000.0 | 2 | 1 |" in table and "| qwen3 |" in table and "100.0%" in table


def test_step_seconds_are_the_best_of_each_batch(tmp_path):
    results = learning.Results(tmp_path / "results.jsonl")
    results.add(corpus="a", batch_seconds={"gpt2": [1.0, 4.0]})
    results.add(corpus="a", batch_seconds={"gpt2": [2.0, 2.0]})
    assert results.step_seconds("a", "gpt2") == 1.5
    assert results.step_seconds("b", "gpt2") is None


def test_arms_of_the_same_work_share_their_step_time(tmp_path):
    results = learning.Results(tmp_path / "results.jsonl")
    results.add(corpus="a", batch_seconds={"qwen3": [3.0, 1.0], "qwen3, rates x 1.5": [2.0, 2.0], "gpt2": [0.5, 0.5]})
    assert {name for name in arms.ARMS if results.step_seconds("a", name) == 1.5} == {
        "qwen3", "qwen3, random start", "qwen3, linear to zero", "qwen3, warm-up, stable, decay",
        "qwen3, rates x 0.7", "qwen3, rates x 1.5",
    }  # fmt: skip
    assert results.step_seconds("a", "gpt2, zero start") == 0.5


@pytest.mark.parametrize(
    ("curve", "share"),
    [([[50, 3.0], [100, 2.0]], 0.75), ([[50, 2.5], [100, 2.0]], 0.5), ([[50, 4.0], [100, 2.6]], None)],
)
def test_the_time_to_a_loss_is_read_between_two_points(curve, share):
    assert learning.share_of_time({"curve": curve, "steps": 100}, 2.5) == share


def test_the_spread_is_half_of_largest_minus_smallest():
    assert learning.spread_text([1.0], ".2f") == "1.00"
    assert learning.spread_text([1.0, 2.0, 1.2], ".2f") == "1.40 ± 0.50"


def test_the_rate_falls_in_a_line_over_the_share_of_an_arm(settings, monkeypatch):
    rates = []

    def record(run):
        rates.append(run.optimizers[0].param_groups[0]["peak_lr"])
        return train_step(run)

    monkeypatch.setattr(learning, "train_step", record)
    learning.train_arm("qwen3, warm-up, stable, decay", settings, 1, 11, FLOAT32)
    peak = settings.learning_rate
    assert rates[:8] == [peak] * 8
    assert rates[8:] == pytest.approx([peak * left / 3 for left in (3, 2, 1)], rel=1e-6)
