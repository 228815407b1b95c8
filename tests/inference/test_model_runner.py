"""The KV cache of ModelRunner: it grows with the sequences, and leaves their logits as they are."""

import pytest
import torch
from plain_generation import assert_steps_are_those_of_whole_passes
from tiny import tiny_model

from minigpt.inference import model_runner
from minigpt.inference.model_runner import ModelRunner


@pytest.fixture(autouse=True)
def few_positions(monkeypatch):
    """A cache that begins with so few positions that it grows."""
    monkeypatch.setattr(model_runner, "FIRST_POSITIONS", 4)


def size_of(runner):
    """(rows, positions) that the cache has room for; the same in both of its tensors."""
    ((rows, positions),) = {(t.shape[1], t.shape[3]) for t in (runner.cache.keys, runner.cache.values)}
    return rows, positions


@pytest.mark.numeric
@torch.no_grad()
def test_sequences_that_come_and_go_as_the_cache_grows_have_the_logits_of_whole_passes(architecture):
    model, runner = tiny_model(architecture=architecture), ModelRunner(tiny_model(architecture=architecture), 5)
    assert_steps_are_those_of_whole_passes(runner, model)
    assert size_of(runner) == (4, 32)


@torch.no_grad()
def test_rows_and_positions_double_up_to_max_batch_and_block_size():
    runner = ModelRunner(tiny_model(block_size=24), 3)
    sizes = [size_of(runner)]
    runner.prefill([[1, 2, 3, 4]])
    sizes.append(size_of(runner))
    runner.step([5], [4])
    sizes.append(size_of(runner))
    runner.prefill([[1] * 17])
    sizes.append(size_of(runner))
    runner.prefill([[1]])
    sizes.append(size_of(runner))
    assert sizes == [(1, 4), (1, 4), (1, 8), (2, 24), (3, 24)]
    for t in range(1, 24):
        runner.step([1] * 3, [min(4 + t, 23), min(16 + t, 23), t])
    assert size_of(runner) == (3, 24)
    assert size_of(ModelRunner(tiny_model(block_size=3), 3)) == (1, 3)


@pytest.mark.parametrize("empty", [lambda runner: [runner.drop(0, 2) for _ in range(3)], ModelRunner.clear])
@torch.no_grad()
def test_a_large_cache_is_freed_once_no_sequence_is_left(empty, monkeypatch):
    for most, expected in ((2**30, (4, 16)), (0, (1, 4))):
        monkeypatch.setattr(model_runner, "MAX_IDLE_CACHE_BYTES", most)
        runner = ModelRunner(tiny_model(), 8)
        runner.prefill([[1] * 9] * 3)
        assert size_of(runner) == (4, 16)
        empty(runner)
        assert (runner.n, size_of(runner)) == (0, expected)


@torch.no_grad()
def test_where_memory_runs_out_as_the_cache_grows_it_can_still_be_used(monkeypatch):
    runner, expected = ModelRunner(tiny_model(), 4), ModelRunner(tiny_model(), 4).prefill([[1, 2], [3, 4]])
    tensors, new_zeros = [], torch.Tensor.new_zeros

    def short_of_memory(tensor, *size):
        tensors.append(size)
        if len(tensors) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return new_zeros(tensor, *size)

    monkeypatch.setattr(torch.Tensor, "new_zeros", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        runner.prefill([[1] * 20])
    runner.clear()
    torch.testing.assert_close(runner.prefill([[1, 2], [3, 4]]), expected)
    assert size_of(runner) == (2, 4)
