"""bench.py adapt: every way trains what it should, the ways take turns, and the table says what was not measured."""

import contextlib

import pytest
from corpora import byte_tokenizer

from minigpt.bench import adapting
from minigpt.common.errors import UserError
from minigpt.settings.stages import TrainSettings
from train import train_step

# As in config/train_config.py, these are not what the ways take.
SETTINGS = TrainSettings(
    block_size=32, n_layer=1, n_head=2, n_embd=32, vocab_size=320, device="cpu", dtype="float32",
    batch_tokens=64, gradient_accumulation_steps=8, grad_clip=1.0, max_epochs=8.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """All runs in this process, and a tokenizer whose ids the tiny model has."""
    monkeypatch.setattr(adapting, "call_in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(
        adapting, "fresh_process", lambda: contextlib.nullcontext(lambda function, *rest: function(*rest))
    )
    monkeypatch.setattr(adapting, "load_tokenizer", lambda name: byte_tokenizer())
    monkeypatch.setattr(adapting, "RUNS", {})


def test_every_way_trains_and_takes_turns_with_the_first(tmp_path, monkeypatch):
    turns = []

    def record(run):
        turns.append(next(name for name, known in adapting.RUNS.items() if known is run))
        return train_step(run)

    monkeypatch.setattr(adapting, "train_step", record)
    figures = adapting.measure_ways(tmp_path, SETTINGS, rounds=2)
    measured = {name: f for name, f in figures.items() if isinstance(f, dict)}
    assert figures.keys() == adapting.ADAPTED_WAYS.keys()
    assert set(figures) - set(measured) <= {"QLoRA, rank 8, NF4"}  # where bitsandbytes is not installed
    others = list(measured)[1:]
    assert turns == [adapting.FULL, *(turn for name in others for turn in (name, *[adapting.FULL, name] * 2))]

    # Full tuning trains all parameters, the others less; the base itself stays.
    whole = measured[adapting.FULL]["trained"]
    for name, f in measured.items():
        assert (f["trained"] == whole) == name.startswith("full"), name
        assert f["tokens_per_second"] > 0 and f["of_full"] > 0
        run = adapting.RUNS[name]
        assert run.settings.optimizer == (name.split()[1].lower() if name.startswith("full") else "adamw")
        assert run.progress.skipped == 0 and run.data.batches_a_step == 1
    table = adapting.adapting_table(figures)
    assert f"| {adapting.FULL} | {whole:,} | 100.00% |" in table and "| 1.00 |" in table


def test_a_way_that_cannot_be_had_is_said_below_the_table(tmp_path, monkeypatch):
    open_way = adapting.open_way

    def refuse(name, *more):
        if name == "full, LOMO":
            raise UserError("there is none")
        return open_way(name, *more)

    monkeypatch.setattr(adapting, "open_way", refuse)
    ways = {name: adapting.ADAPTED_WAYS[name] for name in (adapting.FULL, "full, LOMO", "full, MeZO")}
    monkeypatch.setattr(adapting, "ADAPTED_WAYS", ways)
    table = adapting.adapting_table(adapting.measure_ways(tmp_path, SETTINGS, rounds=1))
    assert table.endswith("\n\nNot measured: full, LOMO (there is none).") and table.count("LOMO") == 1


def test_the_peak_is_that_since_the_start(tmp_path, monkeypatch):
    status, reset = tmp_path / "status", tmp_path / "clear_refs"
    status.write_text("VmPeak:\t9000 kB\nVmHWM:\t 4096 kB\nVmRSS:\t 2048 kB\n", encoding="utf-8")
    monkeypatch.setattr(adapting, "PROCESS_STATUS", status)
    monkeypatch.setattr(adapting, "PROCESS_PEAK_RESET", reset)
    precision = adapting.make_random_base(tmp_path, SETTINGS)
    assert adapting.open_way(adapting.FULL, tmp_path, SETTINGS, precision)["before_mb"] == 2
    assert reset.read_text(encoding="utf-8") == "5"
    assert adapting.peak_since_start(adapting.FULL) == 4
